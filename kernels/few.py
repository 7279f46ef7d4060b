"""A few rows, 2 to 16, times Q4_0 weights on CUDA, in Triton: the flow head, and the live encoder.

Weights are laid out in tiles of 16 outputs, and a tile in groups of 128 inputs, so that what a program reads is one
piece of memory: codes int16 [tiles, groups, 16, 32], nibble i of word j being weight 32 i + j of its group, and scales
float16 [tiles, groups, 16, 4].

A product keeps the tensor core's tiles the long way round: 16 outputs are its rows and the few rows of x its columns.
The warps of a program each take a part of the inputs, and their sums are added at the end.

The norm before a product is split: what makes a row leaves it times the gain of the next norm as well, and the sums of
its squares, in parts; the product applies the factor to its sums.

Launches overlap (programmatic dependent launch): a program asks for its weights, which nobody writes, to be brought
into the cache, and only then waits for the launches before it.  Every program waits before it reads or writes anything
else, so when a launch has ended, so have all before it.

Equal to, up to rounding: the same by `reference.dequantize`, `rms_norm`, `linear`, `swiglu`, in float32.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from voxtral_pipes.kernels.packed import PackedWeight

TILE, GROUP = 16, 128
LINE_WORDS = tl.constexpr(64)
"""int16 in a line of the cache."""


def _unpacking(nibble: int) -> tl.constexpr:
    """Set a nibble of two words into the mantissas of two bfloat16 128, and take 136 off."""
    shift = f"shr.b32 t, $1, {4 * nibble};" if nibble else "mov.b32 t, $1;"
    return tl.constexpr(
        "{ .reg .b32 t; " + shift + " lop3.b32 t, t, 0x000f000f, 0x43004300, 0xea; sub.rn.bf16x2 $0, t, $2; }"
    )


NIBBLE_0, NIBBLE_1, NIBBLE_2, NIBBLE_3 = map(_unpacking, range(4))
FETCH = tl.constexpr("prefetch.global.L2 [$1]; mov.b32 $0, 0;")


@triton.jit
def _by_pairs(words, ASM: tl.constexpr):
    """Return what the instructions ASM make of words, two at a time; 0x4308 is the bfloat16 136."""
    return tl.inline_asm_elementwise(
        ASM, "=r,r,r", [words, tl.full(words.shape, 0x4308, tl.int16)], dtype=tl.bfloat16, is_pure=True, pack=2
    )  # fmt: skip


@triton.jit
def codes_of(words, I: tl.constexpr, WIDE: tl.constexpr, ASM: tl.constexpr):
    """Return nibble I of each word less 8, exact: bfloat16 if WIDE, else float16."""
    if ASM:
        if I == 0:
            value = _by_pairs(words, NIBBLE_0)
        elif I == 1:
            value = _by_pairs(words, NIBBLE_1)
        elif I == 2:
            value = _by_pairs(words, NIBBLE_2)
        else:
            value = _by_pairs(words, NIBBLE_3)
    elif WIDE:
        value = ((((words >> (4 * I)) & 15) | 0x4300).to(tl.int16).to(tl.bfloat16, bitcast=True) - 136.0).to(tl.bfloat16)
    else:
        value = ((((words >> (4 * I)) & 15) | 0x6400).to(tl.int16).to(tl.float16, bitcast=True) - 1032.0).to(tl.float16)
    return value


@triton.jit
def fetch_ahead(codes, scales, groups, THREADS: tl.constexpr):
    """Ask for the codes and scales of a tile to be brought into the cache."""
    line = tl.arange(0, THREADS)
    for start in range(0, groups * 8, THREADS):
        at = tl.minimum(start + line, groups * 8 - 1)
        tl.inline_asm_elementwise(FETCH, "=r,l", [codes + at * LINE_WORDS], dtype=tl.int32, is_pure=False, pack=1)
    for start in range(0, groups, THREADS):
        at = tl.minimum(start + line, groups - 1)
        tl.inline_asm_elementwise(FETCH, "=r,l", [scales + at * LINE_WORDS], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _words(codes, group, groups):
    """Load the codes of some groups of a tile: int16 [W, 16, 32]."""
    out, word = tl.arange(0, 16)[None, :, None], tl.arange(0, 32)[None, None, :]
    return tl.load(codes + (group * 512)[:, None, None] + out * 32 + word, (group < groups)[:, None, None], 0)


@triton.jit
def _scales(scales, group, groups):
    """Load the four scales of some groups of a tile, as they lie: int64 [W, 16]."""
    out, there = tl.arange(0, 16)[None, :], (group < groups)[:, None]
    return tl.load(scales.to(tl.pointer_type(tl.int64)) + (group * 16)[:, None] + out, there, 0)


@triton.jit
def _scale(four, I: tl.constexpr):
    return ((four >> (16 * I)) & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)[:, :, None]


@triton.jit
def tile_sums(
    x, codes, scales, other_codes, other_scales, n_in, rows, TWO: tl.constexpr, ASM: tl.constexpr, N: tl.constexpr,
    WARPS: tl.constexpr,
):  # fmt: skip
    """Return the products of a tile of weights and of another with x [rows, n_in], float32 [16, N]."""
    word, row, groups = tl.arange(0, 32), tl.arange(0, N), tl.cdiv(n_in, 128)
    WIDE: tl.constexpr = x.dtype.element_ty == tl.bfloat16
    total = tl.zeros([WARPS, 16, N], tl.float32)
    other = tl.zeros([WARPS, 16, N], tl.float32)
    group = tl.arange(0, WARPS)
    s = _scales(scales, group, groups)
    t = _scales(other_scales, group, groups) if TWO else s
    for start in range(0, groups, WARPS):
        group = start + tl.arange(0, WARPS)
        w = _words(codes, group, groups)
        next_s = _scales(scales, group + WARPS, groups)
        if TWO:
            u = _words(other_codes, group, groups)
            next_t = _scales(other_scales, group + WARPS, groups)
        for i in tl.static_range(4):
            at = (group * 128 + 32 * i)[:, None] + word[None, :]
            held = tl.load(
                x + (row * n_in)[None, None, :] + at[:, :, None], (row < rows)[None, None, :] & (at < n_in)[:, :, None],
                0.0,
            )  # fmt: skip
            total += tl.dot(codes_of(w, i, WIDE, ASM), held) * _scale(s, i)
            if TWO:
                other += tl.dot(codes_of(u, i, WIDE, ASM), held) * _scale(t, i)
        s = next_s
        if TWO:
            t = next_t
    return tl.sum(total, 0), tl.sum(other, 0)


@triton.jit
def factor(squares, count, n_in, eps, N: tl.constexpr, BLOCK: tl.constexpr):
    """Return the factors of the norm of N rows, from parts of their sums of squares [count, N]."""
    part = tl.arange(0, BLOCK)[:, None]
    held = tl.load(squares + part * N + tl.arange(0, N)[None, :], part < count, 0.0)
    return tl.rsqrt(tl.sum(held, 0) / n_in + eps)


@triton.jit
def leave(
    total, y, residual, gain, scaled, squares, first, n_out, rows, apart, part, HAS_RESIDUAL: tl.constexpr,
    HAS_GAIN: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Store a tile [16, N] of outputs, plus every `apart`th row of the residual; and what the next norm needs."""
    out, row = first + tl.arange(0, 16)[:, None], tl.arange(0, N)[None, :]
    there, at = (out < n_out) & (row < rows), row * n_out + out
    if HAS_RESIDUAL:
        total += tl.load(residual + row * apart * n_out + out, there, 0.0).to(tl.float32)
    rounded = total.to(y.dtype.element_ty)
    tl.store(y + at, rounded, there)
    if HAS_GAIN:
        held = tl.where(there, rounded.to(tl.float32), 0.0)
        tl.store(scaled + at, held * tl.load(gain + out, out < n_out, 0.0).to(tl.float32), there)
        tl.store(squares + part * N + tl.arange(0, N), tl.sum(held * held, 0))


