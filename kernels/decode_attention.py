"""A few positions of one stream's attention, in Triton: from the residual stream to the mixed heads.

    1  norm, the three projections, rotation, and the write into the ring of keys and values: one launch for one
       position (`attend_one`), three for up to 16 (`attend_few`)
    2  attention of each group of heads over the parts of the ring, put together by the last program to end

Position and length are read on the device, so that one CUDA graph serves every position.  Equal to, up to rounding:
`reference.rms_norm`, `linear`, `rotate`, the ring's write and `attention` with its mask.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from voxtral_pipes.kernels import q4_tiles
from voxtral_pipes.kernels.early import FREE, begin, overlapped
from voxtral_pipes.kernels.packed import Q4CudaWeight, Q4TileWeight
from voxtral_pipes.kernels.q4_tiles import NormRows
from voxtral_pipes.kernels.rows import (
    MAX_ROWS,
    few_rows,
    norm_rows,
    one_row,
    operands,
    row_settings,
    rows_settings,
    tickets,
)

PARTS = 16
"""Of the ring, for each group of heads; with 8 groups that is a program for nearly every multiprocessor."""
BLOCK_KEYS = 32
BLOCK_PAIRS = 64

Matrix = Tensor | Q4CudaWeight | Q4TileWeight
Projections = tuple[Matrix, Matrix, Matrix]
"""Of q, k and v, [H D, N] and [Hkv D, N], all of one kind."""


@triton.jit
def _project(
    x, gain, wq, wk, wv, sq, sk, sv, turn, q, keys, values, position, n_q, n_kv, n_in, capacity, eps,
    HEAD: tl.constexpr, PACKED: tl.constexpr, EARLY: tl.constexpr, CHUNKS: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Each program makes a block of the outputs of one projection: whole pairs, all of one head."""
    program = tl.program_id(0)
    q_blocks, kv_blocks = n_q // BLOCK_OUT, n_kv // BLOCK_OUT
    if program < q_blocks:
        weight, scales, first, n_out = wq, sq, program * BLOCK_OUT, n_q
    elif program < q_blocks + kv_blocks:
        weight, scales, first, n_out = wk, sk, (program - q_blocks) * BLOCK_OUT, n_kv
    else:
        weight, scales, first, n_out = wv, sv, (program - q_blocks - kv_blocks) * BLOCK_OUT, n_kv
    total = one_row(
        x, gain, weight, scales, weight, scales, first, n_out, n_in, eps, PACKED, True, False, EARLY,
        CHUNKS, WHOLE, BLOCK_OUT, BLOCK_IN,
    )  # fmt: skip
    if program < q_blocks + kv_blocks:
        pair = (first % HEAD) // 2 + tl.arange(0, BLOCK_OUT // 2)
        cos, sin = tl.load(turn + 2 * pair), tl.load(turn + 2 * pair + 1)
        even, odd = tl.split(tl.reshape(total, [BLOCK_OUT // 2, 2]))
        total = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), [BLOCK_OUT])
    here = first + tl.arange(0, BLOCK_OUT)
    slot = tl.load(position) % capacity
    place = (here // HEAD).to(tl.int64) * capacity * HEAD + slot * HEAD + here % HEAD
    if program < q_blocks:
        tl.store(q + here, total)
    elif program < q_blocks + kv_blocks:
        tl.store(keys + place, total)
    else:
        tl.store(values + place, total)


@triton.jit
def _three_products(
    x, wq, wk, wv, bq, bk, bv, y, n_q, n_kv, n_in, rows, BIAS_Q: tl.constexpr, BIAS_K: tl.constexpr,
    BIAS_V: tl.constexpr, ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Grid: tiles of all three; y is [rows, n_q + 2 n_kv]."""
    program = tl.program_id(0)
    q_blocks, kv_blocks = tl.cdiv(n_q, BLOCK_OUT), tl.cdiv(n_kv, BLOCK_OUT)
    if program < q_blocks:
        weight, first, n_out, before = wq, program * BLOCK_OUT, n_q, 0
    elif program < q_blocks + kv_blocks:
        weight, first, n_out, before = wk, (program - q_blocks) * BLOCK_OUT, n_kv, n_q
    else:
        first, before = (program - q_blocks - kv_blocks) * BLOCK_OUT, n_q + n_kv
        weight, n_out = wv, n_kv
    total = few_rows(x, weight, weight, first, n_out, n_in, rows, False, ROWS, BLOCK_OUT, BLOCK_IN)
    row, out = tl.arange(0, ROWS)[:, None], first + tl.arange(0, BLOCK_OUT)[None, :]
    column, inside = before + out, out < n_out
    if BIAS_Q:
        total += tl.load(bq + out, inside & (column < n_q), 0.0).to(tl.float32)
    if BIAS_K:
        total += tl.load(bk + out, inside & (column >= n_q) & (column < n_q + n_kv), 0.0).to(tl.float32)
    if BIAS_V:
        total += tl.load(bv + out, inside & (column >= n_q + n_kv), 0.0).to(tl.float32)
    tl.store(y + row * (n_q + 2 * n_kv) + column, total, (row < rows) & inside)


@triton.jit
def _turn_and_store(
    qkv, turn, q, keys, values, position, n_q, n_kv, capacity, HEAD: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (positions, blocks of pairs of q, k and v)."""
    step = tl.program_id(0)
    at = 2 * (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))
    there = at < n_q + 2 * n_kv
    row = qkv + step * (n_q + 2 * n_kv) + at
    even, odd = tl.load(row, there, 0.0).to(tl.float32), tl.load(row + 1, there, 0.0).to(tl.float32)
    turns = there & (at < n_q + n_kv)
    angle = turn + step * HEAD + at % HEAD
    cos, sin = tl.load(angle, turns, 1.0), tl.load(angle + 1, turns, 0.0)
    first, second = even * cos - odd * sin, even * sin + odd * cos
    slot = (tl.load(position) + step) % capacity
    own = at - n_q
    value = own >= n_kv
    own = tl.where(value, own - n_kv, own)
    place = (own // HEAD).to(tl.int64) * capacity * HEAD + slot * HEAD + own % HEAD
    tl.store(q + step * n_q + at, first, at < n_q)
    tl.store(q + step * n_q + at + 1, second, at < n_q)
    key = there & (at >= n_q) & (value == 0)
    tl.store(keys + place, first, key)
    tl.store(keys + place + 1, second, key)
    tl.store(values + place, first, there & value)
    tl.store(values + place + 1, second, there & value)


@triton.jit
def _merge(
    mixed, tops, sums, y, group, steps, n_q, GROUP: tl.constexpr, HEAD: tl.constexpr, PARTS: tl.constexpr,
    ASKING: tl.constexpr,
):  # fmt: skip
    """Put the parts of all queries of a group together, at most ASKING of them."""
    query, width = tl.arange(0, ASKING), tl.arange(0, HEAD)
    step, head, asks = query // GROUP, group * GROUP + query % GROUP, query < GROUP * steps
    place = (step * (n_q // HEAD) + head) * PARTS
    top = tl.full([ASKING], -float("inf"), tl.float32)
    total = tl.zeros([ASKING], tl.float32)
    sum_v = tl.zeros([ASKING, HEAD], tl.float32)
    # Not from the multiprocessor's own cache, which does not see what others wrote.
    for k in tl.static_range(PARTS):
        top = tl.maximum(top, tl.load(tops + place + k, asks, 0.0, cache_modifier=".cg"))
    for k in tl.static_range(PARTS):
        share = tl.exp(tl.load(tops + place + k, asks, 0.0, cache_modifier=".cg") - top)
        total += tl.load(sums + place + k, asks, 1.0, cache_modifier=".cg") * share
        at = mixed + (place + k)[:, None] * HEAD + width[None, :]
        sum_v += tl.load(at, asks[:, None], 0.0, cache_modifier=".cg") * share[:, None]
    tl.store(y + (step * n_q + head * HEAD)[:, None] + width[None, :], sum_v / total[:, None], asks[:, None])


@triton.jit
def _attend(
    q, keys, values, position, mixed, tops, sums, y, counters, capacity, window, scale, steps, n_q,
    GROUP: tl.constexpr, HEAD: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    EARLY: tl.constexpr, ASKING: tl.constexpr,
):  # fmt: skip
    """Grid (groups, PARTS): all queries of one group over one part of the ring; its last program merges.

    Row r asks for position `r // GROUP` of the step with head `r % GROUP` of the group.
    """
    group, part = tl.program_id(0), tl.program_id(1)
    begin(EARLY)
    first = tl.load(position)
    last = first + steps - 1
    held = tl.minimum(last + 1, capacity)
    length = tl.cdiv(tl.cdiv(held, PARTS), BLOCK_KEYS) * BLOCK_KEYS
    start_of_part = part * length
    end = tl.minimum(start_of_part + length, held)
    query, width = tl.arange(0, ROWS), tl.arange(0, HEAD)
    step, head = query // GROUP, group * GROUP + query % GROUP
    asks = query < GROUP * steps
    queries = tl.load(q + (step * n_q + head * HEAD)[:, None] + width[None, :], asks[:, None], 0.0)
    now = (first + step)[:, None]
    root = group.to(tl.int64) * capacity * HEAD
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sum_v = tl.zeros([ROWS, HEAD], tl.float32)
    for start in range(start_of_part, end, BLOCK_KEYS):
        slot = start + tl.arange(0, BLOCK_KEYS)
        holds = last - (last - slot + capacity) % capacity  # the newest position that has this slot
        seen = (slot < end)[None, :] & (holds[None, :] > now - window) & (holds[None, :] <= now)
        k = tl.load(keys + root + slot[None, :] * HEAD + width[:, None], (slot < end)[None, :], 0.0)
        score = tl.where(seen, tl.dot(queries, k) * scale, -float("inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        safe = tl.where(higher == -float("inf"), 0.0, higher)
        weight = tl.exp(score - safe[:, None])
        shrink = tl.exp(top - safe)
        total = total * shrink + tl.sum(weight, 1)
        v = tl.load(values + root + slot[:, None] * HEAD + width[None, :], (slot < end)[:, None], 0.0)
        sum_v = tl.dot(weight.to(v.dtype), v, sum_v * shrink[:, None])
        top = higher
    place = (step * (n_q // HEAD) + head) * PARTS
    tl.store(tops + place + part, top, asks)
    tl.store(sums + place + part, total, asks)
    tl.store(mixed + (place + part)[:, None] * HEAD + width[None, :], sum_v, asks[:, None])
    tl.debug_barrier()
    if tl.atomic_add(counters + group, 1) == PARTS - 1:
        _merge(mixed, tops, sums, y, group, steps, n_q, GROUP, HEAD, PARTS, ASKING)
        tl.store(counters + group, 0)


def _attend_ring(
    q: Tensor, keys: Tensor, values: Tensor, position: Tensor, window: int, settings: dict[str, Any]
) -> Tensor:
    """Attend to the ring: q [T, H, D] -> [T, H D]."""
    steps, heads, head_dim = q.shape
    n_kv_heads, capacity, _ = keys.shape
    group = heads // n_kv_heads
    mixed = torch.empty(steps * heads, PARTS, head_dim, device=q.device, dtype=torch.float32)
    tops, sums = torch.empty(2, steps * heads, PARTS, device=q.device, dtype=torch.float32)
    y = torch.empty(steps, heads * head_dim, device=q.device, dtype=q.dtype)
    _attend[(n_kv_heads, PARTS)](
        q, keys, values, position, mixed, tops, sums, y, tickets(q.device), capacity, window,
        1 / math.sqrt(head_dim), steps, heads * head_dim, GROUP=group, HEAD=head_dim, PARTS=PARTS, ROWS=MAX_ROWS,
        ASKING=triton.next_power_of_2(group * steps), num_warps=4, **settings,
    )  # fmt: skip
    return y


def attend_one(
    x: Tensor,
    norm: Tensor,
    eps: float,
    weights: Projections,
    turn: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    window: int,
) -> Tensor:
    """Attend with one position: x [1, N] -> mixed heads [1, H D]; writes its key and value into the ring.

    `turn` complex64 [1, D / 2]; `keys` and `values` [Hkv, capacity, D], contiguous;
    `position` int64 [1], on the device; D is a power of 2 of 16 or more.
    """
    _, capacity, head_dim = keys.shape
    n_q, n_kv, n_in = weights[0].shape[0], weights[1].shape[0], x.shape[1]
    matrices, scales = zip(*map(operands, weights), strict=True)
    q = torch.empty(1, n_q // head_dim, head_dim, device=x.device, dtype=x.dtype)
    assert not isinstance(weights[0], Q4TileWeight)
    settings = row_settings(weights[0], n_q + 2 * n_kv, device=x.device)
    _project[((n_q + 2 * n_kv) // settings["BLOCK_OUT"],)](
        x, norm, *matrices, *scales, torch.view_as_real(turn), q, keys,
        values, position, n_q, n_kv, n_in, capacity, eps, HEAD=head_dim, **settings,
    )  # fmt: skip
    attend = {"BLOCK_KEYS": BLOCK_KEYS, **overlapped(x.device, FREE)}
    return _attend_ring(q, keys, values, position, window, attend)


def three_products(
    x: Tensor, norm: Tensor, eps: float, weights: Projections, biases: tuple[Tensor | None, ...] = (None,) * 3
) -> Tensor:
    """Multiply the norm of a few rows by the three projections, dense or in tiles: x [R, N] -> [R, (H + 2 Hkv) D]."""
    if q4_tiles.are_tiles(weights):
        return q4_tiles.three_products(q4_tiles.begin(x, norm), weights, eps, biases)
    x = norm_rows(x, norm, eps)
    n_q, n_kv = weights[0].shape[0], weights[1].shape[0]
    y = torch.empty(x.shape[0], n_q + 2 * n_kv, device=x.device, dtype=x.dtype)
    assert isinstance(weights[0], Tensor)
    settings = rows_settings(weights[0])
    tiles = triton.cdiv(n_q, settings["BLOCK_OUT"]) + 2 * triton.cdiv(n_kv, settings["BLOCK_OUT"])
    _three_products[(tiles,)](
        x, *weights, *(x if bias is None else bias for bias in biases), y, n_q, n_kv, x.shape[1], x.shape[0],
        BIAS_Q=biases[0] is not None, BIAS_K=biases[1] is not None, BIAS_V=biases[2] is not None,
        ROWS=MAX_ROWS, **settings,
    )  # fmt: skip
    return y


def attend_few(
    x: Tensor | NormRows,
    norm: Tensor,
    eps: float,
    weights: Projections,
    biases: tuple[Tensor | None, ...],
    turn: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    window: int,
) -> Tensor:
    """Attend with the next T positions: x [T, N] -> mixed heads [T, H D]; writes their keys and values into the ring.

    As `attend_one`, but packed weights are in tiles, for which the norm may have been begun, `turn` is complex64
    [T, D / 2], and a group of heads has at most 16 / T; `position` is that of the first row, and the ring has room for
    T - 1 more than the window.
    """
    if q4_tiles.are_tiles(weights):
        begun = q4_tiles.begin(x, norm) if isinstance(x, Tensor) else x
        q = q4_tiles.project(begun, weights, eps, biases, turn, keys, values, position)
        return _attend_ring(q, keys, values, position, window, {"BLOCK_KEYS": 2 * BLOCK_KEYS, "EARLY": 0})
    assert isinstance(x, Tensor)
    _, capacity, head_dim = keys.shape
    steps, n_q, n_kv = x.shape[0], weights[0].shape[0], weights[1].shape[0]
    qkv = three_products(x, norm, eps, weights, biases)
    q = torch.empty(steps, n_q // head_dim, head_dim, device=x.device, dtype=x.dtype)
    _turn_and_store[(steps, triton.cdiv(n_q // 2 + n_kv, BLOCK_PAIRS))](
        qkv, torch.view_as_real(turn), q, keys,
        values, position, n_q, n_kv, capacity, HEAD=head_dim, BLOCK=BLOCK_PAIRS, num_warps=1,
    )  # fmt: skip
    return _attend_ring(q, keys, values, position, window, {"BLOCK_KEYS": 2 * BLOCK_KEYS, "EARLY": 0})
