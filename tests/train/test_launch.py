"""`adapt train` before any rank starts, and under somebody else's launcher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from folders import tree

from adapt.errors import UsageError
from adapt.one_writer import one_writer
from adapt.train.launch import run_train


def torchrun(recipe: Path, *options: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*launcher, "-m", "adapt", "train", str(recipe), *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_torchrun_trains_and_leaves_a_finished_run_alone(recipe: Path) -> None:
    options = ("--set", "method=lora", "--set", "lora.rank=4", "--set", "max_steps=2")
    done = torchrun(recipe, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "trained model: runs/colours/model"
    before = tree(Path("runs/colours"))
    assert "adapter/adapter_model.safetensors" in before
    again = torchrun(recipe, *options, "--resume")
    assert again.returncode == 0, again.stderr
    assert "finished already; its model is runs/colours/model" in again.stdout
    assert tree(Path("runs/colours")) == before


def test_torch_s_threads_sleep_while_they_wait(recipe: Path) -> None:
    """What OpenMP prints when it starts is what it really goes by."""
    for command in (["train", str(recipe), "--nproc", "0"], ["predict", "no.jsonl"]):
        model = ["--model", "tiny", "--out", "o.jsonl"] if command[0] == "predict" else []
        done = subprocess.run(
            [sys.executable, "-c", PROBE, *command, *model],
            env={k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.splitlines()[-1] == "2 PASSIVE False", done.stderr


PROBE = """
import os, sys
from adapt.cli import run
from adapt import threads

policy = threads.wait_politely
def seen():
    policy()
    seen.torch_there = "torch" in sys.modules
import adapt.predict, adapt.train.launch
adapt.predict.wait_politely = adapt.train.launch.wait_politely = seen
status = run(sys.argv[1:])
print(status, os.environ["OMP_WAIT_POLICY"], seen.torch_there)
"""


def test_two_runs_do_not_write_one_folder(recipe: Path) -> None:
    with (
        one_writer(Path("runs/colours/.lock"), busy=None),
        pytest.raises(UsageError, match=r"runs/colours: another adapt train runs here; wait for"),
    ):
        run_train(recipe)
    assert not Path("runs").exists()


def test_more_processes_than_gpus_are_refused(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UsageError) as caught:
        run_train(recipe, nproc=3)
    assert str(caught.value) == ("--nproc 3: this machine has 2 GPUs, a process takes one each")
    assert not Path("runs").exists()
