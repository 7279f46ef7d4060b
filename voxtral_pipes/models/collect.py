"""Frames, or the samples of a WAV, collected into a numpy .npz (vx-peek --npz).

Keys of frames, for each stream S (a tensor name is reduced to letters, digits and `_`):

    sS.NAME           the tensor NAME of all frames, joined along the first axis; bf16 widened to float32
    sS.NAME.rows      int64 [frames]  rows that each data frame had of it (0 where it had none)
    sS.frames.t       int64 [frames]  start ticks, -2**63 where absent; likewise .u (duration), .n (sequence)
    sS.frames.ids     int64           token ids, joined
    sS.frames.n_ids   int64 [frames]  token ids that each data frame had
    tick_rate_hz      int64 []        ticks a second, 0 where hello does not say

and of a WAV:

    samples           float32 [n, channels]  nominal range [-1, 1)
    rate_hz           int64 []               sample frames a second

What is kept is bounded: past `MAX_BYTES` nothing more is taken, and that is an error.
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from voxtral_pipes.errors import BadInputError, UnsupportedError
from voxtral_pipes.formats.frame import Frame
from voxtral_pipes.formats.wav import PcmFormat

MAX_BYTES = 1 << 30
_ABSENT = -(2**63)
_FRAME_BYTES = 256  # what a frame, and each tensor in it, costs beside its values


@dataclass(slots=True)
class _Joined:
    """One tensor of one stream."""

    parts: list[npt.NDArray[Any]] = field(default_factory=list)
    rows: array[int] = field(default_factory=lambda: array("q"))
    refused: bool = False


@dataclass(slots=True)
class _Kept:
    """One stream."""

    tensors: dict[str, _Joined] = field(default_factory=dict)
    columns: dict[str, array[int]] = field(
        default_factory=lambda: {key: array("q") for key in ("t", "u", "n", "ids", "n_ids")}
    )


class NpzCollector:
    """Keeps the data frames of all streams."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._streams: dict[int, _Kept] = {}
        self._left = max_bytes
        self._max = max_bytes
        self._rate_hz = 0

    def add(self, frame: Frame) -> None:
        """Keep one frame.

        Raises:
            UnsupportedError: the bound is reached; said once.
            BadInputError: a tensor changes its dtype or row shape; said once a tensor, the rest is kept.
        """
        if frame.kind == "hello" and isinstance(rate := frame.fields.get("tb"), int):
            self._rate_hz = min(abs(rate), 2**31)
        if frame.kind not in ("data", "text") or frame.stream is None or self._left < 0:
            return
        ids = frame.ids or []
        self._left -= (
            _FRAME_BYTES
            + 8 * len(ids)
            + sum(_FRAME_BYTES + 2 * len(tensor.data) for tensor in frame.tensors.values())
        )
        if self._left < 0:
            raise _too_much(self._max)
        kept = self._streams.setdefault(frame.stream, _Kept())
        for key, value in (("t", frame.tick), ("u", frame.ticks), ("n", frame.seq), ("n_ids", len(ids))):
            kept.columns[key].append(_ABSENT if value is None else min(value, 2**63 - 1))
        kept.columns["ids"].extend(ids)
        self._tensors(kept, frame)

    def _tensors(self, kept: _Kept, frame: Frame) -> None:
        changed = []
        for name, tensor in frame.tensors.items():
            joined = kept.tensors.setdefault(re.sub(r"\W", "_", name, flags=re.ASCII), _Joined())
            values = np.atleast_1d(tensor.float32() if tensor.dtype == "bf16" else tensor.numpy())
            like = joined.parts[0] if joined.parts else values
            if joined.refused or like.shape[1:] != values.shape[1:] or like.dtype != values.dtype:
                if not joined.refused:
                    changed.append(f"{name!r} from {_form(like)} to {_form(values)}")
                joined.refused = True
                continue
            joined.parts.append(values)
            joined.rows.extend([0] * (len(kept.columns["t"]) - len(joined.rows)))
            joined.rows[-1] += len(values)
        if changed:
            raise BadInputError(f"stream {frame.stream}: tensor {changed[0]}; the .npz holds it up to there")

    def write(self, file: BinaryIO) -> None:
        """Write the .npz."""
        arrays: dict[str, Any] = {"tick_rate_hz": np.array(self._rate_hz, np.int64)}
        for stream, kept in self._streams.items():
            for key, column in kept.columns.items():
                arrays[f"s{stream}.frames.{key}"] = np.array(column, np.int64)
            for name, joined in kept.tensors.items():
                joined.rows.extend([0] * (len(kept.columns["t"]) - len(joined.rows)))
                arrays[f"s{stream}.{name}"] = np.concatenate(joined.parts)
                arrays[f"s{stream}.{name}.rows"] = np.array(joined.rows, np.int64)
        np.savez(file, **arrays)


class SamplesCollector:
    """Keeps the samples of one WAV."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._parts: list[npt.NDArray[np.float32]] = []
        self._left = max_bytes
        self._max = max_bytes
        self._format: PcmFormat | None = None

    def begin(self, form: PcmFormat) -> None:
        """Take what the header says."""
        self._format = form

    def add(self, samples: npt.NDArray[np.float32]) -> None:
        """Keep samples, float32 [n, channels].

        Raises:
            UnsupportedError: the bound is reached; said once.
        """
        if self._left < 0:
            return
        self._left -= _FRAME_BYTES + 2 * samples.nbytes
        if self._left < 0:
            raise _too_much(self._max)
        self._parts.append(samples.copy())

    def write(self, file: BinaryIO) -> None:
        """Write the .npz; without samples where the header never came."""
        form = self._format
        nothing = np.empty((0, form.channels if form else 0), np.float32)
        samples = np.concatenate([nothing, *self._parts])
        np.savez(file, samples=samples, rate_hz=np.array(form.rate_hz if form else 0, np.int64))


def _too_much(limit: int) -> UnsupportedError:
    return UnsupportedError(f"more than {limit >> 20} MiB for the .npz: it holds what came before that")


def _form(values: npt.NDArray[Any]) -> str:
    return f"{values.dtype}[-1{''.join(f',{size}' for size in values.shape[1:])}]"
