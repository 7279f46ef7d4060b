"""Q4_0 on CUDA in tiles of 16 outputs, for products with a few rows: the layout, what reads it, and its way back.

A tile lies in groups of 128 inputs, so that what a program reads is one piece of memory: codes int16
[tiles, groups, 16, 32], nibble i of word j being weight 32 i + j of its group, and scales float16
[tiles, groups, 16, 4].

A code becomes a float by being set into the mantissa of 128, or of 1024 in float16, exactly.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from voxtral_pipes.kernels.packed import BLOCK_WEIGHTS, PackedWeight, Q4TileWeight

TILE, GROUP = 16, 128
LAID_OUT_TILES = 256
"""At a time: the transient copies are 16 times as large as they."""
DEVICE = tl.constexpr(not triton.knobs.runtime.interpret)
"""Triton's interpreter cannot run instructions of the device."""


def _unpacking(nibble: int) -> tl.constexpr:
    """Set a nibble of two words into the mantissas of two bfloat16 128, and take 136 off."""
    shift = f"shr.b32 t, $1, {4 * nibble};" if nibble else "mov.b32 t, $1;"
    return tl.constexpr(
        "{ .reg .b32 t; " + shift + " lop3.b32 t, t, 0x000f000f, 0x43004300, 0xea; sub.rn.bf16x2 $0, t, $2; }"
    )


NIBBLE_0, NIBBLE_1, NIBBLE_2, NIBBLE_3 = map(_unpacking, range(4))


def to_tiles(weight: PackedWeight) -> Q4TileWeight:
    """Lay a Q4_0 matrix out in tiles, on the device it is on."""
    n_out, n_in = weight.shape
    tiles, groups, blocks = triton.cdiv(n_out, TILE), triton.cdiv(n_in, GROUP), n_in // BLOCK_WEIGHTS
    words = torch.empty(tiles, groups, TILE, 32, device=weight.device, dtype=torch.int16)
    scales = torch.empty(tiles, groups, TILE, 4, device=weight.device, dtype=torch.float16)
    for first in range(0, tiles, LAID_OUT_TILES):
        some = weight.blocks[first * TILE : (first + LAID_OUT_TILES) * TILE]
        here = slice(first, first + triton.cdiv(len(some), TILE))
        codes = torch.zeros(
            len(words[here]) * TILE, groups * 4, BLOCK_WEIGHTS, device=weight.device, dtype=torch.uint8
        )
        codes[: len(some), :blocks] = torch.cat((some[..., 2:] & 15, some[..., 2:] >> 4), dim=-1)
        nibbles = codes.view(-1, TILE, groups, 4, 32).transpose(1, 2).to(torch.int32)
        words[here] = sum((nibbles[..., i, :] << 4 * i for i in range(1, 4)), nibbles[..., 0, :])
        steps = torch.zeros(len(codes), groups * 4, device=weight.device, dtype=torch.float16)
        steps[: len(some), :blocks] = some[..., :2].contiguous().view(torch.float16)[..., 0]
        scales[here] = steps.view(-1, TILE, groups, 4).transpose(1, 2)
    return Q4TileWeight(words, scales, (n_out, n_in))


@triton.jit
def _by_pairs(words, ASM: tl.constexpr):
    """Return what the instructions ASM make of words, two at a time; 0x4308 is the bfloat16 136."""
    return tl.inline_asm_elementwise(
        ASM, "=r,r,r", [words, tl.full(words.shape, 0x4308, tl.int16)], dtype=tl.bfloat16, is_pure=True, pack=2
    )  # fmt: skip


@triton.jit
def floats(words, NIBBLE: tl.constexpr, WIDE: tl.constexpr):
    """Return nibble NIBBLE of each word less 8, exact: bfloat16 if WIDE, else float16."""
    if not WIDE:
        held = (((words >> (4 * NIBBLE)) & 15) | 0x6400).to(tl.int16)
        value = (held.to(tl.float16, bitcast=True) - 1032.0).to(tl.float16)
    elif not DEVICE:
        held = (((words >> (4 * NIBBLE)) & 15) | 0x4300).to(tl.int16)
        value = (held.to(tl.bfloat16, bitcast=True) - 136.0).to(tl.bfloat16)
    elif NIBBLE == 0:
        value = _by_pairs(words, NIBBLE_0)
    elif NIBBLE == 1:
        value = _by_pairs(words, NIBBLE_1)
    elif NIBBLE == 2:
        value = _by_pairs(words, NIBBLE_2)
    else:
        value = _by_pairs(words, NIBBLE_3)
    return value


@triton.jit
def load_words(codes, group, groups):
    """Load the codes of some groups of a tile: int16 [W, 16, 32]."""
    out, word = tl.arange(0, 16)[None, :, None], tl.arange(0, 32)[None, None, :]
    return tl.load(codes + (group * 512)[:, None, None] + out * 32 + word, (group < groups)[:, None, None], 0)


@triton.jit
def load_scales(scales, group, groups):
    """Load the four scales of some groups of a tile, as they lie: int64 [W, 16]."""
    out, there = tl.arange(0, 16)[None, :], (group < groups)[:, None]
    return tl.load(scales.to(tl.pointer_type(tl.int64)) + (group * 16)[:, None] + out, there, 0)


@triton.jit
def scale(four, NIBBLE: tl.constexpr):
    """Return the scales of the blocks that nibble NIBBLE is of: float32 [W, 16, 1] of four as they lie [W, 16]."""
    return (
        ((four >> (16 * NIBBLE)) & 0xFFFF)
        .to(tl.int16)
        .to(tl.float16, bitcast=True)
        .to(tl.float32)[:, :, None]
    )


@triton.jit
def _unpack(codes, scales, y, n_out, n_in, BLOCK_IN: tl.constexpr):
    """Grid (tiles, blocks of inputs)."""
    row, at = tl.arange(0, 16)[:, None], tl.program_id(1) * BLOCK_IN + tl.arange(0, BLOCK_IN)[None, :]
    out = tl.program_id(0) * 16 + row
    there = (out < n_out) & (at < n_in)
    line = (tl.program_id(0).to(tl.int64) * tl.cdiv(n_in, 128) + at // 128) * 16 + row
    words = tl.load(codes + line * 32 + at % 32, there, 0).to(tl.int32)
    s = tl.load(scales + line * 4 + at % 128 // 32, there, 0.0).to(tl.float32)
    value = ((words >> (at % 128 // 32 * 4)) & 15) - 8
    tl.store(y + out.to(tl.int64) * n_in + at, value.to(tl.float32) * s, there)


def unpack(weight: Q4TileWeight, dtype: torch.dtype) -> Tensor:
    """Return the dense matrix [M, N], rounded once to `dtype`."""
    n_out, n_in = weight.shape
    y = torch.empty(n_out, n_in, device=weight.device, dtype=dtype)
    block = 4 * GROUP
    _unpack[(triton.cdiv(n_out, TILE), triton.cdiv(n_in, block))](
        weight.codes, weight.scales, y, n_out, n_in, BLOCK_IN=block, num_warps=8
    )
    return y
