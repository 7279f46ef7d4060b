"""Q4_0 on CUDA: the layout that is fastest to read there for one row, and its products and look-ups, in Triton.

The blocks of a file (formats.md section 0) cannot be read in wide words.  On the device scales and codes lie apart,
18 bytes for 32 weights as before, and eight codes share a 32-bit word: nibble i of word 4 g + j is weight
32 g + 4 i + j of its row, so that four words, one wide load, are one block and need one scale.

A code becomes a float without a conversion: set into the mantissa of 2^23 / 2^p, p being where its nibble lies, it
adds itself.

Equal to, up to rounding: the same product by `reference.dequantize` in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from voxtral_pipes.kernels.packed import BLOCK_WEIGHTS, PackedWeight, Q4CudaWeight

RUN = 4
CODES = 8
"""In a word."""
REPACKED_ROWS = 4096
"""Rows laid out at a time: the transient copies are 16 times as large as they."""


def to_cuda_layout(weight: PackedWeight) -> Q4CudaWeight:
    """Lay a Q4_0 matrix out for products with one row, on the device it is on."""
    n_out, n_in = weight.shape
    blocks = n_in // BLOCK_WEIGHTS
    words = torch.zeros(n_out, blocks, RUN, device=weight.device, dtype=torch.int32)
    for first in range(0, n_out, REPACKED_ROWS):
        packed = weight.blocks[first : first + REPACKED_ROWS, :, 2:]
        codes = torch.cat((packed & 15, packed >> 4), dim=-1).view(-1, blocks, CODES, RUN)
        for i, nibble in enumerate(codes.unbind(2)):
            words[first : first + REPACKED_ROWS] |= nibble.to(torch.int32) << 4 * i
    scales = weight.blocks[..., :2].contiguous().view(torch.float16)[..., 0]
    return Q4CudaWeight(words.flatten(1), scales.contiguous(), (n_out, n_in))


@triton.jit
def code(words, N: tl.constexpr):
    """Return nibble N of each word less 8, exact, float32."""
    p: tl.constexpr = 4 * N if N < 5 else 4 * (N - 3)
    turned = words if N < 5 else words >> 12
    one: tl.constexpr = (150 - p) << 23
    zero: tl.constexpr = (1 << (23 - p)) + 8.0
    return ((turned & (15 << p)) | one).to(tl.float32, bitcast=True) - zero


@triton.jit
def _tile(codes, scales, out, start, n_out, n_blocks, BLOCKS: tl.constexpr):
    """Load words [out, 4 BLOCKS] and scales [out, BLOCKS], from block `start` on."""
    word, block = 4 * start + tl.arange(0, 4 * BLOCKS), start + tl.arange(0, BLOCKS)
    row = out[:, None].to(tl.int64)
    inside = (out < n_out)[:, None]
    w = tl.load(
        codes + row * (4 * n_blocks) + word[None, :], inside & (word < 4 * n_blocks)[None, :], 0,
        eviction_policy="evict_first",
    )  # fmt: skip
    s = tl.load(scales + row * n_blocks + block[None, :], inside & (block < n_blocks)[None, :], 0.0)
    return w, s


@triton.jit
def packed_row(
    x, gain, codes, scales, up, up_scales, first, n_out, n_in, eps, HAS_NORM: tl.constexpr, GATED: tl.constexpr,
    AHEAD: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Return `norm(x) weight[first:]^T`, gated if asked for, float32 [BLOCK_OUT].

    With AHEAD, and no gate, a tile is asked for before the last one is multiplied.
    """
    tl.static_assert(not (AHEAD and GATED))
    out, n_blocks = first + tl.arange(0, BLOCK_OUT), n_in // 32
    total = tl.zeros([BLOCK_OUT, BLOCKS], tl.float32)
    other = tl.zeros([BLOCK_OUT, BLOCKS], tl.float32)
    squares = tl.zeros([4 * BLOCKS], tl.float32)
    if AHEAD:
        w, s = _tile(codes, scales, out, 0, n_out, n_blocks, BLOCKS)
    for start in range(0, n_blocks, BLOCKS):
        if AHEAD:
            next_w, next_s = _tile(codes, scales, out, start + BLOCKS, n_out, n_blocks, BLOCKS)
        else:
            w, s = _tile(codes, scales, out, start, n_out, n_blocks, BLOCKS)
        if GATED:
            u, t = _tile(up, up_scales, out, start, n_out, n_blocks, BLOCKS)
        word = 4 * start + tl.arange(0, 4 * BLOCKS)
        part = tl.zeros([BLOCK_OUT, 4 * BLOCKS], tl.float32)
        beside = tl.zeros([BLOCK_OUT, 4 * BLOCKS], tl.float32)
        for i in tl.static_range(8):
            at = word // 4 * 32 + 4 * i + word % 4
            held = tl.load(x + at, at < n_in, 0.0).to(tl.float32)
            if HAS_NORM:
                squares += held * held
                held *= tl.load(gain + at, at < n_in, 0.0).to(tl.float32)
            part += code(w, i) * held[None, :]
            if GATED:
                beside += code(u, i) * held[None, :]
        total += tl.sum(tl.reshape(part, [BLOCK_OUT, BLOCKS, 4]), 2) * s.to(tl.float32)
        if GATED:
            other += tl.sum(tl.reshape(beside, [BLOCK_OUT, BLOCKS, 4]), 2) * t.to(tl.float32)
        if AHEAD:
            w, s = next_w, next_s
    result = tl.sum(total, 1)
    if HAS_NORM:
        factor = tl.rsqrt(tl.sum(squares, 0) / n_in + eps)
        result *= factor
    if GATED:
        up_result = tl.sum(other, 1)
        if HAS_NORM:
            up_result *= factor
        result = result * tl.sigmoid(result) * up_result
    return result


