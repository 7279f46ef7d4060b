"""A weight matrix times one row, or a few, in Triton: what a decoding step consists of.

Bound by reading the weights, so each pass takes with it what stands around it: the RMS norm before the product (its
factor is one number a row and is applied behind), the gate beside it, the bias and the residual behind it.  One row is
multiplied with plain arithmetic; several share the tiles of the tensor core, and their norm is a launch of its own,
since every program would have to repeat it for all of them.  Weights are bfloat16, or, for one row, Q4_0 as `q4_rows`
lays it out; several rows meet Q4_0 in `q4_tiles`.

Equal to, up to rounding: `reference.rms_norm`, `reference.linear`, `reference.swiglu` and a sum.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from voxtral_pipes.kernels.early import begin, overlapped
from voxtral_pipes.kernels.packed import Q4CudaWeight, Q4TileWeight
from voxtral_pipes.kernels.q4_row import packed_row

MAX_ROWS = 16
"""Rows of one tile of the tensor core."""
# Measured on an H200 with weights of 3072 x 4096 to 9216 x 3072: 3.1 to 4.1 TB/s of 4.25.
ONE_ROW: dict[str, Any] = {"BLOCK_OUT": 4, "BLOCK_IN": 512, "num_warps": 2}
LONG_ONE_ROW: dict[str, Any] = {"BLOCK_OUT": 4, "BLOCK_IN": 2048, "num_warps": 4}
WIDE_ONE_ROW: dict[str, Any] = {"BLOCK_OUT": 4, "BLOCK_IN": 1024, "num_warps": 4}
# The same, Q4_0: 2.0 TB/s for the smallest matrix, 4.2 for the tied embedding.
PACKED_ROW: dict[str, Any] = {"BLOCK_OUT": 8, "BLOCK_IN": 4096, "num_warps": 4}
WIDE_PACKED_ROW: dict[str, Any] = {"BLOCK_OUT": 8, "BLOCK_IN": 2048, "num_warps": 2}
TALL_PACKED_ROW: dict[str, Any] = {"BLOCK_OUT": 8, "BLOCK_IN": 1024, "num_warps": 1}
WIDE, TALL = 4096, 16384
"""More outputs than these, of all matrices of a launch, are enough programs for a device if each has few warps."""
NARROWEST = 128
"""Inputs of a tile at least."""
SHORT_ROWS: dict[str, Any] = {"BLOCK_OUT": 16, "BLOCK_IN": 128, "num_warps": 2, "num_stages": 6}
LONG_ROWS: dict[str, Any] = {"BLOCK_OUT": 16, "BLOCK_IN": 256, "num_warps": 2, "num_stages": 5}
GATED_ROWS: dict[str, Any] = {"BLOCK_OUT": 16, "BLOCK_IN": 128, "num_warps": 1, "num_stages": 3}
LONG = 4096
TICKETS = 1 << 12
"""Counters, of parts that have ended."""


def operands(weight: Tensor | Q4CudaWeight | Q4TileWeight) -> tuple[Tensor, Tensor]:
    """Return what a kernel reads of a weight: the matrix twice, or codes and scales."""
    assert not isinstance(weight, Q4TileWeight)
    return (weight, weight) if isinstance(weight, Tensor) else (weight.codes, weight.scales)


def row_settings(
    weight: Tensor | Q4CudaWeight, n_out: int, *, gated: bool = False, device: torch.device
) -> dict[str, Any]:
    """Return how to launch a product of `n_out` outputs, of this weight and others like it, with one row."""
    n_in = weight.shape[1]
    packed = isinstance(weight, Q4CudaWeight)
    if packed:
        settings = WIDE_PACKED_ROW if n_out > WIDE else PACKED_ROW
        if gated or n_out > TALL:
            settings = TALL_PACKED_ROW
    elif n_in > LONG:
        settings = LONG_ONE_ROW
    else:
        settings = WIDE_ONE_ROW if n_out > WIDE and not gated else ONE_ROW
    block_in = max(min(settings["BLOCK_IN"], triton.next_power_of_2(n_in)), NARROWEST)
    return {
        **settings,
        "PACKED": packed,
        "BLOCK_IN": block_in,
        "CHUNKS": triton.cdiv(n_in, block_in),
        "WHOLE": n_in % block_in == 0 and n_out % settings["BLOCK_OUT"] == 0,
        "num_stages": 1,
        **overlapped(device),
    }


def rows_settings(weight: Tensor, *, gated: bool = False) -> dict[str, Any]:
    """Return how to launch a product of this weight, and others like it, with a few rows."""
    return GATED_ROWS if gated else LONG_ROWS if weight.shape[1] >= LONG else SHORT_ROWS


@cache
def tickets(device: torch.device) -> Tensor:
    """Return the counters of programs that have left their part, int32 zeros; each launch leaves zeros."""
    return torch.zeros(TICKETS, device=device, dtype=torch.int32)


@triton.jit
def _dense_tile(
    weight, first, start, n_out, n_in, WHOLE: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr
):  # fmt: skip
    """Load weights [BLOCK_OUT, BLOCK_IN], from input `start` on; WHOLE says that tiles do not reach past the end."""
    out, at = first + tl.arange(0, BLOCK_OUT), start + tl.arange(0, BLOCK_IN)
    place = out[:, None].to(tl.int64) * n_in + at[None, :]
    if WHOLE:
        w = tl.load(weight + place, eviction_policy="evict_first")
    else:
        there = (out < n_out)[:, None] & (at < n_in)[None, :]
        w = tl.load(weight + place, there, 0.0, eviction_policy="evict_first")
    return w


@triton.jit
def dense_row(
    x, gain, weight, up, first, n_out, n_in, eps, HAS_NORM: tl.constexpr, GATED: tl.constexpr, EARLY: tl.constexpr,
    CHUNKS: tl.constexpr, WHOLE: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Return `norm(x) weight[first:]^T`, gated if asked for, float32 [BLOCK_OUT]; x [n_in], weight [n_out, n_in].

    As `packed_row`, of CHUNKS tiles of BLOCK_IN inputs.
    """
    into = tl.arange(0, BLOCK_IN)
    total = tl.zeros([BLOCK_OUT, BLOCK_IN], tl.float32)
    other = tl.zeros([BLOCK_OUT, BLOCK_IN], tl.float32)
    squares = tl.zeros([BLOCK_IN], tl.float32)
    w = _dense_tile(weight, first, 0, n_out, n_in, WHOLE, BLOCK_OUT, BLOCK_IN)
    u = w
    if GATED:
        u = _dense_tile(up, first, 0, n_out, n_in, WHOLE, BLOCK_OUT, BLOCK_IN)
    begin(EARLY)
    for chunk in tl.static_range(CHUNKS):
        next_w, next_u = w, u
        if chunk + 1 < CHUNKS:
            start = (chunk + 1) * BLOCK_IN
            next_w = _dense_tile(weight, first, start, n_out, n_in, WHOLE, BLOCK_OUT, BLOCK_IN)
            if GATED:
                next_u = _dense_tile(up, first, start, n_out, n_in, WHOLE, BLOCK_OUT, BLOCK_IN)
        at = chunk * BLOCK_IN + into
        held = tl.load(x + at, at < n_in, 0.0).to(tl.float32)
        if HAS_NORM:
            squares += held * held
            held *= tl.load(gain + at, at < n_in, 0.0).to(tl.float32)
        total += w.to(tl.float32) * held[None, :]
        if GATED:
            other += u.to(tl.float32) * held[None, :]
        w, u = next_w, next_u
    result = tl.sum(total, 1)
    if HAS_NORM:
        factor = tl.rsqrt(tl.sum(squares, 0) / n_in + eps)
        result *= factor
    if GATED:
        beside = tl.sum(other, 1)
        if HAS_NORM:
            beside *= factor
        result = result * tl.sigmoid(result) * beside
    return result


