"""What the flow head does between its products, in Triton: three tokens that attend to each other, and the Euler step.

Both branches of the guidance are rows of one batch: row 3 b + j is token j of branch b.  Equal to, up to rounding:
the same lines of `models/flow.py` in plain torch.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from voxtral_pipes.kernels.decode_attention import Projections, three_products
from voxtral_pipes.kernels.q4_tiles import NormRows, are_tiles, columns
from voxtral_pipes.kernels.q4_tiles import three_products as three_tile_products

TOKENS, BRANCHES = 3, 2
BLOCK_DIM = 64


@triton.jit
def _attend_tokens(
    qkv, y, n_q, n_kv, scale, QUERIES: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Grid (branches, heads, QUERIES): one head of one query over the three tokens of its branch."""
    branch, head, query = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    width, token = tl.arange(0, HEAD), tl.arange(0, 4)
    stride = n_q + 2 * n_kv
    row = qkv + branch * TOKENS * stride
    q = tl.load(row + query * stride + head * HEAD + width).to(tl.float32)
    there = (token < TOKENS)[:, None]
    at = row + token[:, None] * stride + n_q + (head // GROUP) * HEAD + width[None, :]
    k = tl.load(at, there, 0.0).to(tl.float32)
    v = tl.load(at + n_kv, there, 0.0).to(tl.float32)
    score = tl.where(token < TOKENS, tl.sum(k * q[None, :], 1) * scale, -float("inf"))
    weight = tl.exp(score - tl.max(score, 0))
    mixed = tl.sum(v * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(y + (branch * QUERIES + query) * n_q + head * HEAD + width, mixed)


@triton.jit
def _move(
    state, velocity, moved, weight, time, condition, tokens, gain, scaled, squares, guidance, length, n_state, dim,
    HAS_GAIN: tl.constexpr, N: tl.constexpr, BLOCK_STATE: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """Each program works out the whole new state, some 36 numbers, and makes a block of the tokens from it."""
    k, out = tl.arange(0, BLOCK_STATE), tl.program_id(0) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    there, inside = k < n_state, out < dim
    guided, free = tl.load(velocity + k, there, 0.0), tl.load(velocity + n_state + k, there, 0.0)
    x = tl.load(state + k, there, 0.0) + (guidance * guided + (1 - guidance) * free) * length
    if tl.program_id(0) == 0:
        tl.store(moved + k, x, there)
    w = tl.load(weight + out[:, None] * n_state + k[None, :], inside[:, None] & there[None, :], 0.0)
    first = tl.sum(w.to(tl.float32) * x.to(w.dtype).to(tl.float32)[None, :], 1).to(tokens.dtype.element_ty)
    second = tl.load(time + out, inside, 0.0)
    g = tl.load(gain + out, inside, 0.0).to(tl.float32) if HAS_GAIN else 1.0
    for branch in tl.static_range(2):
        third = tl.load(condition + branch * dim + out, inside, 0.0)
        row = 3 * branch
        part = squares + tl.program_id(0) * N + row
        _token(first, tokens, g, scaled, part, row * dim + out, inside, HAS_GAIN)
        _token(second, tokens, g, scaled, part + 1, (row + 1) * dim + out, inside, HAS_GAIN)
        _token(third, tokens, g, scaled, part + 2, (row + 2) * dim + out, inside, HAS_GAIN)


@triton.jit
def _token(value, tokens, gain, scaled, part, at, inside, HAS_GAIN: tl.constexpr):
    """Store a block of a token, and what its norm needs."""
    tl.store(tokens + at, value, inside)
    if HAS_GAIN:
        wide = tl.where(inside, value.to(tl.float32), 0.0)
        tl.store(scaled + at, wide * gain, inside)
        tl.store(part, tl.sum(wide * wide, 0))


def mix_tokens(
    y: Tensor | NormRows, norm: Tensor, eps: float, weights: Projections, head_dim: int, queries: int
) -> Tensor:
    """Attend among the three tokens of both branches: y [6, N], or its norm begun -> mixed heads [2 queries, H D].

    The first `queries` tokens of each branch ask, all three are seen; no positions.  D is a power of 2.
    """
    n_q, n_kv = weights[0].shape[0], weights[1].shape[0]
    if isinstance(y, Tensor):
        qkv = three_products(y, norm, eps, weights)
    else:
        assert are_tiles(weights)
        qkv = three_tile_products(y, weights, eps)
    mixed = torch.empty(BRANCHES * queries, n_q, device=qkv.device, dtype=qkv.dtype)
    _attend_tokens[(BRANCHES, n_q // head_dim, queries)](
        qkv, mixed, n_q, n_kv, 1 / math.sqrt(head_dim),
        QUERIES=queries, GROUP=n_q // n_kv, HEAD=head_dim, TOKENS=TOKENS, num_warps=1,
    )  # fmt: skip
    return mixed


def move(
    state: Tensor,
    velocity: Tensor,
    weight: Tensor,
    time: Tensor,
    condition: Tensor,
    guidance: float,
    length: float,
) -> tuple[Tensor, Tensor]:
    """Take an Euler step and make the tokens of the next: float32 [A] moved, and [6, N].

    state float32 [A]; velocity float32 [2, A], with the condition and without; weight [N, A], of the input projection;
    time [N]; condition [2, N].
    """
    moved, y = _move_on(state, velocity, weight, time, condition, None, guidance, length)
    return moved, y.rows


def move_and_begin(
    state: Tensor,
    velocity: Tensor,
    weight: Tensor,
    time: Tensor,
    condition: Tensor,
    gain: Tensor,
    guidance: float,
    length: float,
) -> tuple[Tensor, NormRows]:
    """Do as `move`, and begin the norm of the tokens that has this gain."""
    return _move_on(state, velocity, weight, time, condition, gain, guidance, length)


def _move_on(
    state: Tensor,
    velocity: Tensor,
    weight: Tensor,
    time: Tensor,
    condition: Tensor,
    gain: Tensor | None,
    guidance: float,
    length: float,
) -> tuple[Tensor, NormRows]:
    """Without `gain` there are no more than the rows in what is returned."""
    n_state, dim = state.shape[0], time.shape[0]
    programs = triton.cdiv(dim, BLOCK_DIM)
    moved = torch.empty_like(state)
    tokens = torch.empty(BRANCHES * TOKENS, dim, device=state.device, dtype=time.dtype)
    scaled, squares, n = tokens, tokens, columns(len(tokens))
    if gain is not None:
        scaled, squares = torch.empty_like(tokens), torch.empty(programs, n, device=state.device)
    _move[(programs,)](
        state, velocity, moved, weight, time, condition, tokens, time if gain is None else gain, scaled, squares,
        guidance, length, n_state, dim, HAS_GAIN=gain is not None, N=n, BLOCK_STATE=triton.next_power_of_2(n_state),
        BLOCK_DIM=BLOCK_DIM, num_warps=4,
    )  # fmt: skip
    return moved, NormRows(tokens, scaled, squares)