@triton.jit
def _few_linear(
    x, sums, codes, scales, up, up_scales, bias, residual, gain, y, scaled, squares, n_out, n_in, rows, apart, eps, count,
    HAS_SUMS: tl.constexpr, GATED: tl.constexpr, TWO: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_GAIN: tl.constexpr, ASM: tl.constexpr, PDL: tl.constexpr, FETCHED: tl.constexpr,
    N: tl.constexpr, WARPS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Grid: tiles of outputs, or pairs of them with TWO."""
    groups = tl.cdiv(n_in, 128)
    tile = tl.program_id(0) * 2 if TWO and not GATED else tl.program_id(0)
    codes += tile.to(tl.int64) * groups * 512
    scales += tile.to(tl.int64) * groups * 64
    if GATED:
        other_codes, other_scales = up + tile.to(tl.int64) * groups * 512, up_scales + tile.to(tl.int64) * groups * 64
    else:
        other_codes, other_scales = codes + groups * 512, scales + groups * 64
    if PDL:
        cuda.gdc_launch_dependents()
    if FETCHED:
        fetch_ahead(codes, scales, groups, WARPS * 32)
        if GATED or TWO:
            fetch_ahead(other_codes, other_scales, groups, WARPS * 32)
    if PDL:
        cuda.gdc_wait()
    total, other = tile_sums(
        x, codes, scales, other_codes, other_scales, n_in, rows, GATED or TWO, ASM, N, WARPS
    )
    if HAS_SUMS:
        shrink = factor(sums, count, n_in, eps, N, PARTS)[None, :]
        total *= shrink
        other *= shrink
    if GATED:
        total = total * tl.sigmoid(total) * other
    out = tile * 16 + tl.arange(0, 16)
    if HAS_BIAS:
        total += tl.load(bias + out, out < n_out, 0.0).to(tl.float32)[:, None]
        if TWO and not GATED:
            other += tl.load(bias + 16 + out, out + 16 < n_out, 0.0).to(tl.float32)[:, None]
    leave(total, y, residual, gain, scaled, squares, tile * 16, n_out, rows, apart, tile, HAS_RESIDUAL, HAS_GAIN, N)
    if TWO and not GATED:
        leave(
            other, y, residual, gain, scaled, squares, tile * 16 + 16, n_out, rows, apart, tile + 1, HAS_RESIDUAL, HAS_GAIN,
            N,
        )


@triton.jit
def _few_ring(
    x, sums, codes, scales, bias, turn, q, keys, values, position, n_q, n_kv, n_in, rows, capacity, eps, count,
    HEAD: tl.constexpr, HAS_BIAS: tl.constexpr, ASM: tl.constexpr, PDL: tl.constexpr, FETCHED: tl.constexpr,
    TWO: tl.constexpr, N: tl.constexpr, WARPS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Grid: tiles, or pairs, of the outputs of three projections that lie one behind another; a tile is in one head."""
    groups = tl.cdiv(n_in, 128)
    tile = tl.program_id(0) * 2 if TWO else tl.program_id(0)
    codes += tile.to(tl.int64) * groups * 512
    scales += tile.to(tl.int64) * groups * 64
    if PDL:
        cuda.gdc_launch_dependents()
    if FETCHED:
        fetch_ahead(codes, scales, groups, WARPS * 32)
        if TWO:
            fetch_ahead(codes + groups * 512, scales + groups * 64, groups, WARPS * 32)
    if PDL:
        cuda.gdc_wait()
    shrink = factor(sums, count, n_in, eps, N, PARTS)[None, :]
    slot = (tl.load(position) + tl.arange(0, N)) % capacity
    total, other = tile_sums(
        x, codes, scales, codes + groups * 512, scales + groups * 64, n_in, rows, TWO, ASM, N, WARPS
    )
    _turn_tile(
        total * shrink, bias, turn, q, keys, values, slot, tile * 16, n_q, n_kv, rows, capacity, HEAD, HAS_BIAS, N
    )
    if TWO:
        _turn_tile(
            other * shrink, bias, turn, q, keys, values, slot, tile * 16 + 16, n_q, n_kv, rows, capacity, HEAD, HAS_BIAS,
            N,
        )  # fmt: skip


@triton.jit
def _turn_tile(
    total, bias, turn, q, keys, values, slot, first, n_q, n_kv, rows, capacity, HEAD: tl.constexpr,
    HAS_BIAS: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Rotate a tile [16, N] of q or k, and store it; nothing if it is behind the last."""
    if HAS_BIAS:
        out = first + tl.arange(0, 16)
        total += tl.load(bias + out, out < n_q + 2 * n_kv, 0.0).to(tl.float32)[:, None]
    pair, row = tl.arange(0, 8)[:, None], tl.arange(0, N)[None, :]
    even, odd = tl.split(tl.permute(tl.reshape(total, [8, 2, N]), [0, 2, 1]))
    there = (row < rows) & (first + 2 * pair < n_q + 2 * n_kv)
    turns = (row < rows) & (first + 2 * pair < n_q + n_kv)
    angle = turn + row * HEAD + first % HEAD + 2 * pair
    cos, sin = tl.load(angle, turns, 1.0), tl.load(angle + 1, turns, 0.0)
    left, right = even * cos - odd * sin, even * sin + odd * cos
    if first < n_q:
        at = q + row * n_q + first + 2 * pair
    else:
        own = (first - n_q) % n_kv
        base = keys if first < n_q + n_kv else values
        at = base + (own // HEAD).to(tl.int64) * capacity * HEAD + slot[None, :] * HEAD + own % HEAD + 2 * pair
    tl.store(at, left, there)
    tl.store(at + 1, right, there)


@triton.jit
def _few_move(
    state, velocity, moved, weight, time, condition, gain, tokens, scaled, squares, guidance, length, n_state, dim,
    PDL: tl.constexpr, N: tl.constexpr, BLOCK_STATE: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """As `flow_step._move`, and what the norm of the first layer needs."""
    if PDL:
        cuda.gdc_launch_dependents()
    k, out = tl.arange(0, BLOCK_STATE), tl.program_id(0) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    there, inside = k < n_state, out < dim
    w = tl.load(weight + out[:, None] * n_state + k[None, :], inside[:, None] & there[None, :], 0.0)
    g = tl.load(gain + out, inside, 0.0).to(tl.float32)
    if PDL:
        cuda.gdc_wait()
    guided, free = tl.load(velocity + k, there, 0.0), tl.load(velocity + n_state + k, there, 0.0)
    x = tl.load(state + k, there, 0.0) + (guidance * guided + (1 - guidance) * free) * length
    if tl.program_id(0) == 0:
        tl.store(moved + k, x, there)
    sums = squares + tl.program_id(0) * N
    first = tl.sum(w.to(tl.float32) * x.to(w.dtype).to(tl.float32)[None, :], 1).to(tokens.dtype.element_ty)
    second = tl.load(time + out, inside, 0.0)
    for branch in tl.static_range(2):
        third = tl.load(condition + branch * dim + out, inside, 0.0)
        at = 3 * branch * dim + out
        _token(first, g, tokens + at, scaled + at, sums + 3 * branch, inside)
        _token(second, g, tokens + at + dim, scaled + at + dim, sums + 3 * branch + 1, inside)
        _token(third, g, tokens + at + 2 * dim, scaled + at + 2 * dim, sums + 3 * branch + 2, inside)


@triton.jit
def _token(value, gain, token, scaled, sums, inside):
    wide = tl.where(inside, value.to(tl.float32), 0.0)
    tl.store(token, value, inside)
    tl.store(scaled, wide * gain, inside)
    tl.store(sums, tl.sum(wide * wide, 0))


@triton.jit
def _squares(x, gain, scaled, squares, width, N: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (rows): what a product needs of rows that come from elsewhere."""
    at = tl.arange(0, BLOCK)
    held = tl.load(x + tl.program_id(0) * width + at, at < width, 0.0).to(tl.float32)
    tl.store(scaled + tl.program_id(0) * width + at, held * tl.load(gain + at, at < width, 0.0).to(tl.float32), at < width)
    tl.store(squares + tl.program_id(0), tl.sum(held * held, 0))


@dataclass(frozen=True, slots=True)
class FewWeight:
    """A Q4_0 matrix [out, in], or several one behind another, laid out as this module says."""

    codes: Tensor
    scales: Tensor
    shape: tuple[int, int]


def lay_out(weight: PackedWeight) -> FewWeight:
    """Lay a Q4_0 matrix out, on the device it is on."""
    n_out, n_in = weight.shape
    tiles, groups = triton.cdiv(n_out, TILE), triton.cdiv(n_in, GROUP)
    packed = weight.blocks[:, :, 2:]
    codes = torch.zeros(tiles * TILE, groups * 4, 32, device=weight.device, dtype=torch.uint8)
    codes[:n_out, : n_in // 32] = torch.cat((packed & 15, packed >> 4), dim=-1)
    nibbles = codes.view(tiles, TILE, groups, 4, 32).transpose(1, 2).to(torch.int32)
    words = sum(nibbles[:, :, :, i] << 4 * i for i in range(4))
    assert isinstance(words, Tensor)
    scales = torch.zeros(tiles * TILE, groups * 4, device=weight.device, dtype=torch.float16)
    scales[:n_out, : n_in // 32] = weight.blocks[..., :2].contiguous().view(torch.float16)[..., 0]
    placed = scales.view(tiles, TILE, groups, 4).transpose(1, 2).contiguous()
    return FewWeight(words.to(torch.int16).contiguous(), placed, weight.shape)


def behind(*weights: FewWeight) -> FewWeight:
    """Put matrices of whole tiles one behind another."""
    codes, scales = (torch.cat([getattr(weight, name) for weight in weights]) for name in ("codes", "scales"))
    return FewWeight(codes, scales, (sum(weight.shape[0] for weight in weights), weights[0].shape[1]))


@dataclass(frozen=True, slots=True)
class Ahead:
    """Rows times the gain of the norm before their next product, and the sums of their squares in parts."""

    scaled: Tensor
    squares: Tensor
    """float32 [parts, 8 or 16]."""


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WAYS: dict[str, Any] = {"ASM": not INTERPRETED, "PDL": not INTERPRETED, "FETCHED": not INTERPRETED}
LAUNCH: dict[str, Any] = {"num_stages": 3}


def launch_of(ways: dict[str, Any], **launch: Any) -> dict[str, Any]:
    return {**launch, **({} if INTERPRETED else {"launch_pdl": ways["PDL"]})}


def columns(rows: int) -> int:
    return 8 if rows <= 8 else 16


def squares_of(x: Tensor, gain: Tensor) -> Ahead:
    n = columns(x.shape[0])
    scaled, squares = torch.empty_like(x), torch.empty(1, n, device=x.device)
    block = triton.next_power_of_2(x.shape[1])
    _squares[(x.shape[0],)](x, gain, scaled, squares, x.shape[1], N=n, BLOCK=block, num_warps=8)
    return Ahead(scaled, squares)


def linear(
    x: Tensor | Ahead,
    weight: FewWeight,
    *,
    eps: float = 0.0,
    up: FewWeight | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    apart: int = 1,
    gain: Tensor | None = None,
    dtype: torch.dtype | None = None,
    two: bool = False,
    warps: int = 8,
    stages: int = 3,
    ways: dict[str, Any] | None = None,
) -> tuple[Tensor, Ahead | None]:
    ways = ways or WAYS
    rows_x = x.scaled if isinstance(x, Ahead) else x
    sums = x.squares if isinstance(x, Ahead) else None
    rows, n_in = rows_x.shape
    n_out, n = weight.shape[0], columns(rows)
    tiles = triton.cdiv(n_out, TILE)
    two = two and up is None and tiles % 2 == 0
    y = torch.empty(rows, n_out, device=rows_x.device, dtype=dtype or rows_x.dtype)
    scaled = torch.empty_like(y) if gain is not None else y
    squares = torch.empty(tiles, n, device=y.device) if gain is not None else y
    count = 1 if sums is None else len(sums)
    other = weight if up is None else up
    _few_linear[(tiles // 2 if two else tiles,)](
        rows_x, y if sums is None else sums, weight.codes, weight.scales, other.codes, other.scales,
        y if bias is None else bias, y if residual is None else residual, y if gain is None else gain, y, scaled,
        squares, n_out, n_in, rows, apart, eps, count, HAS_SUMS=sums is not None, GATED=up is not None, TWO=two,
        HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, HAS_GAIN=gain is not None, N=n, WARPS=warps,
        PARTS=triton.next_power_of_2(count), num_warps=warps, num_stages=stages, **ways, **launch_of(ways),
    )  # fmt: skip
    return y, None if gain is None else Ahead(scaled, squares)


def ring(
    x: Ahead, weight: FewWeight, bias: Tensor | None, turn: Tensor, keys: Tensor, values: Tensor, position: Tensor,
    n_q: int, *, eps: float, two: bool = False, warps: int = 8, stages: int = 3, ways: dict[str, Any] | None = None,
) -> Tensor:  # fmt: skip
    ways = ways or WAYS
    rows, n_in = x.scaled.shape
    groups, capacity, head = keys.shape
    tiles, n, count = weight.shape[0] // TILE, columns(rows), len(x.squares)
    two = two and tiles % 2 == 0
    q = torch.empty(rows, n_q // head, head, device=keys.device, dtype=keys.dtype)
    _few_ring[(tiles // 2 if two else tiles,)](
        x.scaled, x.squares, weight.codes, weight.scales, q if bias is None else bias, torch.view_as_real(turn), q,
        keys, values, position, n_q, groups * head, n_in, rows, capacity, eps, count, HEAD=head,
        HAS_BIAS=bias is not None, TWO=two, N=n, WARPS=warps, PARTS=triton.next_power_of_2(count), num_warps=warps,
        num_stages=stages, **ways, **launch_of(ways),
    )  # fmt: skip
    return q


def move(
    state: Tensor, velocity: Tensor, weight: Tensor, time: Tensor, condition: Tensor, gain: Tensor, guidance: float,
    length: float, *, block: int = 64, ways: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor, Ahead]:  # fmt: skip
    ways = ways or WAYS
    n_state, dim = state.shape[0], time.shape[0]
    moved = torch.empty_like(state)
    tokens = torch.empty(6, dim, device=state.device, dtype=time.dtype)
    scaled, programs = torch.empty_like(tokens), triton.cdiv(dim, block)
    squares = torch.empty(programs, 8, device=state.device)
    _few_move[(programs,)](
        state, velocity, moved, weight, time, condition, gain, tokens, scaled, squares, guidance, length, n_state, dim,
        PDL=ways["PDL"], N=8, BLOCK_STATE=triton.next_power_of_2(n_state), BLOCK_DIM=block, num_warps=4,
        **launch_of(ways),
    )  # fmt: skip
    return moved, tokens, Ahead(scaled, squares)