@triton.jit
def one_row(
    x, gain, weight, scales, up, up_scales, first, n_out, n_in, eps, PACKED: tl.constexpr, HAS_NORM: tl.constexpr,
    GATED: tl.constexpr, EARLY: tl.constexpr, CHUNKS: tl.constexpr, WHOLE: tl.constexpr, BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Return `norm(x) weight[first:]^T`, gated if asked for, float32 [BLOCK_OUT]: x [n_in].

    Calls `begin`: what comes behind may read what the kernel before wrote.
    """
    if PACKED:
        result = packed_row(
            x, gain, weight, scales, up, up_scales, first, n_out, n_in, eps, HAS_NORM, GATED, EARLY, CHUNKS, WHOLE,
            BLOCK_OUT, BLOCK_IN // 32,
        )  # fmt: skip
    else:
        result = dense_row(
            x, gain, weight, up, first, n_out, n_in, eps, HAS_NORM, GATED, EARLY, CHUNKS, WHOLE, BLOCK_OUT, BLOCK_IN
        )  # fmt: skip
    return result


@triton.jit
def _one_row(
    x, gain, weight, scales, up, up_scales, bias, residual, y, n_out, n_in, eps, HAS_NORM: tl.constexpr,
    GATED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, PACKED: tl.constexpr,
    EARLY: tl.constexpr, CHUNKS: tl.constexpr, WHOLE: tl.constexpr, BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK_OUT
    result = one_row(
        x, gain, weight, scales, up, up_scales, first, n_out, n_in, eps, PACKED, HAS_NORM, GATED, EARLY, CHUNKS, WHOLE,
        BLOCK_OUT, BLOCK_IN,
    )  # fmt: skip
    out = first + tl.arange(0, BLOCK_OUT)
    if HAS_BIAS:
        result += tl.load(bias + out, out < n_out, 0.0).to(tl.float32)
    if HAS_RESIDUAL:
        result += tl.load(residual + out, out < n_out, 0.0).to(tl.float32)
    tl.store(y + out, result, out < n_out)


@triton.jit
def few_rows(
    x, weight, up, first, n_out, n_in, rows, GATED: tl.constexpr, ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Return `x weight[first:]^T`, gated if asked for, float32 [ROWS, BLOCK_OUT]; x [rows, n_in]."""
    row, out, into = tl.arange(0, ROWS), first + tl.arange(0, BLOCK_OUT), tl.arange(0, BLOCK_IN)
    total = tl.zeros([ROWS, BLOCK_OUT], tl.float32)
    other = tl.zeros([ROWS, BLOCK_OUT], tl.float32)
    for start in range(0, n_in, BLOCK_IN):
        at = start + into
        held = tl.load(
            x + row[:, None] * n_in + at[None, :], (row < rows)[:, None] & (at < n_in)[None, :], 0.0
        )
        place = out[None, :].to(tl.int64) * n_in + at[:, None]
        there = (out < n_out)[None, :] & (at < n_in)[:, None]
        total = tl.dot(held, tl.load(weight + place, there, 0.0), total)
        if GATED:
            other = tl.dot(held, tl.load(up + place, there, 0.0), other)
    if GATED:
        total = total * tl.sigmoid(total) * other
    return total


@triton.jit
def _few_rows(
    x, weight, up, bias, residual, y, n_out, n_in, rows, GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Grid: tiles of outputs."""
    first = tl.program_id(0) * BLOCK_OUT
    total = few_rows(x, weight, up, first, n_out, n_in, rows, GATED, ROWS, BLOCK_OUT, BLOCK_IN)
    row, out = tl.arange(0, ROWS)[:, None], first + tl.arange(0, BLOCK_OUT)[None, :]
    there = (row < rows) & (out < n_out)
    if HAS_BIAS:
        total += tl.load(bias + out, out < n_out, 0.0).to(tl.float32)
    if HAS_RESIDUAL:
        total += tl.load(residual + row * n_out + out, there, 0.0).to(tl.float32)
    tl.store(y + row * n_out + out, total, there)


@triton.jit
def _norm(x, gain, y, width, eps, BLOCK: tl.constexpr):
    """Grid (rows)."""
    at = tl.arange(0, BLOCK)
    held = tl.load(x + tl.program_id(0) * width + at, at < width, 0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(held * held, 0) / width + eps)
    result = held * factor * tl.load(gain + at, at < width, 0.0).to(tl.float32)
    tl.store(y + tl.program_id(0) * width + at, result, at < width)


def norm_rows(x: Tensor, norm: Tensor, eps: float) -> Tensor:
    """Compute `rms_norm(x)`: x [R, N], contiguous."""
    y = torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[1])
    _norm[(x.shape[0],)](x, norm, y, x.shape[1], eps, BLOCK=block, num_warps=8)
    return y


def linear_rows(
    x: Tensor,
    weight: Tensor | Q4CudaWeight,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    up: Tensor | Q4CudaWeight | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Compute `W norm(x)`, or `silu(W norm(x)) * (U norm(x))`, plus `bias` [M] and `residual`.

    x [R, N], W and U [M, N], both dense or both packed: R is at most `MAX_ROWS`, and 1 for packed weights.
    All tensors are contiguous, on one CUDA device and, but for packed weights, of one dtype.  Returns [R, M] in the
    dtype of x, or in `dtype`.
    """
    rows, n_in = x.shape
    n_out = weight.shape[0]
    y = torch.empty(rows, n_out, device=x.device, dtype=dtype or x.dtype)
    flags = {"GATED": up is not None, "HAS_BIAS": bias is not None, "HAS_RESIDUAL": residual is not None}
    beside = weight if up is None else up
    behind = x if bias is None else bias, x if residual is None else residual
    if isinstance(weight, Tensor) and isinstance(beside, Tensor) and rows > 1:
        if norm is not None:
            x = norm_rows(x, norm, eps)
        tiles = rows_settings(weight, gated=up is not None)
        _few_rows[(triton.cdiv(n_out, tiles["BLOCK_OUT"]),)](
            x, weight, beside, *behind, y, n_out, n_in, rows, ROWS=MAX_ROWS, **flags, **tiles
        )
        return y
    settings = row_settings(weight, n_out, gated=up is not None, device=x.device)
    _one_row[(triton.cdiv(n_out, settings["BLOCK_OUT"]),)](
        x, x if norm is None else norm, *operands(weight), *operands(beside), *behind, y, n_out, n_in, eps,
        HAS_NORM=norm is not None, **flags, **settings,
    )  # fmt: skip
    return y
