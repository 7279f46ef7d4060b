"""What greedy decoding needs to know of the logits, in one launch of Triton: five numbers instead of a vocabulary.

Equal to `reference.choose`, the sum of exponentials up to rounding; of equal logits the lowest id.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from voxtral_pipes.kernels.rows import tickets

PARTS = 64
BLOCK = 1024


@triton.jit
def _choose(
    logits, chosen, tops, sums, bests, ids, counters, size, apart, PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (rows, PARTS): each program reads a part of a row, and the last one puts the parts together."""
    row, part = tl.program_id(0), tl.program_id(1)
    length = tl.cdiv(tl.cdiv(size, PARTS), BLOCK) * BLOCK
    end = tl.minimum(part * length + length, size)
    top = -float("inf")
    total = 0.0
    best = -float("inf")
    best_id = size
    for start in range(part * length, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        held = tl.load(logits + row.to(tl.int64) * size + at, at < end, -float("inf"))
        higher = tl.maximum(top, tl.max(held, 0))
        safe = tl.where(higher == -float("inf"), 0.0, higher)
        total = total * tl.exp(top - safe) + tl.sum(tl.exp(held - safe), 0)
        top = higher
        held = tl.where(at == apart, -float("inf"), held)
        here = tl.max(held, 0)
        lowest = tl.min(tl.where(held == here, at, size), 0)
        best_id = tl.where(here > best, lowest, best_id)
        best = tl.maximum(best, here)
    place = row * PARTS + part
    tl.store(tops + place, top)
    tl.store(sums + place, total)
    tl.store(bests + place, best)
    tl.store(ids + place, best_id)
    tl.debug_barrier()
    if tl.atomic_add(counters + row, 1) == PARTS - 1:
        every = row * PARTS + tl.arange(0, PARTS)
        all_tops = tl.load(tops + every, cache_modifier=".cg")
        all_bests = tl.load(bests + every, cache_modifier=".cg")
        top = tl.max(all_tops, 0)
        safe = tl.where(top == -float("inf"), 0.0, top)
        total = tl.sum(tl.load(sums + every, cache_modifier=".cg") * tl.exp(all_tops - safe), 0)
        best = tl.max(all_bests, 0)
        numbers = tl.load(ids + every, cache_modifier=".cg")
        best_id = tl.min(tl.where(all_bests == best, numbers, size), 0)
        tl.store(chosen + 5 * row, best_id)
        tl.store(chosen + 5 * row + 1, best.to(tl.int32, bitcast=True))
        beside = tl.load(logits + row.to(tl.int64) * size + apart)
        tl.store(chosen + 5 * row + 2, beside.to(tl.int32, bitcast=True))
        tl.store(chosen + 5 * row + 3, (tl.log(total) + top).to(tl.int32, bitcast=True))
        tl.store(chosen + 5 * row + 4, tl.where(beside >= best, apart, best_id))
        tl.store(counters + row, 0)


def choose(logits: Tensor, apart: int) -> Tensor:
    """Return int32 [B, 5] of logits float32 [B, M]: see `reference.choose`."""
    rows, size = logits.shape
    chosen = torch.empty(rows, 5, device=logits.device, dtype=torch.int32)
    tops, sums, bests = torch.empty(3, rows, PARTS, device=logits.device)
    ids = torch.empty(rows, PARTS, device=logits.device, dtype=torch.int32)
    _choose[(rows, PARTS)](
        logits.contiguous(), chosen, tops, sums, bests, ids, tickets(logits.device), size,
        apart, PARTS=PARTS, BLOCK=BLOCK,
    )  # fmt: skip
    return chosen
