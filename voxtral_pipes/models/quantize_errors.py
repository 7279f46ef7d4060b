"""Compare a GGUF with the checkpoint it was made from: the error of every tensor, and whether its type allows it.

Scales are taken as stored, by ggml's rule or by that of the published file (formats.md section 0).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path

import numpy as np
import numpy.typing as npt

from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.gguf import GgufFile
from voxtral_pipes.formats.gguf_writer import codes, scales
from voxtral_pipes.formats.virtual import forget
from voxtral_pipes.models.dense_rows import DenseRows, Values
from voxtral_pipes.models.gguf_layout import GgufLayout
from voxtral_pipes.models.quantize import pieces

_HALF = 2.0**-11 * 1.01
"""Relative error of a scale, which is float16."""
_TINY = 2.0**-24
"""Absolute error of a scale below the normal range of float16."""
_LARGEST = {"Q4_0": (7.0, 8.0), "Q8_0": (127.0, 127.0)}
"""What the largest weight of a block may be divided by to give its scale."""
_FOLDED = 2e-5
"""Relative error of weight norm in float32, whose sums have thousands of terms."""


@dataclass(frozen=True, slots=True)
class TensorError:
    """How far one tensor is from its source."""

    name: str
    type: str
    max_abs: float
    rms: float
    """Relative: of the error, by that of the source."""
    off: int
    """Weights that are further off than the type allows."""


def tensor_errors(path: Path, rows: DenseRows, layout: GgufLayout) -> Iterator[TensorError]:
    """Yield the error of each tensor in the order of the file.

    Raises:
        BadModelError: `path` is malformed, or holds other tensors than `layout` says, or in another order.
    """
    file = GgufFile([path])
    for (name, info), (found, held) in zip(layout.tensors.items(), file.tensors.items(), strict=False):
        if (name, info) != (found, held):
            raise BadModelError(
                f"{path.name} holds {found} {list(held.shape)} of {held.type} where {name} {list(info.shape)} of "
                f"{info.type} is expected"
            )
    if len(file.tensors) != len(layout.tensors):
        raise BadModelError(
            f"{path.name} holds {len(file.tensors)} tensors, and {len(layout.tensors)} are expected"
        )
    at = ""
    max_abs = square = reference = 0.0
    off = 0
    for piece in pieces(rows, layout):
        info = layout.tensors[piece.name]
        if piece.name != at:
            at, max_abs, square, reference, off = piece.name, 0.0, 0.0, 0.0, 0
        row_bytes = info.nbytes // info.shape[0]
        data = file.bytes(piece.name, piece.begin * row_bytes, piece.end * row_bytes)
        stored = np.frombuffer(data, np.uint8)
        with np.errstate(all="ignore"):  # a corrupt file may hold anything
            source, error, allowed = _compare(rows, piece.name, piece.begin, piece.end, stored, info.type)
        forget(data)
        # Not `error > allowed`: values that are no numbers are off.
        off += int(np.count_nonzero(~(error <= allowed)))
        max_abs = max(max_abs, float(error.max()))
        square += float(np.square(error, dtype=np.float64).sum())
        reference += float(np.square(source, dtype=np.float64).sum())
        if piece.end == info.shape[0]:
            n = prod(info.shape)
            relative = sqrt(square / reference) if reference else sqrt(square / n)
            yield TensorError(at, info.type, max_abs, relative, off)


def _compare(
    rows: DenseRows, name: str, begin: int, end: int, stored: npt.NDArray[np.uint8], kind: str
) -> tuple[Values, Values, Values]:
    """Return source, absolute error, and the error that is allowed, of some rows; all alike in shape."""
    if kind != "F32":
        return _compare_blocks(rows.read(name, begin, end).reshape(-1, 32), stored, kind)
    held: Values = stored.view("<f4")
    source: Values
    if not rows.is_folded(name):
        source = rows.read(name, begin, end).reshape(-1)
        return source, np.abs(held - source), np.zeros_like(source)
    gain, direction = (half.astype(np.float64) for half in rows.halves(name))
    size = np.sqrt(np.square(direction).sum(axis=(1, 2), keepdims=True))
    exact = (gain * direction / size).reshape(-1)
    source = exact.astype(np.float32)
    return source, np.abs(held - exact).astype(np.float32), np.abs(source) * np.float32(_FOLDED)


def _compare_blocks(
    source: Values, stored: npt.NDArray[np.uint8], kind: str
) -> tuple[Values, Values, Values]:
    """Compare blocks of 32, [blocks, 32].

    Half a step is allowed, and a whole one where the largest code is held: ggml's rule gives the largest weight the
    code -8, so what is as large of the other sign is cut to 7.
    """
    step = np.abs(scales(stored, kind).astype(np.float32))
    held = codes(stored, kind)
    error = np.abs(held * scales(stored, kind).astype(np.float32) - source)
    largest = np.abs(source).max(axis=1, keepdims=True)
    cut = (held == 7) if kind == "Q4_0" else np.zeros_like(held, dtype=np.bool_)
    allowed = np.where(cut, step, step / 2) + largest * _HALF + _LARGEST[kind][1] * _TINY
    small, great = (largest / divisor for divisor in reversed(_LARGEST[kind]))
    fits = (step >= small * (1 - _HALF) - _TINY) & (step <= great * (1 + _HALF) + _TINY)
    return source, error, np.where(fits, allowed, np.float32(-1)).astype(np.float32)
