"""Recipes: defaults, differences, overrides, and every mistake told at once."""

import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from adapt.errors import RecipeError, UsageError
from adapt.options import as_plain, meaning, option_types
from adapt.recipe import LoraOptions, Recipe, load_recipe, recipe_schema, recipes_for
from adapt.recipe_files import resolve_recipe_path, shipped_names, shipped_path
from adapt.recipe_view import copy_recipe, print_recipe, print_recipes, render_recipe
from adapt.resources import recipes_dir, schema_path

SHIPPED = sorted(recipes_dir().rglob("*.yaml"))
SETTINGS = sorted((recipes_dir() / "deepspeed").glob("*.json"))


@pytest.fixture
def write(tmp_path):
    def write_recipe(text, name="mine.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_recipe


def problems(path, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).splitlines()


def test_there_are_shipped_recipes():
    assert {path.stem for path in SHIPPED} >= {"drivelm", "bddx", "medical", "remote_sensing"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_hold_differences_only(path):
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(recipe_schema()).validate(data)
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.out == Path("runs") / path.stem
    assert recipe.domains or path.stem == "demo"
    assert recipe.description
    defaults = as_plain(Recipe(name=path.stem))
    assert [key for key, value in data.items() if value == defaults[key]] == []


def test_the_papers_settings():
    """Section 4.2 of the paper, and the scripts behind it."""
    chosen = {
        name: (recipe.ratio, recipe.gradient_accumulation, recipe.save_every)
        for name in ("drivelm", "bddx", "medical", "remote_sensing")
        for recipe in [load_recipe(shipped_path(name))]
    }
    assert chosen == {
        "drivelm": ("1:4", 1, 700),
        "bddx": ("2:1", 8, 72),
        "medical": ("1:1", 8, 700),
        "remote_sensing": (None, 8, 500),
    }
    recipe = load_recipe(shipped_path("drivelm"))
    assert (recipe.learning_rate, recipe.weight_decay, recipe.warmup_ratio) == (1e-5, 0.01, 0.03)
    assert (recipe.epochs, recipe.max_steps, recipe.loss) == (1, None, "square")
    assert (recipe.max_record_tokens, recipe.max_pack_tokens) == (8192, 16384)
    assert (recipe.max_pack_tiles, recipe.max_tiles, recipe.thumbnail) == (48, 12, True)
    assert (recipe.method, recipe.deepspeed, recipe.drop_path) == ("full", "zero1", 0.1)


def test_forty_frames_fit_the_video_recipe():
    recipe = load_recipe(shipped_path("bddx"))
    assert 40 * 256 + 1000 < recipe.max_record_tokens <= recipe.max_pack_tokens


def test_the_schema_is_fresh():
    stored = json.loads(schema_path("recipe").read_text(encoding="utf-8"))
    assert stored == recipe_schema(), "run python -m adapt.recipe"
    jsonschema.Draft202012Validator.check_schema(stored)


def test_every_option_has_one_line_of_meaning():
    for name, hint in option_types(Recipe).items():
        assert meaning(hint).endswith("."), name
        assert "\n" not in meaning(hint), name


def test_the_docs_list_every_option():
    page = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
    options = page.read_text(encoding="utf-8").partition("## Options")[2].partition("## ")[0]
    rows = [row for row in options.splitlines() if row.startswith("| `")]
    schema = recipe_schema()["properties"]
    nested = schema["lora"]["properties"]
    expected = []
    for name, hint in option_types(Recipe).items():
        parent, _, child = name.rpartition(".")
        default = (nested[child] if parent else schema[name]).get("default", "")
        text = default if isinstance(default, str) else json.dumps(default)
        shown = "the file's" if name == "name" else f"`{text}`" if text else ""
        expected.append(" ".join(f"| `{name}` | {shown} | {meaning(hint)} |".split()))
    assert rows == expected


def test_differences_and_overrides(write):
    path = write("domains: [medical]\nmethod: lora\nlora: {rank: 32}\nlearning_rate: 4e-5\n")
    recipe = load_recipe(
        path,
        (
            "lora.dropout=0",
            "betas=[9e-1, 0.95]",
            "max_steps=20",
            "ratio=1:4",
            "name=night",
            "thumbnail=false",
            "model=models/a=b",
            "domains=[driving, medical]",
        ),
    )
    changed = Recipe(
        name="night",
        domains=("driving", "medical"),
        model="models/a=b",
        out=Path("runs/night"),
        ratio="1:4",
        method="lora",
        lora=LoraOptions(rank=32, alpha=64, dropout=0.0),
        learning_rate=4e-5,
        betas=(0.9, 0.95),
        max_steps=20,
        thumbnail=False,
    )
    assert recipe == changed


def test_null_takes_a_setting_back(write):
    path = write("max_steps: 20\nratio: '1:4'\nmethod: lora\nlora:\n")
    with pytest.raises(RecipeError, match="lora is None, expected options below it"):
        load_recipe(path)
    recipe = load_recipe(path, ("max_steps=null", "ratio=null", "lora.rank=4", "lora.alpha=null"))
    assert (recipe.max_steps, recipe.ratio, recipe.lora.alpha) == (None, None, 8)


def test_the_name_is_the_files(write):
    assert load_recipe(write("{}", "night.yaml")).out == Path("runs/night")
    assert load_recipe(write("# only defaults\n", "b.yaml")).name == "b"


def test_every_problem_is_told_at_once(write):
    path = write(
        "learning_rte: 1e-5\n"
        "learning_rate: fast\n"
        "method: loraa\n"
        "ratio: 1:4\n"
        "lora: {rnk: 3, rank: 0}\n"
        "seed: 1\n"
        "seed: 2\n"
        "domains: driving\n"
        "name: ../x\n"
    )
    found = problems(path, "max_steps", "epochs=0", "lora.alpha=x", "rank=8", "out=")
    assert found == [
        f"{path}:7: seed was already set in line 6; keep one of them",
        "--set max_steps: expected key=value, such as lora.rank=8",
        f"{path}:1: unknown option learning_rte (did you mean learning_rate?)",
        f"{path}:2: learning_rate is 'fast', expected a number (Peak learning rate)",
        f"{path}:3: method is 'loraa', expected one of full, freeze-vit, lora, qlora "
        "(did you mean lora?) (Which parameters are trained, and how)",
        f"{path}:4: ratio is 64, expected text in quotes, such as '1:4' "
        "(general:domain of the mix it is meant for; information only)",
        f"{path}:5: unknown option lora.rnk (did you mean lora.rank?)",
        f"{path}:5: lora.rank is 0, expected a whole number >= 1 (Rank of the adapters)",
        "--set lora.alpha: lora.alpha is 'x', expected a whole number or null "
        "(Scale numerator of the adapters; null: twice the rank)",
        f"{path}:8: domains is 'driving', expected a list (Domains it is for (driving, "
        "medical, ...))",
        f"{path}:9: name is '../x', expected text, such as 'medical-lora' "
        "(Name of the run; by default the file's)",
        "--set epochs: epochs is 0, expected a whole number >= 1 (Passes over the mix)",
        "--set rank: unknown option rank (did you mean lora.rank?)",
        "--set out: out is '', expected text "
        "(Folder of the run; NAME stands for the recipe's name)",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("min_tiles: 13", "min_tiles 13 is above max_tiles 12; lower it"),
        (
            "min_learning_rate: 0.1",
            "min_learning_rate 0.1 is above learning_rate 1e-05; lower it",
        ),
        ("lora: {rank: 8}", "lora is set but method is full; set method: lora, or drop lora"),
        (
            "method: lora\nstage: alignment",
            "stage alignment chooses what is trained; it needs method: full",
        ),
        (
            "deepspeed: zero",
            "deepspeed is 'zero': neither a file nor a shipped setting (did you mean zero3?)",
        ),
    ],
)
def test_options_that_contradict_each_other(write, text, problem):
    path = write(text)
    assert problems(path) == [f"{path}: {problem}"]


@pytest.mark.parametrize(
    "text",
    [
        "learning_rate: .nan",
        "learning_rate: .inf",
        "learning_rate: true",
        "epochs: 1.5",
        "epochs: true",
        "epochs: '1'",
        "thumbnail: 1",
        "thumbnail: 'yes'",
        "betas: [0.9]",
        "betas: [0.9, 1.0]",
        "model: 5",
        "model: null",
        "mix: [a]",
        "lora: 3",
        "max_steps: 0",
        "max_pack_tokens: 1000000",
        "seed: -1",
        "seed: 99999999999",
        "stage: pretraining",
        "dtype: fp16",
        "'1': 2",
        "1: 2",
    ],
)
def test_wrong_values(write, text):
    path = write(text)
    (problem,) = problems(path)
    assert problem.startswith(f"{path}:1: ")
    errors = jsonschema.Draft202012Validator(recipe_schema()).iter_errors(
        {str(key): value for key, value in yaml.safe_load(text).items()}
    )
    # JSON has no nan and inf, so its schema has nothing to say about them.
    assert list(errors) or "nan" in text or "inf" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("a: [1", ":1:6: not valid YAML"),
        ("a: b: c", ":1:5: not valid YAML"),
        ("a: !!python/object:os.system {}", "not valid YAML"),
        ("- a\n- b\n", "holds a list, expected options"),
        ("text", "holds a str, expected options"),
        ("[1]: 2", "not valid YAML"),
        ("---\na: 1\n---\nb: 1\n", "not valid YAML"),
    ],
)
def test_files_that_are_no_recipe(write, text, message):
    path = write(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"a\.yaml: cannot be read as text"):
        load_recipe(tmp_path / "a.yaml")


