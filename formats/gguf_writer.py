"""Write GGUF v3: the header, and the values of tensors by ggml's rounding rule (formats.md section 0).

Rows are packed piece by piece, so that no tensor need be in memory whole.  The `gguf` package packs; its writer is not
used because it pads the last tensor and cannot go on with a file begun earlier.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from voxtral_pipes.formats.gguf import TYPE_NAMES
from voxtral_pipes.formats.gguf_table import ALIGNMENT, MAGIC, entry_head, padded
from voxtral_pipes.formats.table import TYPE_SIZES, TensorInfo

_CODES = {name: code for code, name in TYPE_NAMES.items()}
_TEXT = 8


def header(architecture: str, tensors: Mapping[str, TensorInfo]) -> bytes:
    """Return all that comes before the data, padded: one metadata pair, and the tensors in the given order.

    Their data follow in that order, each but the last padded to `ALIGNMENT`.
    """
    parts = [
        MAGIC + struct.pack("<IQQ", 3, len(tensors), 1),
        _text("general.architecture") + struct.pack("<I", _TEXT) + _text(architecture),
    ]
    offset = 0
    for name, info in tensors.items():
        parts.append(entry_head(name, info.shape, _CODES[info.type]) + struct.pack("<Q", offset))
        offset = aligned(offset + info.nbytes)
    whole = b"".join(parts)
    return whole.ljust(aligned(len(whole)), b"\0")


def aligned(offset: int) -> int:
    """Return where the next tensor may begin."""
    return padded(offset, ALIGNMENT)


def encode(values: npt.NDArray[np.float32], kind: str) -> npt.NDArray[np.uint8]:
    """Return the bytes of whole rows as a file holds them; uint8, one axis.

    `values`: float32, [rows, ...]; the last axis is a multiple of 32 where `kind` is Q4_0 or Q8_0.  F32 is the other.

    Raises:
        ValueError: values are not finite, or too large for the scale of a block (float16).
    """
    import gguf

    with np.errstate(all="ignore"):  # a block of denormals has a scale of zero, whatever its codes are
        packed = gguf.quantize(values, gguf.GGMLQuantizationType[kind])
    stored: npt.NDArray[np.uint8] = np.ascontiguousarray(packed).reshape(-1).view(np.uint8)
    finite = values if kind == "F32" else scales(stored, kind)
    if not np.isfinite(finite).all():
        raise ValueError("values are not finite, or too large")
    return stored


def scales(stored: npt.NDArray[np.uint8], kind: str) -> npt.NDArray[np.float16]:
    """Return the scale of each block of Q4_0 or Q8_0; float16, [blocks, 1]."""
    return np.ascontiguousarray(_blocks(stored, kind)[:, :2]).view("<f2")


def codes(stored: npt.NDArray[np.uint8], kind: str) -> npt.NDArray[np.int8]:
    """Return the whole numbers that the scales of Q4_0 (-8 to 7) or Q8_0 (-128 to 127) multiply; int8, [blocks, 32]."""
    held = _blocks(stored, kind)[:, 2:]
    if kind == "Q4_0":
        held = np.concatenate([held & 15, held >> 4], axis=1) - np.uint8(8)
    numbers: npt.NDArray[np.int8] = held.view(np.int8)
    return numbers


def _blocks(stored: npt.NDArray[np.uint8], kind: str) -> npt.NDArray[np.uint8]:
    return stored.reshape(-1, TYPE_SIZES[kind][1])


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
