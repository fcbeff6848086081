"""How torch's threads wait for each other on a CPU.

By default they spin, each holding its core. Beside threads that read pictures, or other programs,
that costs most of the machine: ten times the seconds a step, measured on two busy cores.
"""

import os


def wait_politely() -> None:
    """Let idle OpenMP threads sleep; call it before torch is imported, or it does nothing."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