def test_override_of_no_value(write):
    path = write("{}")
    assert problems(path, "=3") == ["--set =3: expected key=value, such as lora.rank=8"]
    assert problems(path, "betas=[1") == ["--set betas: '[1' is not a YAML value; quote it"]


def test_a_missing_path_falls_back_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Path("recipes/medical.yaml")) == load_recipe(shipped_path("medical"))
    assert capsys.readouterr().err == (
        "recipes/medical.yaml: no such file; using the shipped recipe medical\n"
    )
    assert resolve_recipe_path(Path("medical")) == shipped_path("medical")
    assert capsys.readouterr().err == ""


def test_a_file_wins_over_a_shipped_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("medical").write_text("seed: 7", encoding="utf-8")
    assert load_recipe(Path("medical")).seed == 7


def test_unknown_recipes(tmp_path):
    with pytest.raises(RecipeError, match=r"medicl\.yaml: no such file, .*did you mean medical\?"):
        resolve_recipe_path(tmp_path / "medicl.yaml")
    with pytest.raises(RecipeError, match="is a folder, expected a recipe file"):
        resolve_recipe_path(tmp_path)
    with pytest.raises(RecipeError, match=r"zzz: no shipped recipe of this name \(known: bddx, "):
        shipped_path("zzz")


def test_recipes_for_a_domain():
    assert set(recipes_for("driving")) >= {"bddx", "drivelm"}
    assert recipes_for("remote_sensing") == ["remote_sensing"]
    assert recipes_for("cooking") == []


