"""Waiting for input that comes soon, without sleep: to be woken takes longer than to look again and again.

A frame of speech goes to vx-flow and back in 2 ms.  Both commands would sleep in every one of them, and wake on a core
that has slowed down and forgotten what it was at.  No import of numpy or torch.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from voxtral_pipes.cli.edge import Log

LIMIT_S = 0.005
"""The longest time without sleep; input that takes longer is not worth a core."""
FEWEST_CORES = 4
"""With fewer, whoever does not sleep may keep from a core who is waited for."""


class Watch:
    """How a command waits for one descriptor: asleep, and without sleep from `begin` on.

    It watches while the input keeps coming within `LIMIT_S`.  Once it did not, it is waited for asleep until it comes
    as soon again: an idle stream takes no core.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Sleep at first."""
        self._clock = clock
        self._watching = False
        self._soon = True
        self._poll = select.poll()
        self._descriptor = -1

    def begin(self, device: str, log: Log) -> None:
        """Watch where that helps: a stage on the CPU needs the cores itself."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._watching = device == "cuda" and cores >= FEWEST_CORES
        if self._watching:
            log.note(f"looking for input for up to {1000 * LIMIT_S:.0f} ms before sleep")

    def wait(self, descriptor: int) -> None:
        """Return when `descriptor` can be read, or has ended; without `begin`, at once."""
        if not self._watching:
            return
        if descriptor != self._descriptor:
            self._poll, self._descriptor = select.poll(), descriptor
            self._poll.register(descriptor, select.POLLIN)
        began = self._clock()
        come = False
        while self._soon and not come and self._clock() - began < LIMIT_S:
            come = bool(self._poll.poll(0))
        if not come:
            self._poll.poll()
            self._soon = self._clock() - began < LIMIT_S
