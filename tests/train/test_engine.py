"""The engine under DeepSpeed on the CPU: every ZeRO stage, one and two processes, against torch."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from adapt.errors import EnvironmentFault, RecipeError
from adapt.models.chat import UNSUPERVISED
from adapt.models.freeze import freeze
from adapt.models.handle import open_model
from adapt.quiet import quiet_training
from adapt.train.engine import build_engine, load_quantised
from adapt.train.optimizer import deepspeed_config, make_optimizer, refusals_named
from adapt.train.packed_model import normalise
from adapt.train.place import Place, joined

SCRIPT = Path(__file__).with_name("engine_cases.py")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def load_script():
    spec = importlib.util.spec_from_file_location("engine_cases", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cases = load_script()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    cases.write_sharded(folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, dict]:
    return cases.run_cases(Place(), folder)


@pytest.fixture(scope="module")
def together(folder: Path) -> dict[str, dict]:
    out = folder / "two.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(SCRIPT), str(out), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def train_plainly(method: str) -> dict:
    """Make the same steps with torch alone: whole logits, no DeepSpeed, no chunks."""
    handle = open_model("tiny")
    recipe = cases.make_recipe(method, "zero1", accumulation=4)
    model = handle.load(torch.float32, seed=recipe.seed)
    freeze(model, method)
    optimizer = make_optimizer(model, recipe)
    packs = cases.make_packs(handle)
    weight = sum(pack.weights.sum() for pack in packs)
    losses, norms = [], []
    for _ in range(cases.STEPS):
        total = torch.zeros(())
        for pack in packs:
            logits = model(
                input_ids=pack.input_ids,
                position_ids=pack.position_ids,
                pixel_values=normalise(pack.tiles, torch.float32),
                use_cache=False,
            ).logits[0]
            labels = torch.full_like(pack.input_ids[0], UNSUPERVISED)
            labels[pack.rows] = pack.targets
            each = functional.cross_entropy(logits, labels, reduction="none")
            weights = torch.zeros(len(labels)).index_put_((pack.rows,), pack.weights)
            loss = (each * weights).sum() / weight
            loss.backward()
            total += loss.detach()
        trained = [p for p in model.parameters() if p.requires_grad]
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, recipe.max_grad_norm)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(total))
    norms_of = {name: value.double().norm().item() for name, value in model.named_parameters()}
    return {"losses": losses, "norms": norms, "weights": norms_of}


def assert_same(found: dict, expected: dict) -> None:
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    assert found["norms"] == pytest.approx(expected["norms"], rel=1e-4)
    assert found["weights"] == pytest.approx(expected["weights"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("method", ["full", "freeze-vit"])
def test_a_step_is_what_torch_alone_makes_of_it(alone: dict, method: str) -> None:
    expected = train_plainly(method)
    names = [name for name, (_, used) in cases.CASES.items() if used == method]
    assert names
    for name in names:
        assert_same(alone[name], expected)


def test_freezing_keeps_the_vision_tower(alone: dict) -> None:
    handle = open_model("tiny")
    before = handle.load(torch.float32, seed=42).named_parameters()
    kept = {name: value.double().norm().item() for name, value in before if "vision_tower" in name}
    after = alone["freeze-vit"]["weights"]
    assert kept
    assert {name: after[name] for name in kept} == kept


def test_lora_trains_adapters_alone_and_alike_in_both_stages(alone: dict) -> None:
    assert all("lora_" in name for name in alone["lora"]["weights"])
    # B begins at zero: that it is not shows a step.
    assert min(v for k, v in alone["lora"]["weights"].items() if "lora_B" in k) > 0
    assert_same(alone["zero3 lora"], alone["lora"])


@pytest.mark.parametrize("name", cases.CASES)
def test_two_ranks_make_the_step_of_one(alone: dict, together: dict, name: str) -> None:
    assert_same(together[name], alone[name])


def test_qlora_says_what_it_lacks() -> None:
    if torch.cuda.is_available():
        pytest.skip("the machine has what qlora needs")
    with pytest.raises(EnvironmentFault, match=r"a CUDA device.*method=lora"):
        load_quantised(open_model("tiny"), torch.device("cpu"))


def test_a_deepspeed_file_may_not_contradict_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"gradient_clipping": 3.0, "zero_optimization": {"stage": 1}}')
    recipe = cases.make_recipe("full", str(file), accumulation=1)
    with pytest.raises(RecipeError, match=r"sets gradient_clipping.*max_grad_norm"):
        deepspeed_config(recipe, trained=10)


def test_a_deepspeed_file_is_filled_in(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    zero = {"stage": 2, "reduce_bucket_size": 500, "allgather_bucket_size": 5}
    open_keys = {
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": False},
        "train_batch_size": "auto",
    }
    file.write_text(json.dumps({**open_keys, "zero_optimization": zero}))
    assert deepspeed_config(cases.make_recipe("full", str(file), accumulation=3), trained=10) == {
        "zero_optimization": {
            "stage": 2,
            "reduce_bucket_size": 10,
            "allgather_bucket_size": 5,
        },
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 3,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": False},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, 'zero_optimization is None, expected an object such as {"stage": 2}'),
        ({"zero_optimisation": {"stage": 2}}, "zero_optimization is None, expected an object"),
        ({"zero_optimization": 3}, "zero_optimization is 3, expected an object"),
        ({"zero_optimization": {}}, "zero_optimization.stage is None, expected 1, 2 or 3"),
        (
            {"zero_optimization": {"stage": "auto"}},
            "zero_optimization.stage is None, expected 1, 2 or 3",
        ),
        ({"zero_optimization": {"stage": 0}}, "zero_optimization.stage is 0, expected 1, 2 or 3"),
        (
            {"zero_optimization": {"stage": True}},
            "zero_optimization.stage is True, expected 1, 2 or 3",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}},
            "zero_optimization.offload_optimizer is 'cpu', expected an object such as "
            '{"device": "cpu"}',
        ),
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket_size": "big"}},
            "zero_optimization.reduce_bucket_size is 'big', expected a number",
        ),
    ],
)
def test_a_deepspeed_file_needs_a_stage(tmp_path: Path, settings: dict, message: str) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(settings))
    recipe = cases.make_recipe("full", str(file), accumulation=1)
    with pytest.raises(RecipeError) as caught:
        deepspeed_config(recipe, trained=10)
    assert str(caught.value).startswith(f"{file}: {message}")


def test_what_a_deepspeed_file_leaves_open_is_deepspeeds(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    zero = {"stage": 2, "reduce_bucket_size": "auto", "allgather_bucket_size": 5e8}
    file.write_text(json.dumps({"zero_optimization": {**zero, "offload_optimizer": None}}))
    config = deepspeed_config(cases.make_recipe("full", str(file), accumulation=1), trained=10)
    assert config["zero_optimization"] == {"stage": 2, "allgather_bucket_size": 10}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zero_optimization": {"stage": 2, "stagee": 1}}, "stagee: extra inputs are not"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "gpu"}}},
            "offload_optimizer.device: input should be 'none', 'cpu' or 'nvme'",
        ),
        (
            {"zero_optimization": {"stage": 1}, "communication_data_type": "int3"},
            "Invalid communication_data_type",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            '"nvme_path" in DeepSpeed Config cannot be None',
        ),
    ],
)
def test_what_deepspeed_refuses_is_one_line(tmp_path: Path, settings: dict, message: str) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(settings))
    recipe = cases.make_recipe("full", str(file), accumulation=1)
    with (
        joined(Place()) as device,
        quiet_training(),
        pytest.raises(RecipeError) as caught,
    ):
        build_engine(open_model("tiny"), recipe, device)
    assert str(caught.value).startswith(f"{file}: DeepSpeed refuses it: {message}")
    assert "\n" not in str(caught.value)


def test_a_failure_that_is_not_the_files_stays_what_it_is() -> None:
    recipe = cases.make_recipe("full", "zero1", accumulation=1)
    with pytest.raises(ValueError, match="a bug"), refusals_named(recipe):
        raise ValueError("a bug")
