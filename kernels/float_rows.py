"""A float32 weight matrix times 1, 2, 4 or 8 rows, in Triton: the codec's frame, whose rate doubles on its way.

The tensor core has no float32 that deserves the name, and cuBLAS takes 8 us for a matrix that the memory gives in 1:
plain arithmetic, one pass over the weights, with the RMS norm before it, the gate beside it and the scaled residual
behind it folded in.

Equal to, up to rounding: `reference.rms_norm`, `reference.linear`, `reference.swiglu`, a product and a sum.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def settings(rows: int, gated: bool) -> dict[str, Any]:
    """Return how to launch for so many rows: each program keeps a sum for every weight of a block and every row."""
    wide = rows <= 2
    return {
        "BLOCK_OUT": 4 if wide or not gated else 2,
        "BLOCK_IN": 512 if wide else 256,
        "num_warps": 4,
        "num_stages": 1,
    }


@triton.jit
def product(
    x, gain, weight, up, first, n_out, n_in, eps, ROWS: tl.constexpr, HAS_NORM: tl.constexpr, GATED: tl.constexpr,
    BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Return `norm(x) weight[first:]^T`, gated if asked for, [ROWS, BLOCK_OUT]; x [ROWS, n_in]."""
    row, out, into = tl.arange(0, ROWS), first + tl.arange(0, BLOCK_OUT), tl.arange(0, BLOCK_IN)
    total = tl.zeros([ROWS, BLOCK_OUT, BLOCK_IN], tl.float32)
    other = tl.zeros([ROWS, BLOCK_OUT, BLOCK_IN], tl.float32)
    squares = tl.zeros([ROWS, BLOCK_IN], tl.float32)
    for start in range(0, n_in, BLOCK_IN):
        at = start + into
        place = out[:, None].to(tl.int64) * n_in + at[None, :]
        there = (out < n_out)[:, None] & (at < n_in)[None, :]
        w = tl.load(weight + place, there, 0.0)
        if GATED:
            u = tl.load(up + place, there, 0.0)
        held = tl.load(x + row[:, None] * n_in + at[None, :], (at < n_in)[None, :] & (row >= 0)[:, None], 0.0)
        if HAS_NORM:
            squares += held * held
            held *= tl.load(gain + at, at < n_in, 0.0)[None, :]
        total += w[None, :, :] * held[:, None, :]
        if GATED:
            other += u[None, :, :] * held[:, None, :]
    result = tl.sum(total, 2)
    if HAS_NORM:
        factor = tl.rsqrt(tl.sum(squares, 1) / n_in + eps)[:, None]
        result *= factor
    if GATED:
        beside = tl.sum(other, 2)
        if HAS_NORM:
            beside *= factor
        result = result * tl.sigmoid(result) * beside
    return result


@triton.jit
def _float_rows(
    x, gain, weight, up, scale, residual, y, n_out, n_in, eps, ROWS: tl.constexpr, HAS_NORM: tl.constexpr,
    GATED: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_SCALE: tl.constexpr,
    BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK_OUT
    result = product(x, gain, weight, up, first, n_out, n_in, eps, ROWS, HAS_NORM, GATED, BLOCK_OUT, BLOCK_IN)
    row, out = tl.arange(0, ROWS)[:, None], first + tl.arange(0, BLOCK_OUT)
    there = (out < n_out)[None, :] & (row >= 0)
    if HAS_SCALE:
        result *= tl.load(scale + out, out < n_out, 0.0)[None, :]
    if HAS_RESIDUAL:
        result += tl.load(residual + row * n_out + out[None, :], there, 0.0)
    tl.store(y + row * n_out + out[None, :], result, there)


@triton.jit
def _three(
    x, gain, wq, wk, wv, y, n_out, n_in, eps, ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of one projection, 3); y is [3, ROWS, n_out]."""
    which = tl.program_id(1)
    weight = wq
    if which == 1:
        weight = wk
    if which == 2:
        weight = wv
    first = tl.program_id(0) * BLOCK_OUT
    result = product(x, gain, weight, weight, first, n_out, n_in, eps, ROWS, True, False, BLOCK_OUT, BLOCK_IN)
    row, out = tl.arange(0, ROWS)[:, None], first + tl.arange(0, BLOCK_OUT)[None, :]
    tl.store(y + (which * ROWS + row) * n_out + out, result, (out < n_out) & (row >= 0))


def float_rows(
    x: Tensor,
    weight: Tensor,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    up: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Compute `W norm(x)`, or `silu(W norm(x)) * (U norm(x))`, times `scale` [M], plus `residual` [R, M].

    x [R, N] with R of 1, 2, 4 or 8, weight and up [M, N]; all float32, contiguous, on one CUDA device.
    """
    rows, n_in = x.shape
    n_out = weight.shape[0]
    y = torch.empty(rows, n_out, device=x.device)
    tile = settings(rows, up is not None)
    _float_rows[(triton.cdiv(n_out, tile["BLOCK_OUT"]),)](
        x, x if norm is None else norm, weight,
        weight if up is None else up, x if scale is None else scale, x if residual is None else residual, y, n_out,
        n_in, eps, ROWS=rows, HAS_NORM=norm is not None, GATED=up is not None, HAS_RESIDUAL=residual is not None,
        HAS_SCALE=scale is not None, **tile,
    )  # fmt: skip
    return y


def three_float_rows(x: Tensor, norm: Tensor, eps: float, weights: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Compute three products of `norm(x)` in one pass: x [R, N], weights [M, N] each -> [3, R, M]."""
    rows, n_in = x.shape
    n_out = weights[0].shape[0]
    y = torch.empty(3, rows, n_out, device=x.device)
    tile = settings(rows, False)
    grid = triton.cdiv(n_out, tile["BLOCK_OUT"]), 3
    _three[grid](x, norm, *weights, y, n_out, n_in, eps, ROWS=rows, **tile)
    return y
