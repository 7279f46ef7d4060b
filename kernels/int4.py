"""Q4_0 in the order of torch's int4 kernel for the CPU, made of a GGUF's bytes, and unpacked again.

The kernel takes `lanes` outputs at a time, as many as the processor's registers are wide.  For each input there are
lanes / 2 bytes, and byte d holds the codes of output d, in the low half, and of output d + lanes / 2.  That is how
torch does it and nothing it promises, so `lanes` asks its own operator, once; where that orders otherwise, it does all
the work, at a tenth of the speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from voxtral_pipes.kernels.packed import BLOCK_WEIGHTS, Int4Weight, PackedWeight

LANES = (64, 32)
"""With AVX512, and with AVX2."""
PIECE_WEIGHTS = 3 << 19
"""Weights that are laid out or unpacked at a time, so that they stay in the cache."""
LOW_HALVES, HIGH_HALVES = 0x0F0F0F0F0F0F0F0F, -0x0F0F0F0F0F0F0F10
"""Of the eight bytes of an int64."""


@cache
def lanes() -> int:
    """Return how many outputs lie together, as far as this module knows the order; 0 where it does not."""
    for width in LANES:
        blocks = (
            torch.arange(2 * width * 2 * 18, dtype=torch.int32)
            .mul_(37)
            .to(torch.uint8)
            .view(2 * width, 2, 18)
        )
        laid = torch.empty(2 * width, BLOCK_WEIGHTS, dtype=torch.uint8)
        _lay_out_into(laid, blocks, width)
        if torch.equal(laid, _laid_by_torch(blocks)):
            return width
    return 0


def lay_out(weight: PackedWeight) -> Tensor:
    """Return the codes of a Q4_0 matrix, uint8 [out, in / 2], in the kernel's order; out is a multiple of 16."""
    n_out, n_in = weight.shape
    if not _knows(n_out):
        return _laid_by_torch(weight.blocks)
    laid = torch.empty(n_out, n_in // 2, dtype=torch.uint8)
    _lay_out_into(laid, weight.blocks, lanes())
    return laid


def can_unpack(weight: PackedWeight | Int4Weight) -> bool:
    """Tell whether this module knows the order of a matrix's codes."""
    return _knows(weight.shape[0])


def unpack(codes: Tensor, scales: Tensor, into: Tensor | None = None) -> Iterator[Tensor]:
    """Yield `(code - 8) * scale` rounded to bfloat16, a few rows [.., in] at a time, from the first to the last.

    `codes` is as `lay_out` returns it where `can_unpack`, `scales` float32 [out, in / 32].  Each piece is a part of
    `into`, bfloat16 [out, in]; without that, it is overwritten by the next.
    """
    n_out, n_in, width = codes.shape[0], 2 * codes.shape[1], lanes()
    most = _piece_rows(n_in, width)
    # Buffers for all pieces: to take and give them back each time costs as much as to fill them.
    together = torch.empty(most // width, width // 2, n_in, dtype=torch.uint8)
    apart = torch.empty(most // width, 2, width // 2, n_in, dtype=torch.int8)
    wide = torch.empty(most, n_in)
    rounded = torch.empty(most, n_in, dtype=torch.bfloat16) if into is None else into
    for first in range(0, n_out, most):
        rows = min(most, n_out - first)
        groups = rows // width
        here = codes[first : first + rows].view(groups, n_in, width // 2)
        eights = together[:groups].copy_(here.transpose(1, 2)).view(torch.int64)
        halves = apart[:groups].view(torch.int64)
        torch.bitwise_and(eights, LOW_HALVES, out=halves[:, 0])
        torch.bitwise_and(eights.bitwise_right_shift_(4), LOW_HALVES, out=halves[:, 1])
        values = wide[:rows].copy_(apart[:groups].sub_(8).view(rows, n_in))
        values.view(rows, -1, BLOCK_WEIGHTS).mul_(scales[first : first + rows, :, None])
        piece = rounded[:rows] if into is None else rounded[first : first + rows]
        yield piece.copy_(values)


class Room:
    """Memory for one unpacked matrix after the other: taken and given back for each, it would be left in pieces."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.bfloat16)

    def dequantize(self, weight: PackedWeight) -> Tensor:
        """Unpack Q4_0 to bfloat16 [out, in], overwritten by the next: `reference.dequantize`, several times as fast.

        Only where `can_unpack`.
        """
        n_out, n_in = weight.shape
        if self._memory.numel() < n_out * n_in:
            self._memory = torch.empty(n_out * n_in, dtype=torch.bfloat16)
        scales = weight.blocks[..., :2].contiguous().view(torch.float16)[..., 0].float()
        result = self._memory[: n_out * n_in].view(n_out, n_in)
        for _ in unpack(lay_out(weight), scales, into=result):
            pass
        return result


def _knows(n_out: int) -> bool:
    return lanes() > 0 and n_out % lanes() == 0


def _piece_rows(n_in: int, width: int) -> int:
    return max(1, PIECE_WEIGHTS // (n_in * width)) * width


def _lay_out_into(laid: Tensor, blocks: Tensor, width: int) -> None:
    """Lay blocks uint8 [out, in / 32, 18] out: two codes of one output a byte become one code each of two outputs."""
    n_out, per_row, _ = blocks.shape
    most = _piece_rows(per_row * BLOCK_WEIGHTS, width)
    bare = torch.empty(most // width, 2, width // 2, per_row * 16, dtype=torch.uint8)
    one, other = (torch.empty(most // width, width // 2, per_row * 2, dtype=torch.int64) for _ in range(2))
    for start in range(0, n_out, most):
        rows = min(most, n_out - start)
        groups = rows // width
        here = bare[:groups]
        # By twos, as far as the scale in front of each block lets them be aligned.
        here.view(torch.int16).view(rows, per_row, 8).copy_(
            blocks[start : start + rows].view(torch.int16)[..., 1:]
        )
        first, second = here.view(torch.int64).unbind(1)
        a, b = one[:groups], other[:groups]
        by_input = laid[start : start + rows].view(groups, per_row, 2, 16, width // 2)
        inputs = a.view(torch.uint8).view(groups, width // 2, per_row, 16).permute(0, 2, 3, 1)
        torch.bitwise_and(first, LOW_HALVES, out=a)
        torch.bitwise_left_shift(second, 4, out=b)
        a |= b.bitwise_and_(HIGH_HALVES)
        by_input[:, :, 0] = inputs  # weights 0..15 of each block
        torch.bitwise_right_shift(first, 4, out=a).bitwise_and_(LOW_HALVES)
        a |= torch.bitwise_and(second, HIGH_HALVES, out=b)
        by_input[:, :, 1] = inputs  # 16..31


def _laid_by_torch(blocks: Tensor) -> Tensor:
    packed = blocks[..., 2:]
    codes = torch.cat((packed & 15, packed >> 4), dim=-1).to(torch.int32).flatten(1)
    laid: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    return laid