@triton.jit
def _unpack(codes, scales, y, n_out, n_in, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr):
    """Grid (blocks of rows, blocks of inputs)."""
    out = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    at = tl.program_id(1) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    row, there = out[:, None].to(tl.int64), (out < n_out)[:, None] & (at < n_in)[None, :]
    w = tl.load(codes + row * (n_in // 8) + (at // 32 * 4 + at % 4)[None, :], there, 0)
    s = tl.load(scales + row * (n_in // 32) + at[None, :] // 32, there, 0.0).to(tl.float32)
    # As in `code`, with the nibble shifted to where 16 is added to it.
    value = ((((w >> (at % 32 // 4 * 4)[None, :]) & 15) << 19) | 0x41800000).to(
        tl.float32, bitcast=True
    ) - 24.0
    tl.store(y + row * n_in + at[None, :], value * s, there)


@triton.jit
def _look_up(
    ids, offsets, codes, scales, y, count, n_in, HAS_OFFSETS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Grid (sums, blocks of inputs): the sum of `count` rows each."""
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for k in range(count):
        row = tl.load(ids + tl.program_id(0) * count + k)
        if HAS_OFFSETS:
            row += tl.load(offsets + k)
        w = tl.load(codes + row * (n_in // 8) + at // 32 * 4 + at % 4, at < n_in, 0)
        s = tl.load(scales + row * (n_in // 32) + at // 32, at < n_in, 0.0).to(tl.float32)
        total += (((w >> (at % 32 // 4 * 4)) & 15) - 8).to(tl.float32) * s
    tl.store(y + tl.program_id(0) * n_in + at, total, at < n_in)


def unpack(weight: Q4CudaWeight, dtype: torch.dtype) -> Tensor:
    """Return the dense matrix [M, N], rounded once to `dtype`."""
    n_out, n_in = weight.shape
    y = torch.empty(n_out, n_in, device=weight.device, dtype=dtype)
    tile: dict[str, Any] = {"BLOCK_OUT": 4, "BLOCK_IN": 1024}
    grid = triton.cdiv(n_out, tile["BLOCK_OUT"]), triton.cdiv(n_in, tile["BLOCK_IN"])
    _unpack[grid](weight.codes, weight.scales, y, n_out, n_in, **tile)
    return y


def look_up(ids: Tensor, weight: Q4CudaWeight, dtype: torch.dtype, offsets: Tensor | None = None) -> Tensor:
    """Return sums of rows: ids int64 [n, K], weight [M, N], offsets int64 [K] added to the ids -> [n, N]."""
    n_in = weight.shape[1]
    y = torch.empty(ids.shape[0], n_in, device=ids.device, dtype=dtype)
    block = 8 * BLOCK_WEIGHTS
    _look_up[(ids.shape[0], triton.cdiv(n_in, block))](
        ids.contiguous(), ids if offsets is None else offsets,
        weight.codes, weight.scales, y, ids.shape[1], n_in, HAS_OFFSETS=offsets is not None, BLOCK=block,
    )  # fmt: skip
    return y
