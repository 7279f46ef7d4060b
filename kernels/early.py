"""Programmatic dependent launch: a kernel begins while the one before it ends.

Every kernel of a step waits for the one before it, then says that the next one may begin.  Before it waits it asks for
what no kernel of a step writes, its weights.  So the time to launch it, and part of the time to read the weights,
passes while the kernel before still runs.

What keeps it right:

    A kernel launched so calls `begin` in every program, and before that reads nothing but weights and writes nothing:
    neither what kernels before it wrote, nor what they may still read.
    `begin` returns once the kernel before has ended, all it wrote being there.  That one had waited likewise, or was
    launched as ever, after the end of all before it: so all kernels before have ended.  A single kernel launched so
    that did not wait, in any of its programs, would break this for all that follow.
    Weights were there before the kernel before began: they are loaded long before a step, and a step begins with
    kernels launched as ever.

Kernels launched as ever, and copies, need know nothing of this: they begin when those before them have ended.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

LATE, FREE = 1, 2
"""When the next kernel may begin: after this one has waited; or this one is launched as ever and it may."""
FIRST_WITH = 9, 0
"""The compute capability."""


@triton.jit
def begin(EARLY: tl.constexpr):
    """Wait until what the kernel before wrote can be read, and let the next one begin; 0 is neither."""
    if EARLY == 1:
        tl.extra.cuda.gdc_wait()
    if EARLY == 1 or EARLY == 2:
        tl.extra.cuda.gdc_launch_dependents()


@cache
def can_overlap(device: torch.device) -> bool:
    """Tell whether kernels can be launched so."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FIRST_WITH


def overlapped(device: torch.device, how: int = LATE) -> dict[str, Any]:
    """Return how to launch a kernel that calls `begin`."""
    if not can_overlap(device):
        return {"EARLY": 0}
    return {"EARLY": how, "launch_pdl": how != FREE}
