"""Block-quantised weights as they lie in a GGUF file: Q4_0 and Q8_0, packed in memory for their whole life.

A block is 32 weights along the input axis (formats.md section 0; asr.md section 14.2):
Q4_0 is 18 bytes: float16 scale, then 16 bytes whose low nibbles are weights 0..15 and high nibbles 16..31,
value = (nibble - 8) * scale.  Q8_0 is 34 bytes: float16 scale, then 32 int8, value = int8 * scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

BLOCK_WEIGHTS = 32
BLOCK_BYTES = {"q4_0": 18, "q8_0": 34}

PackedFormat = Literal["q4_0", "q8_0"]


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight matrix [out, in] in packed blocks; read-only and shared by all streams."""

    format: PackedFormat
    blocks: Tensor
    """uint8 [out, in / 32, block bytes], contiguous; may be a view of a mapped file."""

    def __post_init__(self) -> None:
        expected = BLOCK_BYTES[self.format]
        if self.blocks.dtype != torch.uint8 or self.blocks.ndim != 3 or self.blocks.shape[2] != expected:
            raise ValueError(
                f"{self.format} needs uint8 [out, in / 32, {expected}], not {tuple(self.blocks.shape)}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), in weights."""
        return self.blocks.shape[0], self.blocks.shape[1] * BLOCK_WEIGHTS

    @property
    def device(self) -> torch.device:
        """Where the blocks are."""
        return self.blocks.device

    def to(self, device: torch.device) -> PackedWeight:
        """Return the same weight on `device`; no copy if it is there already."""
        return PackedWeight(self.format, self.blocks.to(device))


@dataclass(frozen=True, slots=True)
class OnednnWeight:
    """A bfloat16 matrix [out, in] in the order that oneDNN multiplies by; made by `cpu.lay_out`."""

    laid: Tensor
    """Opaque."""
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """A Q4_0 matrix [out, in] in the order of torch's int4 kernel for the CPU; made by `cpu.lay_out`."""

    codes: Tensor
    """uint8 [out, in / 2], in an order of its own."""
    scales: Tensor
    """bfloat16 [in / 32, out, 2]: scale, and zero, which is 0."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), in weights."""
        return self.codes.shape[0], 2 * self.codes.shape[1]


@dataclass(frozen=True, slots=True)
class Q4CudaWeight:
    """A Q4_0 matrix [out, in] as the kernels for one row on CUDA read it; made by `q4_rows.to_cuda_layout`."""

    codes: Tensor
    """int32 [out, words]."""
    scales: Tensor
    """float16 [out / 8, in / 32, 8]."""
    shape: tuple[int, int]
    """(out, in), in weights."""

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.codes.device


@dataclass(frozen=True, slots=True)
class Q4TileWeight:
    """A Q4_0 matrix [out, in] as the kernels for a few rows on CUDA read it; made by `q4_tile_layout.to_tiles`."""

    codes: Tensor
    """int16 [tiles, groups, 16, 32]."""
    scales: Tensor
    """float16 [tiles, groups, 16, 4]."""
    shape: tuple[int, int]
    """(out, in), in weights."""

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.codes.device


StoredWeight = Tensor | PackedWeight
"""A matrix [out, in] as a file holds it."""
Weight = StoredWeight | OnednnWeight | Int4Weight | Q4CudaWeight | Q4TileWeight
"""A matrix [out, in], dense, packed, or laid out for a device."""


@dataclass(frozen=True, slots=True)
class HeadWeight:
    """The tied embedding as a head on the CPU: a fast form to find the greatest logits, an exact one to settle them."""

    fast: OnednnWeight | Int4Weight
    exact: StoredWeight
