"""The speed and the likeness of mosaics, as `benchmarks/mosaic.py` measures them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from adapt.workers import cpu_count

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "mosaic.py"
FRAMES = 160


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_mosaics", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(cpu_count() < 2, reason="the aim is for two cores")
def test_half_the_aim_is_met(benchmark: ModuleType, tmp_path: Path) -> None:
    raw = benchmark.SAMPLE if benchmark.SAMPLE.is_dir() else benchmark.synthetic_frames(tmp_path)
    found = benchmark.measure(raw, frames=FRAMES, rounds=2, workers=2)
    assert found["psnr_db_min"] >= benchmark.AIM_PSNR_DB
    # Beside much other work two processes get no two cores: the clock says nothing then.
    busy = found["load_average_1min"] > 2 * cpu_count()
    assert found["ratio_by_cpu_time" if busy else "ratio"] >= benchmark.AIM_RATIO / 2
