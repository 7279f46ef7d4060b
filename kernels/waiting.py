"""How the threads of a process wait for one another, which torch's OpenMP reads from the environment when it is loaded.

No import of torch: this comes before.
"""

from __future__ import annotations

import os

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SPINS = "1000"
"""Some microseconds.  GOMP's own choice is milliseconds, which is faster by a few percent where a process is alone; the
processes of a pipe keep each other from the cores meanwhile, and then take several times as long."""


def wait_briefly() -> None:
    """Have threads sleep soon where they wait, unless the user has chosen."""
    if not any(name in os.environ for name in VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = SPINS


def describe() -> str:
    """Say how threads wait."""
    chosen = " ".join(f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ)
    return f"waiting by {chosen or 'the default of OpenMP'}"
