"""Where launchers say that a process stands."""

import pytest

from adapt.errors import UsageError
from adapt.train.place import Place, find_place, first_node, joined


def test_alone() -> None:
    assert find_place({"PATH": "/bin"}) is None


def test_torchrun_and_deepspeed() -> None:
    environment = {
        "RANK": "3",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "29500",
    }
    assert find_place(environment) == Place(3, 8, 1, "node1", 29500)


def test_srun() -> None:
    environment = {
        "SLURM_PROCID": "9",
        "SLURM_NTASKS": "16",
        "SLURM_LOCALID": "1",
        "SLURM_JOB_NODELIST": "gpu[007-008]",
        "SLURM_JOB_ID": "1234567",
    }
    assert find_place(environment) == Place(9, 16, 1, "gpu007", 24567)
    own = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "6000"}
    assert find_place(environment | own) == Place(9, 16, 1, "10.0.0.1", 6000)


def test_a_single_slurm_task_is_no_rank() -> None:
    assert find_place({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}) is None


@pytest.mark.parametrize("missing", ["LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_a_launcher_is_named(missing: str) -> None:
    environment = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "a",
        "MASTER_PORT": "1",
    }
    del environment[missing]
    with pytest.raises(UsageError, match=f"not {missing}"):
        find_place(environment)


def test_a_number_that_is_none() -> None:
    environment = {"RANK": "first", "WORLD_SIZE": "2"}
    with pytest.raises(UsageError, match="RANK is 'first', expected a number"):
        find_place(environment)
    slurm = {"SLURM_PROCID": "0", "SLURM_JOB_NODELIST": "a", "SLURM_JOB_ID": "1"}
    with pytest.raises(UsageError, match="SLURM_NTASKS is '2x', expected a number"):
        find_place(slurm | {"SLURM_NTASKS": "2x"})
    with pytest.raises(UsageError, match="MASTER_PORT is 'http', expected a number"):
        find_place(slurm | {"SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "MASTER_PORT": "http"})


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with (
        pytest.raises(UsageError, match=r"rank 6 is number 3 on a machine with 2 GPUs"),
        joined(Place(6, 8, 2, "node1", 29500)),
    ):
        pass


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[1-4]", "gpu1"),
        ("gpu[03,07-09],other2", "gpu03"),
        ("rack-a-[12,14]", "rack-a-12"),
    ],
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first
