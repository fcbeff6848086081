"""Whole runs of `adapt train` with the tiny model on the CPU."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from adapt.cli import run
from adapt.errors import (
    CheckFailed,
    CheckpointError,
    EnvironmentFault,
    RecipeError,
    RecordError,
    SourceError,
    UsageError,
)
from adapt.models.handle import open_model
from adapt.train.engine import Engine
from adapt.train.launch import run_train
from adapt.train.run_state import find_latest, read_state


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without what depends on the clock."""
    timed = ("s", "tokens_per_s")
    lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    rows = [msgspec.json.decode(line) for line in lines]
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


def start(recipe: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "adapt", "train", str(recipe), *options]
    # As many threads as in this process: their number decides the last bits of a sum.
    threads = str(torch.get_num_threads())
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": threads})


def wait_for_step(process: subprocess.Popen[bytes], folder: Path, step: int) -> None:
    while not (folder / "metrics.jsonl").exists() or len(read_whole_lines(folder)) < step:
        assert process.poll() is None, "the run ended before it could be stopped"
        time.sleep(0.005)


def read_whole_lines(folder: Path) -> list[bytes]:
    return (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]


def test_a_run_stopped_and_killed_ends_as_one_that_never_was(
    recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ("max_steps=20", "drop_path=0.3")
    run_train(recipe, (*options, "out=whole"))
    expected = read_metrics(Path("whole"))
    assert [row["step"] for row in expected] == list(range(1, 21))
    # Sampled records are learned: the run goes somewhere.
    assert expected[-1]["loss"] < expected[0]["loss"] * 0.7

    broken = ("--set", "max_steps=20", "--set", "drop_path=0.3", "--set", "out=broken")
    terminated = start(recipe, *broken)
    wait_for_step(terminated, Path("broken"), 5)
    terminated.send_signal(signal.SIGTERM)
    assert terminated.wait() == 143
    stopped_at = len(read_whole_lines(Path("broken")))
    latest = find_latest(Path("broken/checkpoints"))
    assert latest == Path(f"broken/checkpoints/step-{stopped_at}")
    assert "terminated; --resume goes on with it" in capfd.readouterr().err

    killed = start(recipe, *broken, "--resume")
    wait_for_step(killed, Path("broken"), stopped_at + 2)
    killed.kill()
    killed.wait()
    assert not Path("broken/model").exists()

    run_train(recipe, (*options, "out=broken"), resume=True)
    assert read_metrics(Path("broken")) == expected
    weights = [load_file(Path(run) / "model/model.safetensors") for run in ("whole", "broken")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_a_run_leaves(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_train(recipe)
    folder = Path("runs/colours")
    printed = capfd.readouterr().out
    assert "runs/colours: 30 records in 15 packs; model tiny, method full, zero2, fp32" in printed
    assert "packing: two records in a pack equal the same apart" in printed
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "checkpoints",
        "metrics.jsonl",
        "model",
        "plan",
        "recipe.yaml",
        "tensorboard",
        "versions.json",
    ]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "latest",
        "step-12",
        "step-8",
    ]
    files = {path.name for path in (folder / "checkpoints" / "step-12").rglob("*")}
    assert {"state.json", "model.safetensors", "config.json", "adapt.json"} <= files
    assert not [name for name in files if name.endswith(".py")]
    state = read_state(folder / "checkpoints" / "step-12")
    assert (state.step, state.epoch, state.pack, state.ranks) == (12, 1, 8, 1)
    card = (folder / "README.md").read_text()
    assert "| colours | domain | - | 24 | 80.0% |" in card
    assert "12 steps" in card
    # As its own users open it.
    handle = open_model(str(folder))
    model = handle.load(torch.float32)
    assert handle.preset is not None
    assert (handle.preset.name, handle.template.name) == ("tiny", "internvl2_5")
    saved = open_model(str(folder / "checkpoints" / "step-12")).load(torch.float32).state_dict()
    untrained = open_model("tiny").load(torch.float32, seed=42).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(saved[name], value)
        assert not torch.equal(untrained[name], value)

    capfd.readouterr()
    run_train(recipe, resume=True)
    assert "runs/colours: finished already" in capfd.readouterr().out
    with pytest.raises(UsageError, match=r"holds a run already; --resume"):
        run_train(recipe)


# peft asks transformers by an older name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_lora_leaves_an_adapter_and_a_merged_model(recipe: Path) -> None:
    options = ("method=lora", "lora.rank=4", "deepspeed=zero3", "max_steps=3", "save_every=2")
    run_train(recipe, options)
    folder = Path("runs/colours")
    import peft

    handle = open_model("tiny")
    base = handle.load(torch.float32, seed=42)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    tuned = peft.PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
    merged = open_model(str(folder)).load(torch.float32).state_dict()
    assert all(torch.equal(merged[name], value) for name, value in tuned.state_dict().items())
    changed = {name for name, value in merged.items() if not torch.equal(value, before[name])}
    assert changed
    assert all("language_model.layers" in name and "_proj" in name for name in changed)
    step = load_file(folder / "checkpoints/step-2/adapter/adapter_model.safetensors")
    last = load_file(folder / "adapter/adapter_model.safetensors")
    assert step.keys() == last.keys()
    assert any(not torch.equal(step[name], last[name]) for name in step)
    assert not (folder / "checkpoints/step-2/model").exists()
    assert sorted(path.name for path in (folder / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_two_processes_make_the_run_of_one(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Packs of a step: 1 rank x 4 and 2 ranks x 2; 15 packs, so the last step of an epoch lacks one.
    # ZeRO-3 that shards every parameter, however small.
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "overlap_comm": False}
    Path("sharded.json").write_text(json.dumps({"zero_optimization": zero}))
    options = ("max_steps=6", "drop_path=0.0", "deepspeed=sharded.json")
    run_train(recipe, (*options, "gradient_accumulation=4", "out=one"))
    run_train(recipe, (*options, "gradient_accumulation=2", "out=two"), nproc=2)
    one, two = read_metrics(Path("one")), read_metrics(Path("two"))
    for name in ("loss", "grad_norm"):
        expected = pytest.approx([row.pop(name) for row in one], rel=1e-3)
        assert [row.pop(name) for row in two] == expected
    assert one == two
    assert "trained model: two/model" in capfd.readouterr().out
    weights = [load_file(Path(run) / "model/model.safetensors") for run in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-4, rtol=1e-3)
    state = Path("two/checkpoints/step-6/deepspeed")
    assert len(list(state.glob("*optim_states.pt"))) == 2

    with pytest.raises(RecipeError, match=r"cannot resume.*max_steps was 6, is 8"):
        run_train(recipe, (*options, "max_steps=8", "out=two"), resume=True)
    with pytest.raises(RecipeError, match=r"gradient_accumulation was 2, is 4"):
        run_train(recipe, (*options, "gradient_accumulation=4", "out=two"), resume=True)
    # Not finished, as if killed while writing the model: only as many processes may go on.
    Path("two/model").rename("elsewhere")
    with pytest.raises(UsageError, match=r"written by 2 processes, now there are 1.*--nproc 2"):
        run_train(recipe, (*options, "out=two"), resume=True)


def test_a_killed_rank_ends_the_run_with_status_4(recipe: Path) -> None:
    import psutil

    process = start(recipe, "--nproc", "2", "--set", "max_steps=100000")
    wait_for_step(process, Path("runs/colours"), 1)
    ranks = psutil.Process(process.pid).children()
    assert len(ranks) == 2
    ranks[1].kill()
    assert process.wait() == 4
    assert not any(rank.is_running() for rank in ranks)


def test_unreadable_pictures(recipe: Path) -> None:
    (recipe.parent / "colours/images/red.png").write_bytes(b"no picture")
    with pytest.raises(RecordError, match=r"colours/train/\d+.*red\.png"):
        run_train(recipe, ("max_steps=2",))
    with pytest.raises(RecordError, match=r"records cannot be read, max_unreadable is 3"):
        run_train(recipe, ("max_steps=12", "max_unreadable=3"))
    run_train(recipe, ("max_steps=12", "max_unreadable=20", "out=bad", "save_every=5"))
    lines = Path("bad/unreadable.jsonl").read_bytes().splitlines()
    lost = [msgspec.json.decode(line) for line in lines]
    # Each record once, though the run goes over the mix one and a half times.
    assert len({row["mix_index"] for row in lost}) == len(lost) > 3
    assert all(row["id"].startswith("colours/train/") and "red.png" in row["why"] for row in lost)
    state = read_state(Path("bad/checkpoints/step-12"))
    assert state.lost == tuple(sorted(row["mix_index"] for row in lost))
    assert f"left out: {len(lost)}" in Path("bad/README.md").read_text()


def test_packing_is_proved_with_records_that_can_be_read(
    recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # The picture of the shortest record, which would have been chosen.
    (recipe.parent / "colours/images/green.png").unlink()
    with pytest.raises(RecordError, match=r"colours/train/1 .*green\.png: no such file"):
        run_train(recipe, ("max_steps=1",))
    capfd.readouterr()
    run_train(recipe, ("max_steps=1", "max_unreadable=30", "out=some"))
    assert "packing: two records in a pack equal the same apart" in capfd.readouterr().out
    for path in (recipe.parent / "colours/images").iterdir():
        path.unlink()
    for path in (recipe.parent / "chat/images").iterdir():
        path.unlink()
    with pytest.raises(RecordError, match=r"no such file"):
        run_train(recipe, ("max_steps=1", "max_unreadable=3", "out=none"))


def test_planning_again_keeps_the_plan_of_a_run_that_has_begun(
    recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", str(recipe)]) == 0
    run_train(recipe, ("max_steps=1",))
    plan = Path("runs/colours/plan/plan.parquet")
    before = plan.read_bytes()
    assert run(["plan", str(recipe), "--set", "max_steps=1"]) == 0
    other = ["plan", str(recipe), "--set", "max_pack_tokens=300", "--set", "max_record_tokens=300"]
    capfd.readouterr()
    assert run(other) == 2
    assert capfd.readouterr().err.splitlines()[-1] == (
        "adapt: runs/colours/plan/plan.parquet: is the plan of a run that has begun, and another "
        "than this one; not written: --out FOLDER writes this one elsewhere"
    )
    assert plan.read_bytes() == before
    assert run([*other, "--out", "elsewhere"]) == 0
    plan.write_bytes(b"damaged")
    assert run(other) == 0


def test_a_full_disk_is_one_line_and_leaves_no_half_checkpoint(recipe: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Enough for the plan and the metrics, not for a checkpoint.
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(EnvironmentFault, match=r"step-1: .*the disk is full"):
            run_train(recipe, ("max_steps=2", "save_every=1", "tensorboard=false"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(Path("runs/colours/checkpoints").iterdir()) == []
    run_train(recipe, ("max_steps=2", "save_every=1", "tensorboard=false"), resume=True)
    names = sorted(path.name for path in Path("runs/colours/checkpoints").iterdir())
    assert names == ["latest", "step-1", "step-2"]


def test_resuming_checks_what_changed(recipe: Path, mix: Path) -> None:
    short = ("max_steps=2", "save_every=1")
    run_train(recipe, short)
    folder = Path("runs/colours")
    (folder / "model").rename("elsewhere")
    # What changes no step may change.
    run_train(recipe, (*short, "log_every=2", "keep_checkpoints=1"), resume=True)
    (folder / "model").rename("elsewhere2")
    index = mix / "mix.json"
    before = index.read_bytes()
    from adapt.mix import MixOptions, run_mix

    sets = {"domain": (Path("colours"),), "general": (Path("chat"),)}
    run_mix(MixOptions(ratio="6:24", seed=7, out=mix, **sets))
    assert index.read_bytes() != before
    with pytest.raises(RecipeError, match="its plan was made for another mix"):
        run_train(recipe, short, resume=True)
    (folder / "recipe.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"recipe\.yaml: is gone"):
        run_train(recipe, short, resume=True)


def at_fifth_pack(factor: Callable[[], float]) -> Callable[..., Any]:
    """Return `Engine.accumulate`, the loss of the fifth pack multiplied by what `factor` gives."""
    right, calls = Engine.accumulate, []

    def accumulate(self, pack, **options):
        calls.append(pack)
        return right(self, pack, **options) * (factor() if len(calls) == 5 else 1.0)

    return accumulate


def test_a_loss_that_is_no_number_stops_the_run(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "accumulate", at_fifth_pack(lambda: float("nan")))
    with pytest.raises(CheckFailed, match=r"step 3: the loss is nan; lower learning_rate"):
        run_train(recipe)
    assert [row["step"] for row in read_metrics(Path("runs/colours"))] == [1, 2]


def test_a_checkpoint_kept_by_hand_stays_and_what_a_kill_left_goes(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> float:
        raise CheckFailed("stopped here")

    options = ("max_steps=4", "save_every=1", "keep_checkpoints=1")
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "accumulate", at_fifth_pack(stop))
        with pytest.raises(CheckFailed, match="stopped here"):
            run_train(recipe, options)
    folder = Path("runs/colours/checkpoints")
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-2"]
    for name in ("step-2-best", ".step-1.old", ".step-3.tmp"):
        (folder / name).mkdir()
        (folder / name / "file").write_text("")
    run_train(recipe, options, resume=True)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["latest", "step-2-best", "step-4"]


def test_records_of_the_same_size_but_other_words_are_noticed(
    recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = recipe.parent / "colours" / "train.jsonl"
    text = path.read_text()
    path.write_text(text.replace("red", "den"))
    assert path.read_text() != text
    for command in ("plan", "train"):
        assert run([command, str(recipe)]) == 2
        assert capfd.readouterr().err == (
            "adapt: mix/../colours/train.jsonl: has changed since the mix was made; "
            "run adapt mix again\n"
        )
    assert not Path("runs/colours/plan").exists()


def test_a_recipe_for_another_domain_says_so_and_goes_on(
    recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = recipe.parent / "mix" / "mix.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"domain": ""', '"domain": "medical"'))
    assert manifest.read_text() != text
    run_train(recipe, ("max_steps=1", "domains=[driving]"))
    printed = capfd.readouterr().out
    assert (
        "note: the mix holds medical, recipe colours is for driving; recipes for medical: medical. "
        "Going on with colours."
    ) in printed
    assert "trained model" in printed


def test_mistakes(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SourceError, match=r"nowhere: holds no mix \(mix\.json\); adapt mix"):
        run_train(recipe, ("mix=nowhere",))
    with pytest.raises(UsageError, match="tiny"):
        run_train(recipe, ("model=tinyy",))
    with pytest.raises(EnvironmentFault, match=r"qlora needs a CUDA device"):
        run_train(recipe, ("method=qlora",))
    Path("taken").write_text("")
    with pytest.raises(UsageError, match="taken: is a file"):
        run_train(recipe, ("out=taken",))
    for count in (0, -3):
        with pytest.raises(UsageError, match=rf"--nproc {count}: expected at least 1"):
            run_train(recipe, nproc=count)
    Path("own.json").write_text('{"zero_optimisation": {"stage": 2}}')
    with pytest.raises(RecipeError, match=r"own\.json: zero_optimization is None"):
        run_train(recipe, ("deepspeed=own.json", "out=own"))
    assert not Path("own").exists()
    assert run(["train", "nosuch.yaml"]) == 2
    assert "Traceback" not in capfd.readouterr().err


def test_a_launcher_of_ones_own_and_nproc_exclude_each_other(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29400")
    with pytest.raises(UsageError, match="leave --nproc out"):
        run_train(recipe, nproc=2)
    run_train(recipe, ("max_steps=1",))
    assert Path("runs/colours/model").exists()
