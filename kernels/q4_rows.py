"""Q4_0 on CUDA: the layout that is fastest to read there, and its products with one row, or a few, in Triton.

The blocks of a file (formats.md section 0) cannot be read in wide words.  On the device scales and codes lie apart,
18 bytes for 32 weights as before, and eight codes share a 32-bit word: with a run R, nibble i of word g R + j is weight
8 R g + R i + j of its row.

    R = 4    for one row: four words, one wide load, are one block; nibbles in two's complement, and the scales of a
             block of 8 rows beside each other
    R = 32   for a few rows: one nibble of 32 words is one block, and a tile of the tensor core

Products with one row are in `q4_row`.  Of a few rows, a code becomes a float without a conversion: set into the
mantissa of 2^23 / 2^p, p being where its nibble lies, it adds itself.  Codes and rows are bfloat16, both exact, and the
scale is applied to the float32 sums of each block.

Equal to, up to rounding: the same product by `reference.dequantize` in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from voxtral_pipes.kernels.packed import BLOCK_WEIGHTS, PackedWeight, Q4CudaWeight

ONE_RUN, FEW_RUN = 4, 32
SCALE_ROWS = 8
CODES = 8
"""In a word."""
REPACKED_ROWS = 4096
"""Rows laid out at a time: the transient copies are 16 times as large as they."""


def to_cuda_layout(weight: PackedWeight, run: int) -> Q4CudaWeight:
    """Lay a Q4_0 matrix out for products with one row (run 4) or a few (run 32); on the device it is on."""
    n_out, n_in = weight.shape
    groups = triton.cdiv(n_in, CODES * run)
    words = torch.zeros(n_out, groups, run, device=weight.device, dtype=torch.int32)
    for first in range(0, n_out, REPACKED_ROWS):
        packed = weight.blocks[first : first + REPACKED_ROWS, :, 2:]
        if run == ONE_RUN:
            packed = packed ^ 0x88
        codes = torch.zeros(len(packed), groups * CODES * run, device=weight.device, dtype=torch.uint8)
        codes[:, :n_in] = torch.cat((packed & 15, packed >> 4), dim=-1).flatten(1)
        for i, nibble in enumerate(codes.view(-1, groups, CODES, run).unbind(2)):
            words[first : first + REPACKED_ROWS] |= nibble.to(torch.int32) << 4 * i
    scales = weight.blocks[..., :2].contiguous().view(torch.float16)[..., 0]
    if run == FEW_RUN:
        whole = torch.zeros(groups * CODES, n_out, device=weight.device, dtype=torch.float16)
        whole[: scales.shape[1]] = scales.t()
        scales = whole
    else:
        scales = F.pad(scales, (0, 0, 0, -n_out % SCALE_ROWS)).unflatten(0, (-1, SCALE_ROWS)).mT
    return Q4CudaWeight(words.flatten(1), scales.contiguous(), run, (n_out, n_in))


@triton.jit
def code(words, N: tl.constexpr):
    """Return nibble N of each word less 8, exact, float32."""
    p: tl.constexpr = 4 * N if N < 5 else 4 * (N - 3)
    turned = words if N < 5 else words >> 12
    one: tl.constexpr = (150 - p) << 23
    zero: tl.constexpr = (1 << (23 - p)) + 8.0
    return ((turned & (15 << p)) | one).to(tl.float32, bitcast=True) - zero


@triton.jit
def packed_rows(
    x, codes, scales, up, up_scales, first, n_out, n_in, rows, begin_group, end_group, GATED: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """Return `x weight[first:]^T` of some groups of 256 inputs, and that of `up`, float32 [ROWS, BLOCK_OUT]; run 32."""
    row, out, word = tl.arange(0, ROWS), first + tl.arange(0, BLOCK_OUT), tl.arange(0, 32)
    words = tl.cdiv(n_in, 256) * 32
    total = tl.zeros([ROWS, BLOCK_OUT], tl.float32)
    other = tl.zeros([ROWS, BLOCK_OUT], tl.float32)
    for group in range(begin_group, end_group):
        place = out[None, :].to(tl.int64) * words + group * 32 + word[:, None]
        there = (out < n_out)[None, :] & (word >= 0)[:, None]
        w = tl.load(codes + place, there, 0)
        if GATED:
            u = tl.load(up + place, there, 0)
        for i in tl.static_range(8):
            at = group * 256 + 32 * i + word
            held = tl.load(
                x + row[:, None] * n_in + at[None, :], (row < rows)[:, None] & (at < n_in)[None, :], 0.0
            )
            s = tl.load(scales + (group * 8 + i) * n_out + out, out < n_out, 0.0).to(tl.float32)
            total += tl.dot(held, code(w, i).to(held.dtype)) * s[None, :]
            if GATED:
                t = tl.load(up_scales + (group * 8 + i) * n_out + out, out < n_out, 0.0).to(tl.float32)
                other += tl.dot(held, code(u, i).to(held.dtype)) * t[None, :]
    return total, other


@triton.jit
def _unpack(
    codes, scales, y, n_out, n_in, RUN: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr
):  # fmt: skip
    """Grid (blocks of rows, blocks of inputs)."""
    out = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    at = tl.program_id(1) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    row, there = out[:, None].to(tl.int64), (out < n_out)[:, None] & (at < n_in)[None, :]
    word, nibble = at // (8 * RUN) * RUN + at % RUN, at % (8 * RUN) // RUN
    w = tl.load(codes + row * (tl.cdiv(n_in, 8 * RUN) * RUN) + word[None, :], there, 0)
    block = at[None, :] // 32
    place = (row // 8 * (n_in // 32) + block) * 8 + row % 8 if RUN == 4 else block * n_out + row
    s = tl.load(scales + place, there, 0.0).to(tl.float32)
    held = w >> (4 * nibble)[None, :]
    if RUN == 4:
        held ^= 8
    # As in `code`, with the nibble shifted to where 16 is added to it.
    value = (((held & 15) << 19) | 0x41800000).to(tl.float32, bitcast=True) - 24.0
    tl.store(y + row * n_in + at[None, :], value * s, there)


@triton.jit
def _look_up(
    ids, offsets, codes, scales, y, count, n_in, HAS_OFFSETS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Grid (sums, blocks of inputs): the sum of `count` rows each; run 4."""
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for k in range(count):
        row = tl.load(ids + tl.program_id(0) * count + k)
        if HAS_OFFSETS:
            row += tl.load(offsets + k)
        w = tl.load(codes + row * (n_in // 8) + at // 32 * 4 + at % 4, at < n_in, 0)
        place = (row // 8 * (n_in // 32) + at // 32) * 8 + row % 8
        s = tl.load(scales + place, at < n_in, 0.0).to(tl.float32)
        total += ((w << (28 - at % 32 // 4 * 4)) >> 28).to(tl.float32) * s
    tl.store(y + tl.program_id(0) * n_in + at, total, at < n_in)


def unpack(weight: Q4CudaWeight, dtype: torch.dtype) -> Tensor:
    """Return the dense matrix [M, N], rounded once to `dtype`."""
    n_out, n_in = weight.shape
    y = torch.empty(n_out, n_in, device=weight.device, dtype=dtype)
    tile: dict[str, Any] = {"BLOCK_OUT": 4, "BLOCK_IN": 1024}
    grid = triton.cdiv(n_out, tile["BLOCK_OUT"]), triton.cdiv(n_in, tile["BLOCK_IN"])
    _unpack[grid](weight.codes, weight.scales, y, n_out, n_in, RUN=weight.run, **tile)
    return y


def look_up(ids: Tensor, weight: Q4CudaWeight, dtype: torch.dtype, offsets: Tensor | None = None) -> Tensor:
    """Return sums of rows: ids int64 [n, K], weight [M, N] of run 4, offsets int64 [K] added to the ids -> [n, N]."""
    n_in = weight.shape[1]
    y = torch.empty(ids.shape[0], n_in, device=ids.device, dtype=dtype)
    block = 8 * BLOCK_WEIGHTS
    _look_up[(ids.shape[0], triton.cdiv(n_in, block))](
        ids.contiguous(), ids if offsets is None else offsets,
        weight.codes, weight.scales, y, ids.shape[1], n_in, HAS_OFFSETS=offsets is not None, BLOCK=block,
    )  # fmt: skip
    return y
