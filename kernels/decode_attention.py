"""One position of a decoder's attention, in Triton: three launches from the residual stream to the mixed heads.

    1  norm, the three projections, rotation, and the write into the ring of keys and values
    2  attention of each group of heads over a part of the ring
    3  the parts put together

Position and length are read on the device, so that one CUDA graph serves every position.  Equal to, up to rounding:
`reference.rms_norm`, `linear`, `rotate`, the ring's write and `attention` with its mask.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from voxtral_pipes.kernels.rows import MAX_ROWS, one_row

PARTS = 16
"""Of the ring, for each group of heads; with 8 groups that is a program for nearly every multiprocessor."""
BLOCK_KEYS = 64
BLOCK_OUT, BLOCK_IN = 8, 512
"""Of the projections; a block of outputs holds whole pairs and lies in one head."""


@triton.jit
def _project(
    x, gain, wq, wk, wv, turn, q, keys, values, position, n_q, n_kv, n_in, capacity, eps, HEAD: tl.constexpr,
    BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Each program makes a block of the outputs of one projection; blocks do not cross heads."""
    program = tl.program_id(0)
    q_blocks, kv_blocks = n_q // BLOCK_OUT, n_kv // BLOCK_OUT
    if program < q_blocks:
        weight, first, n_out = wq, program * BLOCK_OUT, n_q
    elif program < q_blocks + kv_blocks:
        weight, first, n_out = wk, (program - q_blocks) * BLOCK_OUT, n_kv
    else:
        weight, first, n_out = wv, (program - q_blocks - kv_blocks) * BLOCK_OUT, n_kv
    total = one_row(x, gain, weight, weight, first, n_out, n_in, eps, True, False, BLOCK_OUT, BLOCK_IN)
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
def _attend(
    q, keys, values, position, mixed, tops, sums, capacity, window, scale, GROUP: tl.constexpr, HEAD: tl.constexpr,
    PARTS: tl.constexpr, ROWS: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """Grid (groups, PARTS): the heads of one group over one part of the ring; softmax is finished by `_merge`."""
    group, part = tl.program_id(0), tl.program_id(1)
    now = tl.load(position)
    held = tl.minimum(now + 1, capacity)
    length = tl.cdiv(tl.cdiv(held, PARTS), BLOCK_KEYS) * BLOCK_KEYS
    begin = part * length
    end = tl.minimum(begin + length, held)
    head, width = tl.arange(0, ROWS), tl.arange(0, HEAD)
    queries = tl.load(
        q + (group * GROUP + head)[:, None] * HEAD + width[None, :], (head < GROUP)[:, None], 0.0
    )
    root = group.to(tl.int64) * capacity * HEAD
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sum_v = tl.zeros([ROWS, HEAD], tl.float32)
    for start in range(begin, end, BLOCK_KEYS):
        slot = start + tl.arange(0, BLOCK_KEYS)
        holds = now - (now - slot + capacity) % capacity  # the newest position that has this slot
        seen = (slot < end) & (holds > now - window)
        k = tl.load(keys + root + slot[None, :] * HEAD + width[:, None], (slot < end)[None, :], 0.0)
        score = tl.where(seen[None, :], tl.dot(queries, k) * scale, -float("inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        safe = tl.where(higher == -float("inf"), 0.0, higher)
        weight = tl.exp(score - safe[:, None])
        shrink = tl.exp(top - safe)
        total = total * shrink + tl.sum(weight, 1)
        v = tl.load(values + root + slot[:, None] * HEAD + width[None, :], (slot < end)[:, None], 0.0)
        sum_v = tl.dot(weight.to(v.dtype), v, sum_v * shrink[:, None])
        top = higher
    place = (group * GROUP + head) * PARTS + part
    there = head < GROUP
    tl.store(tops + place, top, there)
    tl.store(sums + place, total, there)
    tl.store(mixed + place[:, None] * HEAD + width[None, :], sum_v, there[:, None])


@triton.jit
def _merge(mixed, tops, sums, y, HEAD: tl.constexpr, PARTS: tl.constexpr):
    """Grid (heads)."""
    head = tl.program_id(0)
    part, width = tl.arange(0, PARTS), tl.arange(0, HEAD)
    top = tl.load(tops + head * PARTS + part)
    share = tl.exp(top - tl.max(top, 0))
    total = tl.sum(tl.load(sums + head * PARTS + part) * share, 0)
    parts = tl.load(mixed + (head * PARTS + part)[:, None] * HEAD + width[None, :])
    tl.store(y + head * HEAD + width, tl.sum(parts * share[:, None], 0) / total)


def attend_one(
    x: Tensor,
    norm: Tensor,
    eps: float,
    weights: tuple[Tensor, Tensor, Tensor],
    turn: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    window: int,
) -> Tensor:
    """Attend with one position: x [1, N] -> mixed heads [1, H D]; writes its key and value into the ring.

    `weights` are those of q, k and v; `turn` complex64 [1, D / 2]; `keys` and `values` [Hkv, capacity, D], contiguous;
    `position` int64 [1], on the device; D is a power of 2 of 16 or more.
    """
    wq, wk, wv = weights
    n_kv_heads, capacity, head_dim = keys.shape
    n_q, n_kv, n_in = wq.shape[0], wk.shape[0], x.shape[1]
    heads = n_q // head_dim
    q = torch.empty(heads, head_dim, device=x.device, dtype=x.dtype)
    mixed = torch.empty(heads, PARTS, head_dim, device=x.device, dtype=torch.float32)
    tops, sums = torch.empty(2, heads, PARTS, device=x.device, dtype=torch.float32)
    y = torch.empty(1, n_q, device=x.device, dtype=x.dtype)
    _project[((n_q + 2 * n_kv) // BLOCK_OUT,)](
        x, norm, wq, wk, wv, torch.view_as_real(turn), q, keys, values, position, n_q, n_kv, n_in, capacity, eps,
        HEAD=head_dim, BLOCK_OUT=BLOCK_OUT, BLOCK_IN=BLOCK_IN, num_warps=4, num_stages=1,
    )  # fmt: skip
    _attend[(n_kv_heads, PARTS)](
        q, keys, values, position, mixed, tops, sums, capacity, window, 1 / math.sqrt(head_dim),
        GROUP=heads // n_kv_heads, HEAD=head_dim, PARTS=PARTS, ROWS=MAX_ROWS, BLOCK_KEYS=BLOCK_KEYS, num_warps=4,
    )  # fmt: skip
    _merge[(heads,)](mixed, tops, sums, y, HEAD=head_dim, PARTS=PARTS, num_warps=4)
    return y
