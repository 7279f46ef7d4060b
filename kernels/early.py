"""Programmatic dependent launch: a kernel begins while the one before it ends.

Every kernel of a step says at once that the next one may begin, asks for what no kernel writes, its weights, and waits
for the one before it.  So it must not read before `wait` what a kernel writes, nor write at all: `wait` returns once
the kernel before has ended, which itself had waited for all kernels before it.

A kernel that is launched with `launch_pdl` waits, in every program.  Others need not know of it: they begin when those
before them have ended.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def let_next_begin(EARLY: tl.constexpr):
    """Let the next kernel begin once all programs of this one have come here, if it is launched so."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait(EARLY: tl.constexpr):
    """Wait until the kernel before has ended and what it wrote can be read."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
