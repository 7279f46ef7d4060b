"""Recording on a CUDA device: what is left over from before does not get into it."""

from __future__ import annotations

import pytest
import torch

from voxtral_pipes.kernels.graphs import Replayed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
CUDA = torch.device("cuda")


def left_in_a_cycle() -> None:
    """Leave a graph and pinned memory that a copy has read where only the collector of cycles finds them."""
    replayed = Replayed(lambda x: 2 * x, to_host=True)
    for _ in range(3):
        replayed(CUDA, torch.ones(7))
    pinned = torch.ones(1 << 20, pin_memory=True)
    held: list[object] = [replayed, pinned, pinned.to(CUDA, non_blocking=True)]
    held.append(held)


def test_what_died_in_a_cycle_does_not_end_a_recording() -> None:
    def busy(x: torch.Tensor) -> torch.Tensor:
        kept = [[i] for i in range(100_000)]  # enough for the collector to look
        return x + len(kept)

    replayed = Replayed(busy, to_host=True)
    first = replayed(CUDA, torch.zeros(3))
    left_in_a_cycle()
    assert torch.equal(replayed(CUDA, torch.zeros(3)), first)
    assert torch.equal(replayed(CUDA, torch.ones(3)), first + 1)
