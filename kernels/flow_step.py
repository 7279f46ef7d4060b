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
from voxtral_pipes.kernels.rows import norm_rows

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
    state, velocity, moved, weight, time, condition, tokens, guidance, length, n_state, dim,
    BLOCK_STATE: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """Each program works out the whole new state, some 36 numbers, and makes a block of the tokens from it."""
    k, out = tl.arange(0, BLOCK_STATE), tl.program_id(0) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    there = k < n_state
    guided, free = tl.load(velocity + k, there, 0.0), tl.load(velocity + n_state + k, there, 0.0)
    x = tl.load(state + k, there, 0.0) + (guidance * guided + (1 - guidance) * free) * length
    if tl.program_id(0) == 0:
        tl.store(moved + k, x, there)
    inside = out < dim
    w = tl.load(weight + out[:, None] * n_state + k[None, :], inside[:, None] & there[None, :], 0.0)
    first = tl.sum(w.to(tl.float32) * x.to(w.dtype).to(tl.float32)[None, :], 1)
    second = tl.load(time + out, inside)
    for branch in tl.static_range(2):
        row = tokens + 3 * branch * dim
        tl.store(row + out, first, inside)
        tl.store(row + dim + out, second, inside)
        tl.store(row + 2 * dim + out, tl.load(condition + branch * dim + out, inside), inside)


def mix_tokens(
    y: Tensor, norm: Tensor, eps: float, weights: Projections, head_dim: int, queries: int
) -> Tensor:
    """Attend among the three tokens of both branches: y [6, N] -> mixed heads [2 queries, H D].

    The first `queries` tokens of each branch ask, all three are seen; no positions.  D is a power of 2.
    """
    n_q, n_kv = weights[0].shape[0], weights[1].shape[0]
    qkv = three_products(norm_rows(y, norm, eps), weights)
    mixed = torch.empty(BRANCHES * queries, n_q, device=y.device, dtype=y.dtype)
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
    n_state, dim = state.shape[0], time.shape[0]
    moved = torch.empty_like(state)
    tokens = torch.empty(BRANCHES * TOKENS, dim, device=state.device, dtype=time.dtype)
    _move[(triton.cdiv(dim, BLOCK_DIM),)](
        state, velocity, moved, weight, time, condition, tokens, guidance, length, n_state, dim,
        BLOCK_STATE=triton.next_power_of_2(n_state), BLOCK_DIM=BLOCK_DIM, num_warps=4,
    )  # fmt: skip
    return moved, tokens
