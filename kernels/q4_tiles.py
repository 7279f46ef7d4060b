"""Q4_0 times a few rows, 1 to 16, on CUDA, in Triton: the flow head, and the encoder of live audio.

Weights lie in tiles, see `q4_tile_layout`.  A product takes the tile of the tensor core the long way round: 16 outputs
are its rows, the few rows of x its columns.  The warps of a program share the groups out, and their sums are added at
the end.  Codes and rows are exact, and the scale is applied to the float32 sums of each block.

A norm is no launch of its own: what makes rows leaves them times its gain as well, and the sums of their squares in
parts; the product behind it applies the factor to its sums (`NormRows`).

Equal to, up to rounding: the same by `reference.dequantize`, `rms_norm`, `linear`, `swiglu` and `rotate` in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
import triton
import triton.language as tl
from torch import Tensor

from voxtral_pipes.kernels.packed import Q4TileWeight, Weight
from voxtral_pipes.kernels.q4_tile_layout import GROUP, TILE, floats, load_scales, load_words, scale

MANY_TILES = 256
"""From here on a program takes two tiles, which share its reading of x, and there are programs enough."""
LONG_GROUPS = 40


@triton.jit
def _two_tiles(
    x, codes, scales, others, other_scales, tile, other_tile, n_in, rows, TWO: tl.constexpr, N: tl.constexpr,
    WARPS: tl.constexpr,
):  # fmt: skip
    """Return the products of a tile, and with TWO of another, with x [rows, n_in]: float32 [16, N] each."""
    word, row, groups = tl.arange(0, 32), tl.arange(0, N), tl.cdiv(n_in, 128)
    wide: tl.constexpr = x.dtype.element_ty == tl.bfloat16
    codes += tile.to(tl.int64) * groups * 512
    scales += tile.to(tl.int64) * groups * 64
    others += other_tile.to(tl.int64) * groups * 512
    other_scales += other_tile.to(tl.int64) * groups * 64
    total = tl.zeros([WARPS, 16, N], tl.float32)
    other = tl.zeros([WARPS, 16, N], tl.float32)
    group = tl.arange(0, WARPS)
    s = load_scales(scales, group, groups)
    t = load_scales(other_scales, group, groups) if TWO else s
    for start in range(0, groups, WARPS):
        group = start + tl.arange(0, WARPS)
        w = load_words(codes, group, groups)
        next_s = load_scales(scales, group + WARPS, groups)
        if TWO:
            u = load_words(others, group, groups)
            next_t = load_scales(other_scales, group + WARPS, groups)
        for i in tl.static_range(4):
            at = (group * 128 + 32 * i)[:, None] + word[None, :]
            held = tl.load(
                x + (row * n_in)[None, None, :] + at[:, :, None],
                (row < rows)[None, None, :] & (at < n_in)[:, :, None], 0.0,
            )  # fmt: skip
            total += tl.dot(floats(w, i, wide), held) * scale(s, i)
            if TWO:
                other += tl.dot(floats(u, i, wide), held) * scale(t, i)
        s = next_s
        if TWO:
            t = next_t
    return tl.sum(total, 0), tl.sum(other, 0)


@triton.jit
def _factor(squares, count, n_in, eps, N: tl.constexpr, PARTS: tl.constexpr):
    """Return the factors of a norm, [1, N], from parts of the sums of squares, [count, N]."""
    part = tl.arange(0, PARTS)[:, None]
    held = tl.load(squares + part * N + tl.arange(0, N)[None, :], part < count, 0.0)
    return tl.rsqrt(tl.sum(held, 0) / n_in + eps)[None, :]


@triton.jit
def _leave(
    total, bias, residual, y, gain, scaled, squares, tile, n_out, rows, apart, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_GAIN: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Store a tile [16, N], plus the bias and every `apart`th row of the residual, and what the next norm needs."""
    out, row = tile * 16 + tl.arange(0, 16)[:, None], tl.arange(0, N)[None, :]
    there, at = (out < n_out) & (row < rows), row * n_out + out
    if HAS_BIAS:
        total += tl.load(bias + out, out < n_out, 0.0).to(tl.float32)
    if HAS_RESIDUAL:
        total += tl.load(residual + row * apart * n_out + out, there, 0.0).to(tl.float32)
    rounded = total.to(y.dtype.element_ty)
    tl.store(y + at, rounded, there)
    if HAS_GAIN:
        held = tl.where(there, rounded.to(tl.float32), 0.0)
        tl.store(scaled + at, held * tl.load(gain + out, out < n_out, 0.0).to(tl.float32), there)
        tl.store(squares + tile * N + tl.arange(0, N), tl.sum(held * held, 0))


