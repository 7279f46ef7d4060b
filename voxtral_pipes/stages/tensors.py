"""Tensors between frames and torch, checked both ways: a NaN is an error where it enters or arises, not later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from voxtral_pipes.errors import BadInputError
from voxtral_pipes.formats.bf16 import is_finite
from voxtral_pipes.formats.frame import Frame, Tensor

DAMAGED = "the weights are damaged"
WIRE_OF = {torch.float32: "f32", torch.bfloat16: "bf16"}


def take_rows(frame: Frame, name: str, width: int) -> torch.Tensor:
    """Return tensor `name` of a data frame, [n, width] in float32 or bfloat16 as it travelled, on the CPU.

    Raises:
        BadInputError: it is missing, of another dtype or shape, or holds NaN or infinity.
    """
    tensor = _rows_of(frame, name, ("f32", "bf16"), width)
    array = tensor.numpy()
    finite = is_finite(array) if tensor.dtype == "bf16" else np.isfinite(array)
    if not finite.all():
        raise BadInputError(f"{name!r} at tick {frame.tick} holds NaN or infinity")
    copy = torch.from_numpy(array.copy())  # frame bytes are read-only
    return copy.view(torch.bfloat16) if tensor.dtype == "bf16" else copy


def take_codes(frame: Frame, width: int) -> npt.NDArray[np.uint16]:
    """Return the tensor `codes` of a data frame, uint16 [n, width], special offset included.

    Raises:
        BadInputError: it is missing, or of another dtype or shape.
    """
    return _rows_of(frame, "codes", ("u16",), width).numpy()


def _rows_of(frame: Frame, name: str, dtypes: Sequence[str], width: int) -> Tensor:
    tensor = frame.tensors.get(name)
    if tensor is None:
        raise BadInputError(f"a data frame at tick {frame.tick} holds no tensor {name!r}")
    if tensor.dtype not in dtypes:
        raise BadInputError(f"{name!r} is {tensor.dtype}, not {' or '.join(dtypes)}")
    if len(tensor.shape) != 2 or tensor.shape[1] != width:
        raise BadInputError(f"{name!r} has the shape {list(tensor.shape)}, not [n, {width}]")
    return tensor


def take_vector(frame: Frame, name: str, most: int) -> list[float]:
    """Return tensor `name`, f32 [n], as floats; none where the frame does not carry it.

    Raises:
        BadInputError: it is of another dtype or shape, or has more than `most`, as many as its rows can have.
    """
    tensor = frame.tensors.get(name)
    if tensor is None:
        return []
    if tensor.dtype != "f32" or len(tensor.shape) != 1:
        raise BadInputError(f"{name!r} is {tensor.dtype} {list(tensor.shape)}, not f32 [n]")
    if tensor.shape[0] > most:
        raise BadInputError(
            f"the frame at tick {frame.tick} brings {tensor.shape[0]} of {name!r}, {most} at most fit"
        )
    return cast(list[float], tensor.float32().tolist())


def not_finite(what: str, causes: str = DAMAGED) -> BadInputError:
    """Make the error of a stage whose result is no number, which is told where it arises."""
    return BadInputError(f"{what} not finite: {causes}, or --dtype f32 is needed")


def send_computed(rows: torch.Tensor, what: str, causes: str = DAMAGED) -> Tensor:
    """Wrap what a stage has computed, as `send_rows` does.

    Raises:
        BadInputError: it holds NaN or infinity (see `not_finite`).
    """
    held = rows.cpu()
    if not held.isfinite().all():
        raise not_finite(what, causes)
    return send_rows(held)


def send_rows(rows: torch.Tensor) -> Tensor:
    """Wrap [n, width] in the dtype it was computed in."""
    wire = WIRE_OF[rows.dtype]
    flat = rows.contiguous().cpu()
    array = flat.view(torch.int16).numpy().view(np.uint16) if wire == "bf16" else flat.numpy()
    return Tensor.of(array, wire)
