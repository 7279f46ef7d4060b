"""Attention of the codec in two launches of Triton: a few queries, each of which sees itself and the window before it.

    q, k, v [T, H D] -> normed over the full width; keys and values behind those held  -> softmax with ALiBi -> [T, H D]

The first launch puts the held keys and the new ones in one row, the second attends and holds the last ones: nothing is
written that another program of the same launch reads.

Equal to, up to rounding: what `models.codec` computes with plain torch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _normed(x, gain, at, there, width, eps):
    """Return one row [BLOCK] of x, RMS normed."""
    row = tl.load(x + at, there, 0.0)
    return row * tl.rsqrt(tl.sum(row * row, 0) / width + eps) * tl.load(gain + at, there, 0.0)


@triton.jit
def _join(
    q, k, v, q_gain, k_gain, held_keys, held_values, asked, keys, values, width, eps, WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (WINDOW + T): a row of keys and values each, the held ones first; of the new ones the queries too."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    there = at < width
    place = row * width + at
    if row < WINDOW:
        tl.store(keys + place, tl.load(held_keys + place, there, 0.0), there)
        tl.store(values + place, tl.load(held_values + place, there, 0.0), there)
    else:
        new = (row - WINDOW) * width
        tl.store(asked + new + at, _normed(q + new, q_gain, at, there, width, eps), there)
        tl.store(keys + place, _normed(k + new, k_gain, at, there, width, eps), there)
        tl.store(values + place, tl.load(v + new + at, there, 0.0), there)


@triton.jit
def _attend(
    asked, keys, values, slopes, mixed, held_keys, held_values, scale, width, STEPS: tl.constexpr,
    WINDOW: tl.constexpr, SEEN: tl.constexpr, HEAD: tl.constexpr, BLOCK_HEAD: tl.constexpr,
):  # fmt: skip
    """Grid (heads, STEPS): one query of one head; its own key is the last of the WINDOW + 1 it sees."""
    head, step = tl.program_id(0), tl.program_id(1)
    at, seen = tl.arange(0, BLOCK_HEAD), tl.arange(0, SEEN)
    inside = at < HEAD
    begin = head * HEAD + at
    there = (seen <= WINDOW)[:, None] & inside[None, :]
    place = (step + seen)[:, None] * width + begin[None, :]
    query = tl.load(asked + step * width + begin, inside, 0.0)
    score = tl.sum(tl.load(keys + place, there, 0.0) * query[None, :], 1) * scale
    score += tl.load(slopes + head) * (seen - WINDOW).to(tl.float32)
    score = tl.where(seen <= WINDOW, score, -float("inf"))
    share = tl.exp(score - tl.max(score, 0))
    total = tl.sum(share[:, None] * tl.load(values + place, there, 0.0), 0) / tl.sum(share, 0)
    tl.store(mixed + step * width + begin, total, inside)
    for number in range(step, WINDOW, STEPS):
        last = (STEPS + number) * width + begin
        tl.store(held_keys + number * width + begin, tl.load(keys + last, inside, 0.0), inside)
        tl.store(held_values + number * width + begin, tl.load(values + last, inside, 0.0), inside)


def attend_window(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gains: tuple[Tensor, Tensor],
    eps: float,
    slopes: Tensor,
    held_keys: Tensor,
    held_values: Tensor,
) -> Tensor:
    """Attend with the next rows: q, k and v [T, H D], `gains` of the norms of q and k [H D], slopes [H] -> [T, H D].

    `held_keys`, normed, and `held_values`, [W, H D], are those of the W positions before; they are replaced by the last
    W.  All float32, contiguous, on one CUDA device.
    """
    steps, width = q.shape
    window, heads = held_keys.shape[0], slopes.shape[0]
    head_dim = width // heads
    asked, mixed = torch.empty_like(q), torch.empty_like(q)
    keys, values = (torch.empty(window + steps, width, device=q.device) for _ in range(2))
    _join[(window + steps,)](
        q, k, v, *gains, held_keys, held_values, asked, keys, values, width, eps, WINDOW=window,
        BLOCK=triton.next_power_of_2(width), num_warps=4,
    )  # fmt: skip
    _attend[(heads, steps)](
        asked, keys, values, slopes, mixed, held_keys, held_values, head_dim**-0.5, width, STEPS=steps, WINDOW=window,
        SEEN=triton.next_power_of_2(window + 1), HEAD=head_dim, BLOCK_HEAD=triton.next_power_of_2(head_dim),
        num_warps=4,
    )  # fmt: skip
    return mixed