@pytest.mark.parametrize("name", shipped_names())
def test_a_rendered_recipe_reads_back_equal(write, name):
    recipe = load_recipe(
        shipped_path(name), ("method=lora", "lora.rank=8", "description=a 'b': # c", "max_steps=5")
    )
    text = render_recipe(recipe)
    assert load_recipe(write(text)) == recipe
    assert render_recipe(load_recipe(write(text))) == text


def test_rendering_shows_every_option(capsys):
    print_recipe("medical")
    shown = capsys.readouterr().out
    data = yaml.safe_load(shown)
    assert list(data) == [field.name for field in dataclasses.fields(Recipe)]
    assert data["lora"] == {"rank": 16, "alpha": 32, "dropout": 0.05, "vision": False}
    assert "learning_rate: 1.0e-05              # Peak learning rate.\n" in shown


def test_listing(capsys):
    print_recipes()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["RECIPE", "DOMAINS", "GENERAL:DOMAIN", "WHAT", "IT", "IS"]
    assert [line.split()[:3] for line in lines[1:] if line.startswith("drivelm")] == [
        ["drivelm", "driving", "1:4"]
    ]
    assert len(lines) == 1 + len(shipped_names())


def test_copying(tmp_path, capsys):
    copy_recipe("medical", tmp_path / "mine.yaml")
    copy_recipe("medical", tmp_path / "recipes")
    for path in (tmp_path / "mine.yaml", tmp_path / "recipes" / "medical.yaml"):
        assert path.read_bytes() == shipped_path("medical").read_bytes()
    assert load_recipe(tmp_path / "mine.yaml").name == "mine"
    with pytest.raises(UsageError, match="exists already"):
        copy_recipe("medical", tmp_path / "mine.yaml")


def test_there_are_deepspeed_settings():
    names = {"zero1", "zero2", "zero2-offload", "zero3", "zero3-offload"}
    assert {path.stem for path in SETTINGS} == names


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.stem)
def test_deepspeed_settings_leave_the_rest_to_the_recipe(path):
    settings = json.loads(path.read_text(encoding="utf-8"))
    assert set(settings) == {"zero_optimization", "wall_clock_breakdown"}
    zero = settings["zero_optimization"]
    stage, _, offload = path.stem.removeprefix("zero").partition("-")
    assert zero["stage"] == int(stage)
    assert ("offload_optimizer" in zero) == bool(offload)
    assert ("offload_param" in zero) == (path.stem == "zero3-offload")
    assert load_recipe(shipped_path("medical"), (f"deepspeed={path.stem}",)).deepspeed == path.stem


def test_a_deepspeed_file_of_ones_own(write, tmp_path):
    (tmp_path / "my.json").write_text("{}", encoding="utf-8")
    recipe = load_recipe(write(f"deepspeed: {tmp_path / 'my.json'}"))
    assert recipe.deepspeed == str(tmp_path / "my.json")
