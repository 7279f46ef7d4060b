"""A weight matrix times one row, or a few, in Triton: what a decoding step consists of.

Bound by reading the weights, so each pass takes with it what stands around it: the RMS norm before the product (its
factor is one number a row and is applied behind), the gate beside it, the bias and the residual behind it.  One row is
multiplied with plain arithmetic; several share the tiles of the tensor core, and their norm is a launch of its own,
since every program would have to repeat it for all of them.  Weights are bfloat16, or Q4_0 as `q4_rows` lays it out; a
matrix of the latter is so few bytes that, for several rows, it is cut along the inputs too: else most of the device
would idle.

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
from voxtral_pipes.kernels.packed import Q4CudaWeight
from voxtral_pipes.kernels.q4_row import packed_row
from voxtral_pipes.kernels.q4_rows import ONE_RUN, packed_rows

MAX_ROWS = 16
"""Rows of one tile of the tensor core."""
# Measured on an H200 with weights of 3072 x 4096 to 9216 x 3072: 3.1 to 4.1 TB/s of 4.25.
ONE_ROW: dict[str, Any] = {"BLOCK_OUT": 4, "BLOCK_IN": 512, "num_warps": 2}
LONG_ONE_ROW: dict[str, Any] = {"BLOCK_OUT": 4, "BLOCK_IN": 2048, "num_warps": 4}
WIDE_ONE_ROW: dict[str, Any] = {"BLOCK_OUT": 4, "BLOCK_IN": 1024, "num_warps": 4}
# The same, Q4_0: 2.0 TB/s for the smallest matrix, 4.2 for the tied embedding.
PACKED_ROW: dict[str, Any] = {"BLOCK_OUT": 8, "BLOCK_IN": 4096, "num_warps": 4}
WIDE_PACKED_ROW: dict[str, Any] = {"BLOCK_OUT": 8, "BLOCK_IN": 1024, "num_warps": 1}
WIDE = 4096
"""More outputs than this, of all matrices of a launch, are enough programs for a device if each has one warp."""
NARROWEST = 128
"""Inputs of a tile at least."""
SHORT_ROWS: dict[str, Any] = {"BLOCK_OUT": 16, "BLOCK_IN": 128, "num_warps": 2, "num_stages": 6}
LONG_ROWS: dict[str, Any] = {"BLOCK_OUT": 16, "BLOCK_IN": 256, "num_warps": 2, "num_stages": 5}
GATED_ROWS: dict[str, Any] = {"BLOCK_OUT": 16, "BLOCK_IN": 128, "num_warps": 1, "num_stages": 3}
LONG = 4096
PACKED_ROWS: dict[str, Any] = {"BLOCK_OUT": 16, "BLOCK_IN": 256, "num_warps": 1, "num_stages": 2}
GATED_PACKED_ROWS: dict[str, Any] = {"BLOCK_OUT": 32, "BLOCK_IN": 256, "num_warps": 4, "num_stages": 2}
ENOUGH_PROGRAMS, GATED_PROGRAMS = 1536, 1152
"""Of one and of four warps: more do not help."""
MAX_PARTS = 8
TICKETS = 1 << 14
"""Tiles of outputs of one launch that is cut along the inputs."""


def operands(weight: Tensor | Q4CudaWeight) -> tuple[Tensor, Tensor]:
    """Return what a kernel reads of a weight: the matrix twice, or codes and scales."""
    return (weight, weight) if isinstance(weight, Tensor) else (weight.codes, weight.scales)


def row_settings(
    weight: Tensor | Q4CudaWeight, n_out: int, *, gated: bool = False, device: torch.device
) -> dict[str, Any]:
    """Return how to launch a product of `n_out` outputs, of this weight and others like it, with one row."""
    n_in = weight.shape[1]
    packed = isinstance(weight, Q4CudaWeight)
    if packed:
        settings = WIDE_PACKED_ROW if gated or n_out > WIDE else PACKED_ROW
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


def rows_settings(weight: Tensor | Q4CudaWeight, n_out: int, *, gated: bool = False) -> dict[str, Any]:
    """Return how to launch a product of `n_out` outputs, of this weight and others like it, with a few rows."""
    n_in = weight.shape[1]
    if isinstance(weight, Tensor):
        settings = GATED_ROWS if gated else LONG_ROWS if n_in >= LONG else SHORT_ROWS
        return {"PACKED": False, "PARTS": 1, **settings}
    settings, enough = (GATED_PACKED_ROWS, GATED_PROGRAMS) if gated else (PACKED_ROWS, ENOUGH_PROGRAMS)
    groups, tiles = triton.cdiv(n_in, settings["BLOCK_IN"]), triton.cdiv(n_out, settings["BLOCK_OUT"])
    parts = 1
    while parts < min(MAX_PARTS, groups) and 2 * parts * tiles <= enough and tiles <= TICKETS:
        parts *= 2
    return {"PACKED": True, "PARTS": parts, **settings}


@cache
def tickets(device: torch.device) -> Tensor:
    """Return the counters of programs that have left their part of a tile, int32 zeros; each launch leaves zeros."""
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
def _dense_rows(
    x, weight, up, first, n_out, n_in, rows, GATED: tl.constexpr, ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Return `x weight[first:]^T` and that of `up`, float32 [ROWS, BLOCK_OUT]; x [rows, n_in]."""
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
    return total, other


