"""What a graph reads: inputs side by side in bytes, and on the device what they were."""

import gc
from contextlib import nullcontext
from typing import cast

import pytest
import torch

from voxtral_pipes.kernels.graphs import ALIGNED, _Inputs, recording

CPU = torch.device("cpu")


def like(seed):
    generator = torch.Generator().manual_seed(seed)
    real = torch.randn(3, 5, generator=generator)
    return (
        torch.randint(0, 9, (1, 1, 37), generator=generator),
        torch.polar(torch.ones_like(real), real),
        torch.full((1,), seed),
        real.to(torch.bfloat16),
        real > 0,
        real.t(),
        torch.tensor(seed),
    )


@pytest.mark.parametrize("seed", [2, 3])
def test_inputs_of_all_kinds_arrive_as_they_are(seed):
    inputs = _Inputs(CPU, like(1), pinned=False)
    inputs.stage(like(1))
    inputs.stage(like(seed))
    inputs.copy()
    for given, wanted in zip(inputs.given, like(seed), strict=True):
        assert given.dtype == wanted.dtype
        assert torch.equal(given, wanted)
        assert given.is_contiguous()
        assert given.storage_offset() * given.itemsize % ALIGNED == 0


def test_what_is_staged_is_not_seen_before_it_is_copied():
    inputs = _Inputs(CPU, like(1), pinned=False)
    inputs.stage(like(1))
    inputs.copy()
    inputs.stage(like(2))
    assert torch.equal(inputs.given[3], like(1)[3])


@pytest.mark.parametrize("collects", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_cycles_are_not_collected_while_a_graph_is_recorded(monkeypatch, collects, fails):
    """What dies in a cycle may be another graph; the collector is then as it was, whatever happened."""
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **_: nullcontext(graph))
    before = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        with (
            pytest.raises(ZeroDivisionError) if fails else nullcontext(),
            recording(cast(torch.cuda.CUDAGraph, None)),
        ):
            assert not gc.isenabled()
            assert 1 // (not fails)
        assert gc.isenabled() == collects
    finally:
        (gc.enable if before else gc.disable)()
