"""Q4_0 on CUDA: the layout that is fastest to read there for one row, and what is looked up in it, in Triton.

The blocks of a file (formats.md section 0) cannot be read in wide words.  On the device scales and codes lie apart,
18 bytes for 32 weights as before, and eight codes share a 32-bit word: nibble i of word 4 g + j is weight
32 g + 4 i + j of its row, so that four words, one wide load, are one block.  Nibbles are in two's complement, and the
scales of a block of 8 rows lie beside each other.

Products are in `q4_row`; those of a few rows, in another layout, in `q4_tiles`.

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

RUN, SCALE_ROWS = 4, 8
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
        codes = torch.cat((packed & 15, packed >> 4), dim=-1).view(-1, blocks, CODES, RUN) ^ 8
        for i, nibble in enumerate(codes.unbind(2)):
            words[first : first + REPACKED_ROWS] |= nibble.to(torch.int32) << 4 * i
    scales = weight.blocks[..., :2].contiguous().view(torch.float16)[..., 0]
    scales = F.pad(scales, (0, 0, 0, -n_out % SCALE_ROWS)).unflatten(0, (-1, SCALE_ROWS)).mT
    return Q4CudaWeight(words.flatten(1), scales.contiguous(), (n_out, n_in))


@triton.jit
def _unpack(codes, scales, y, n_out, n_in, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr):
    """Grid (blocks of rows, blocks of inputs)."""
    out = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    at = tl.program_id(1) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    row, there = out[:, None].to(tl.int64), (out < n_out)[:, None] & (at < n_in)[None, :]
    w = tl.load(codes + row * (n_in // 8) + (at // 32 * 4 + at % 4)[None, :], there, 0)
    place = (row // 8 * (n_in // 32) + at[None, :] // 32) * 8 + row % 8
    s = tl.load(scales + place, there, 0.0).to(tl.float32)
    value = ((w << (28 - at % 32 // 4 * 4)[None, :]) >> 28).to(tl.float32)
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