@triton.jit
def _linear(
    x, sums, codes, scales, up, up_scales, bias, residual, y, gain, scaled, squares, n_out, n_in, rows, apart, eps,
    count, HAS_NORM: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_GAIN: tl.constexpr, TWO: tl.constexpr, N: tl.constexpr, WARPS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Grid: tiles of outputs, or pairs of them with TWO; if GATED, each with that of `up`."""
    if GATED:
        tile = tl.program_id(0)
        total, beside = _two_tiles(x, codes, scales, up, up_scales, tile, tile, n_in, rows, True, N, WARPS)
        if HAS_NORM:
            factor = _factor(sums, count, n_in, eps, N, PARTS)
            total *= factor
            beside *= factor
        total = total * tl.sigmoid(total) * beside
        _leave(
            total, bias, residual, y, gain, scaled, squares, tile, n_out, rows, apart, HAS_BIAS, HAS_RESIDUAL, HAS_GAIN,
            N,
        )  # fmt: skip
    else:
        tile = tl.program_id(0) * (2 if TWO else 1)
        last = tl.cdiv(n_out, 16) - 1
        total, other = _two_tiles(
            x, codes, scales, codes, scales, tile, tl.minimum(tile + 1, last), n_in, rows, TWO, N, WARPS
        )
        if HAS_NORM:
            factor = _factor(sums, count, n_in, eps, N, PARTS)
            total *= factor
            other *= factor
        _leave(
            total, bias, residual, y, gain, scaled, squares, tile, n_out, rows, apart, HAS_BIAS, HAS_RESIDUAL, HAS_GAIN,
            N,
        )  # fmt: skip
        if TWO:
            _leave(
                other, bias, residual, y, gain, scaled, squares, tile + 1, n_out, rows, apart, HAS_BIAS, HAS_RESIDUAL,
                HAS_GAIN, N,
            )  # fmt: skip


@triton.jit
def _leave_projected(
    total, q_bias, k_bias, v_bias, turn, y, keys, values, slot, which, tile, n_q, n_kv, rows, capacity,
    HAS_Q_BIAS: tl.constexpr, HAS_K_BIAS: tl.constexpr, HAS_V_BIAS: tl.constexpr, IN_RING: tl.constexpr,
    HEAD: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Store a tile [16, N] of q (`which` 0), k or v: side by side, or IN_RING, rotated."""
    first, row = tile * 16, tl.arange(0, N)[None, :]
    out, n_out = first + tl.arange(0, 16)[:, None], tl.where(which == 0, n_q, n_kv)
    if HAS_Q_BIAS:
        total += tl.load(q_bias + out, (out < n_out) & (which == 0), 0.0).to(tl.float32)
    if HAS_K_BIAS:
        total += tl.load(k_bias + out, (out < n_out) & (which == 1), 0.0).to(tl.float32)
    if HAS_V_BIAS:
        total += tl.load(v_bias + out, (out < n_out) & (which == 2), 0.0).to(tl.float32)
    if IN_RING:
        even, odd = tl.split(tl.permute(tl.reshape(total, [8, 2, N]), [0, 2, 1]))
        out = first + 2 * tl.arange(0, 8)[:, None]
        there = (out < n_out) & (row < rows)
        angle = turn + row * HEAD + out % HEAD
        cos, sin = tl.load(angle, there & (which < 2), 1.0), tl.load(angle + 1, there & (which < 2), 0.0)
        if which == 0:
            at = y + row * n_q + out
        else:
            ring = keys if which == 1 else values
            at = ring + (out // HEAD).to(tl.int64) * capacity * HEAD + slot * HEAD + out % HEAD
        tl.store(at, even * cos - odd * sin, there)
        tl.store(at + 1, even * sin + odd * cos, there)
    else:
        before = tl.where(which == 0, 0, n_q + (which - 1) * n_kv)
        tl.store(y + row * (n_q + 2 * n_kv) + before + out, total, (out < n_out) & (row < rows))


@triton.jit
def _three(
    x, sums, q, q_scales, k, k_scales, v, v_scales, q_bias, k_bias, v_bias, turn, y, keys, values, position, n_q, n_kv,
    n_in, rows, capacity, eps, count, HAS_Q_BIAS: tl.constexpr, HAS_K_BIAS: tl.constexpr,
    HAS_V_BIAS: tl.constexpr, IN_RING: tl.constexpr, HEAD: tl.constexpr, TWO: tl.constexpr, N: tl.constexpr,
    WARPS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Grid: tiles of the outputs of each of three projections, or pairs of them with TWO."""
    each: tl.constexpr = 2 if TWO else 1
    program = tl.program_id(0)
    q_programs, kv_programs = tl.cdiv(n_q, 16 * each), tl.cdiv(n_kv, 16 * each)
    if program < q_programs:
        codes, scales, which, tile, n_out = q, q_scales, 0, program * each, n_q
    elif program < q_programs + kv_programs:
        codes, scales, which, tile, n_out = k, k_scales, 1, (program - q_programs) * each, n_kv
    else:
        tile = (program - q_programs - kv_programs) * each
        codes, scales, which, n_out = v, v_scales, 2, n_kv
    slot = tl.arange(0, N)[None, :]
    if IN_RING:
        slot = (tl.load(position) + slot) % capacity
    factor = _factor(sums, count, n_in, eps, N, PARTS)
    total, other = _two_tiles(
        x,
        codes,
        scales,
        codes,
        scales,
        tile,
        tl.minimum(tile + 1, tl.cdiv(n_out, 16) - 1),
        n_in,
        rows,
        TWO,
        N,
        WARPS,
    )
    _leave_projected(
        total * factor, q_bias, k_bias, v_bias, turn, y, keys, values, slot, which, tile, n_q, n_kv, rows, capacity,
        HAS_Q_BIAS, HAS_K_BIAS, HAS_V_BIAS, IN_RING, HEAD, N,
    )  # fmt: skip
    if TWO:
        _leave_projected(
            other * factor, q_bias, k_bias, v_bias, turn, y, keys, values, slot, which, tile + 1, n_q, n_kv, rows,
            capacity, HAS_Q_BIAS, HAS_K_BIAS, HAS_V_BIAS, IN_RING, HEAD, N,
        )  # fmt: skip


@triton.jit
def _begin(x, gain, scaled, squares, width, N: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (rows)."""
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    held = tl.load(x + row * width + at, at < width, 0.0).to(tl.float32)
    g = tl.load(gain + at, at < width, 0.0).to(tl.float32)
    tl.store(scaled + row * width + at, held * g, at < width)
    tl.store(squares + row, tl.sum(held * held, 0))


@dataclass(frozen=True, slots=True)
class NormRows:
    """Rows before a norm, with what a product behind it needs."""

    rows: Tensor
    """[R, N]."""
    scaled: Tensor
    """Times the gain, [R, N]."""
    squares: Tensor
    """Sums of squares, in parts: float32 [parts, `columns(R)`]."""


def columns(rows: int) -> int:
    """Return how many columns of the tensor core so many rows take."""
    return 8 if rows <= 8 else 16


def begin(x: Tensor, gain: Tensor) -> NormRows:
    """Begin the norm of rows that come from elsewhere: x [R, N], contiguous; gain [N]."""
    n = columns(len(x))
    scaled, squares = torch.empty_like(x), torch.empty(1, n, device=x.device)
    block = triton.next_power_of_2(x.shape[1])
    _begin[(len(x),)](x, gain, scaled, squares, x.shape[1], N=n, BLOCK=block, num_warps=8)
    return NormRows(x, scaled, squares)


def _settings(tiles: int, n_in: int, *, gated: bool = False) -> dict[str, Any]:
    """Return how to launch a product; measured on an H200 with the matrices of the flow head and of the encoder."""
    long = n_in >= LONG_GROUPS * GROUP
    if gated:
        return _launch(warps=2, stages=3)
    if tiles >= MANY_TILES:
        return _launch(warps=4, stages=3, two=True)
    return _launch(warps=8 if long else 4, stages=3)


def _launch(*, warps: int, stages: int, two: bool = False) -> dict[str, Any]:
    return {"TWO": two, "WARPS": warps, "num_warps": warps, "num_stages": stages}


def _sums(x: Tensor | NormRows) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Return what a product multiplies, the sums of squares of its norm, and flags."""
    if isinstance(x, NormRows):
        parts = triton.next_power_of_2(len(x.squares))
        return x.scaled, x.squares, {"N": x.squares.shape[1], "PARTS": parts}
    return x, x, {"N": columns(len(x)), "PARTS": 1}


def _multiply(
    x: Tensor | NormRows,
    weight: Q4TileWeight,
    *,
    eps: float = 0.0,
    up: Q4TileWeight | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    apart: int = 1,
    gain: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> NormRows:
    """Do what `linear` and `add` do; without `gain` there is no more than the rows in what is returned."""
    held, sums, flags = _sums(x)
    n_out, n_in = weight.shape
    tiles = triton.cdiv(n_out, TILE)
    settings = _settings(tiles, n_in, gated=up is not None)
    y = torch.empty(len(held), n_out, device=held.device, dtype=dtype or held.dtype)
    scaled, squares = y, y
    if gain is not None:
        parts = triton.cdiv(tiles, 2) * 2 if settings["TWO"] else tiles
        scaled, squares = torch.empty_like(y), torch.empty(parts, flags["N"], device=y.device)
    beside = weight if up is None else up
    _linear[(triton.cdiv(tiles, 2) if settings["TWO"] else tiles,)](
        held, sums, weight.codes, weight.scales, beside.codes, beside.scales, y if bias is None else bias,
        y if residual is None else residual, y, y if gain is None else gain, scaled, squares, n_out, n_in, len(held),
        apart, eps, len(sums), HAS_NORM=isinstance(x, NormRows), GATED=up is not None, HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None, HAS_GAIN=gain is not None, **flags, **settings,
    )  # fmt: skip
    return NormRows(y, scaled, squares)


def linear(
    x: Tensor | NormRows,
    weight: Q4TileWeight,
    *,
    eps: float = 0.0,
    up: Q4TileWeight | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Compute `W x`, or `silu(W x) * (U x)`, plus `bias` [M] and `residual` [R, M]; of the norm of x if that is begun.

    x [R, N], W and U [M, N], R at most 16; all tensors are contiguous, on one CUDA device and, but for weights, of one
    dtype.  Returns [R, M] in the dtype of x, or in `dtype`.
    """
    return _multiply(x, weight, eps=eps, up=up, bias=bias, residual=residual, dtype=dtype).rows


def add(
    residual: Tensor,
    x: Tensor,
    weight: Q4TileWeight,
    gain: Tensor,
    *,
    bias: Tensor | None = None,
    apart: int = 1,
) -> NormRows:
    """Compute `residual[::apart] + W x + b`, and begin the norm of it that has this gain: see `linear`."""
    return _multiply(x, weight, bias=bias, residual=residual, apart=apart, gain=gain)


TileProjections = tuple[Q4TileWeight, Q4TileWeight, Q4TileWeight]
"""Of q, k and v."""


def are_tiles(weights: tuple[Weight, Weight, Weight]) -> TypeGuard[TileProjections]:
    """Tell whether these are in tiles."""
    return all(isinstance(weight, Q4TileWeight) for weight in weights)


def three_products(
    x: NormRows, weights: TileProjections, eps: float, biases: tuple[Tensor | None, ...] = (None,) * 3
) -> Tensor:
    """Multiply the norm of x, [R, N], by three projections: [R, (H + 2 Hkv) D]."""
    n_q, n_kv = weights[0].shape[0], weights[1].shape[0]
    y = torch.empty(len(x.rows), n_q + 2 * n_kv, device=x.rows.device, dtype=x.rows.dtype)
    _project(x, weights, eps, biases, (y,) * 5, capacity=1, head=1, in_ring=False)
    return y


def project(
    x: NormRows,
    weights: TileProjections,
    eps: float,
    biases: tuple[Tensor | None, ...],
    turn: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
) -> Tensor:
    """Project T positions, rotate, and write keys and values into the ring: see `decode_attention.attend_few`.

    Returns the queries, [T, H, D].
    """
    _, capacity, head = keys.shape
    q = torch.empty(len(x.rows), weights[0].shape[0] // head, head, device=keys.device, dtype=keys.dtype)
    places = torch.view_as_real(turn), q, keys, values, position
    _project(x, weights, eps, biases, places, capacity=capacity, head=head, in_ring=True)
    return q


def _project(
    x: NormRows,
    weights: TileProjections,
    eps: float,
    biases: tuple[Tensor | None, ...],
    places: tuple[Tensor, ...],
    *,
    capacity: int,
    head: int,
    in_ring: bool,
) -> None:
    held, sums, flags = _sums(x)
    (n_q, n_in), n_kv = weights[0].shape, weights[1].shape[0]
    settings = _settings(triton.cdiv(n_q, TILE) + 2 * triton.cdiv(n_kv, TILE), n_in)
    each = 2 * TILE if settings["TWO"] else TILE
    operands = (part for weight in weights for part in (weight.codes, weight.scales))
    _three[(triton.cdiv(n_q, each) + 2 * triton.cdiv(n_kv, each),)](
        held, sums, *operands, *(held if bias is None else bias for bias in biases), *places, n_q, n_kv, n_in,
        len(held), capacity, eps, len(sums), HAS_Q_BIAS=biases[0] is not None, HAS_K_BIAS=biases[1] is not None,
        HAS_V_BIAS=biases[2] is not None, IN_RING=in_ring, HEAD=head, **flags, **settings,
    )  # fmt: skip