@triton.jit
def few_rows(
    x, weight, scales, up, up_scales, parts, counter, first, n_out, n_in, rows, GATED: tl.constexpr,
    PACKED: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Return `x weight[first:]^T`, gated if asked for, float32 [ROWS, BLOCK_OUT], and whether it is whole.

    With PARTS each program of grid axis 1 takes a part of the inputs and leaves its sums in `parts`
    [tiles, PARTS, 2, ROWS, BLOCK_OUT]; the last one of a tile, by its `counter`, adds them up in order, and only its
    result is whole.
    """
    if PARTS == 1:
        if PACKED:
            total, other = packed_rows(
                x, weight, scales, up, up_scales, first, n_out, n_in, rows, 0, tl.cdiv(n_in, BLOCK_IN), GATED, ROWS,
                BLOCK_OUT,
            )  # fmt: skip
        else:
            total, other = _dense_rows(
                x, weight, up, first, n_out, n_in, rows, GATED, ROWS, BLOCK_OUT, BLOCK_IN
            )
        whole = True
    else:
        tl.static_assert(PACKED)
        groups, part = tl.cdiv(n_in, BLOCK_IN), tl.program_id(1)
        each = tl.cdiv(groups, PARTS)
        total, other = packed_rows(
            x, weight, scales, up, up_scales, first, n_out, n_in, rows, part * each,
            tl.minimum(part * each + each, groups), GATED, ROWS, BLOCK_OUT,
        )  # fmt: skip
        size: tl.constexpr = ROWS * BLOCK_OUT
        at = tl.arange(0, ROWS)[:, None] * BLOCK_OUT + tl.arange(0, BLOCK_OUT)[None, :]
        mine = parts + tl.program_id(0).to(tl.int64) * PARTS * 2 * size
        tl.store(mine + part * 2 * size + at, total)
        if GATED:
            tl.store(mine + (part * 2 + 1) * size + at, other)
        tl.debug_barrier()
        whole = tl.atomic_add(counter, 1) == PARTS - 1
        if whole:
            total = tl.zeros([ROWS, BLOCK_OUT], tl.float32)
            other = tl.zeros([ROWS, BLOCK_OUT], tl.float32)
            for k in tl.static_range(PARTS):
                # Not from the multiprocessor's own cache, which does not see what others wrote.
                total += tl.load(mine + k * 2 * size + at, cache_modifier=".cg")
                if GATED:
                    other += tl.load(mine + (k * 2 + 1) * size + at, cache_modifier=".cg")
            tl.store(counter, 0)
    if GATED:
        total = total * tl.sigmoid(total) * other
    return total, whole


@triton.jit
def _few_rows(
    x, weight, scales, up, up_scales, bias, residual, y, parts, counters, n_out, n_in, rows, GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, PACKED: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of outputs, PARTS)."""
    first = tl.program_id(0) * BLOCK_OUT
    total, whole = few_rows(
        x, weight, scales, up, up_scales, parts, counters + tl.program_id(0), first, n_out, n_in, rows, GATED, PACKED,
        PARTS, ROWS, BLOCK_OUT, BLOCK_IN,
    )  # fmt: skip
    if whole:
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


def part_sums(settings: dict[str, Any], tiles: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return where a launch with these `rows_settings` leaves its parts, and their counters."""
    size = tiles * settings["PARTS"] * 2 * MAX_ROWS * settings["BLOCK_OUT"] if settings["PARTS"] > 1 else 0
    return torch.empty(size, device=device), tickets(device)


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

    x [R, N], W and U [M, N], both dense or both packed: R is at most `MAX_ROWS`, and 1 for packed weights of run 4.
    All tensors are contiguous, on one CUDA device and, but for packed weights, of one dtype.  Returns [R, M] in the
    dtype of x, or in `dtype`.
    """
    rows, n_in = x.shape
    n_out = weight.shape[0]
    y = torch.empty(rows, n_out, device=x.device, dtype=dtype or x.dtype)
    flags = {"GATED": up is not None, "HAS_BIAS": bias is not None, "HAS_RESIDUAL": residual is not None}
    matrices = (*operands(weight), *operands(weight if up is None else up))
    behind = x if bias is None else bias, x if residual is None else residual
    if takes_one(weight, rows):
        settings = row_settings(weight, n_out, gated=up is not None, device=x.device)
        _one_row[(triton.cdiv(n_out, settings["BLOCK_OUT"]),)](
            x, x if norm is None else norm, *matrices, *behind,
            y, n_out, n_in, eps, HAS_NORM=norm is not None, **flags, **settings,
        )  # fmt: skip
        return y
    if norm is not None:
        x = norm_rows(x, norm, eps)
    settings = rows_settings(weight, n_out, gated=up is not None)
    tiles = triton.cdiv(n_out, settings["BLOCK_OUT"])
    _few_rows[(tiles, settings["PARTS"])](
        x, *matrices, *behind, y, *part_sums(settings, tiles, x.device), n_out,
        n_in, rows, ROWS=MAX_ROWS, **flags, **settings,
    )  # fmt: skip
    return y


def takes_one(weight: Tensor | Q4CudaWeight, rows: int) -> bool:
    """Tell whether a product with so many rows goes by the kernels for one row."""
    return rows == 1 if isinstance(weight, Tensor) else weight.run == ONE_RUN
