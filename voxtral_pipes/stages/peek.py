"""vx-peek: frames in; what they are, one line each, out.  Latency: none.

A report never fails because of what it shows: strings are escaped, values that are no numbers are counted.
numpy is imported with the first tensor.  Carried: the checks of `Incoming`, and what the collectors keep.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from math import prod
from typing import Any, Protocol

from voxtral_pipes.errors import BadInputError, VoxError
from voxtral_pipes.formats.frame import Frame, Tensor
from voxtral_pipes.models.codes import EMPTY_AUDIO, END_AUDIO, is_codes
from voxtral_pipes.stages.base import Incoming, tick_rate

MAX_SHOWN_IDS = 32
"""Token ids or semantic codes in a line of text; JSON has them all."""
MAX_SHOWN_CHARS = 1000
_MAX_DEPTH = 16
_SPECIAL_CODES = {EMPTY_AUDIO: "EMPTY", END_AUDIO: "END"}


class Collector(Protocol):
    """Keeps what a file is to be made of."""

    def add(self, frame: Frame) -> None:
        """Take one frame.

        Raises:
            VoxError: it does not go with those before; what is kept stays as it is.
        """


class Peek:
    """Watches one pipe; `problems` counts what was wrong, error frames included."""

    def __init__(
        self,
        show: Callable[[Frame, int | None], None],
        report: Callable[[str], None],
        collectors: Iterable[Collector] = (),
    ) -> None:
        self._show = show
        self._report = report
        self._collectors = list(collectors)
        self._rate_hz: int | None = None
        self.problems = 0

    def run(self, frames: Iterable[Frame]) -> None:
        """Show every frame that can be read, well placed or not, and report what is wrong."""
        watched = self._watch(frames)
        try:
            self._check(watched)
        except VoxError as error:
            self._wrong(error)
        try:
            for _ in watched:
                pass  # past the first fault in the sequence the frames are shown, but no longer checked
        except VoxError as error:
            self._wrong(error)

    def _check(self, frames: Iterator[Frame]) -> None:
        first = next(frames, None)
        out = first.fields.get("out") if first is not None else None
        needs = next(iter(out), "") if isinstance(out, dict) else ""
        if first is not None and first.kind == "hello" and not needs:
            raise BadInputError("hello does not say what is sent ('out')")
        checks = Incoming(chain([] if first is None else [first], frames), needs, "vx-peek")
        tick_rate(checks.hello())
        for _ in checks.read():
            pass
        if next(frames, None) is not None:
            raise BadInputError("frames follow the end of the pipe")

    def _watch(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        for frame in frames:
            if frame.kind == "hello" and self._rate_hz is None:
                try:
                    self._rate_hz = tick_rate(frame)
                except VoxError:
                    self._rate_hz = None  # `_check` reports it
            self._show(frame, self._rate_hz)
            self.problems += frame.kind == "error"
            for collector in self._collectors:
                try:
                    collector.add(frame)
                except VoxError as error:
                    self._wrong(error)
            yield frame

    def _wrong(self, error: VoxError) -> None:
        self.problems += 1
        self._report(str(error))


def describe(frame: Frame, tick_rate_hz: int | None) -> dict[str, Any]:
    """Return one frame as a dictionary that JSON can hold; `null` stands for no value and for no number."""
    shown: dict[str, Any] = {"kind": frame.kind}
    core = {"stream": frame.stream, "n": frame.seq, "t": frame.tick, "u": frame.ticks}
    shown.update({key: value for key, value in core.items() if value is not None})
    if frame.tick is not None and tick_rate_hz:
        shown["seconds"] = frame.tick / tick_rate_hz
    if frame.raw is not None:
        shown["bytes"] = len(frame.raw)
    if frame.tensors:
        shown["tensors"] = {
            name: _statistics(tensor) | (_codes(tensor) if name == "codes" else {})
            for name, tensor in frame.tensors.items()
        }
    if frame.ids is not None:
        shown["ids"] = frame.ids
    if frame.text is not None:
        shown["text"] = frame.text
    if frame.fields:
        shown["fields"] = _plain(frame.fields)
    if frame.meta:
        shown["m"] = _plain(frame.meta)
    return shown


def as_json(shown: Mapping[str, Any]) -> str:
    """Return a description as one line of JSON, ASCII only, so that no terminal obeys it."""
    return json.dumps(shown, allow_nan=False).replace("\x7f", "\\u007f")


def as_line(shown: Mapping[str, Any]) -> str:
    """Return a description as one line for people."""
    parts = [f"{_word(shown['kind']):<5}"]
    parts += [f"{short}={shown[key]}" for key, short in (("stream", "s"), ("n", "n")) if key in shown]
    if "t" in shown:
        parts.append(f"t={shown['t']}" + (f" ({shown['seconds']:.3f} s)" if "seconds" in shown else ""))
    parts += [f"{key}={shown[key]}" for key in ("u", "bytes") if key in shown]
    parts += [f"{_word(name)} {_numbers(numbers)}" for name, numbers in shown.get("tensors", {}).items()]
    if (ids := shown.get("ids")) is not None:
        parts.append(f"i={_listed(ids)}")
    if "text" in shown:
        parts.append(f"c={_short(shown['text'])}")
    parts += [f"{_word(key)}={_short(value)}" for key, value in shown.get("fields", {}).items()]
    if "m" in shown:
        parts.append(f"m={_short(shown['m'])}")
    return "  ".join(parts).rstrip()


def _statistics(tensor: Tensor) -> dict[str, Any]:
    """Return dtype, shape, and least, mean and greatest of the finite values."""
    shown: dict[str, Any] = {"dtype": tensor.dtype, "shape": list(tensor.shape)}
    if not prod(tensor.shape):
        return {**shown, "min": None, "mean": None, "max": None}
    import numpy as np

    values = np.atleast_1d(tensor.float32() if tensor.dtype == "bf16" else tensor.numpy())
    if tensor.dtype == "bool":
        values = values.view(np.uint8)
    with np.errstate(all="ignore"):
        if values.dtype.kind == "f":
            shown["nan"], shown["inf"] = int(np.isnan(values).sum()), int(np.isinf(values).sum())
            if shown["nan"] or shown["inf"]:
                values = values[np.isfinite(values)]
        if values.size:
            least, greatest = values.min().item(), values.max().item()
            return {
                **shown,
                "min": least,
                "mean": _plain(float(values.mean(dtype=np.float64))),
                "max": greatest,
            }
    return {**shown, "min": None, "mean": None, "max": None}


def _codes(tensor: Tensor) -> dict[str, Any]:
    """Return what rows of codes say beyond statistics: every semantic code, and the acoustic ones' range."""
    if not is_codes(tensor) or not prod(tensor.shape):
        return {}
    rows = tensor.numpy()
    acoustic = rows[:, 1:]
    semantic: list[int] = rows[:, 0].tolist()
    return {
        "semantic": semantic,
        "acoustic": {"min": acoustic.min().item(), "max": acoustic.max().item()},
        "end_rows": [row for row, code in enumerate(semantic) if code == END_AUDIO],
    }


def _listed(items: Sequence[object]) -> str:
    more = f" and {len(items) - MAX_SHOWN_IDS} more" if len(items) > MAX_SHOWN_IDS else ""
    return f"[{' '.join(map(str, items[:MAX_SHOWN_IDS]))}{more}]"


def _numbers(numbers: Mapping[str, Any]) -> str:
    parts = [f"{numbers['dtype']}[{','.join(map(str, numbers['shape']))}]"]
    if "semantic" in numbers:  # least and greatest of both kinds of codes together would say nothing
        named = [_SPECIAL_CODES.get(code, code) for code in numbers["semantic"]]
        parts.append(
            f"semantic {_listed(named)} acoustic {numbers['acoustic']['min']}..{numbers['acoustic']['max']}"
        )
        if hidden := [row for row in numbers["end_rows"] if row >= MAX_SHOWN_IDS]:
            parts.append(f"END in row {hidden[0]}")
        return " ".join(parts)
    parts += [f"{key} {numbers[key]:.4g}" for key in ("min", "mean", "max") if _is_number(numbers[key])]
    parts += [f"{key} {numbers[key]}" for key in ("nan", "inf") if numbers.get(key)]
    return " ".join(parts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _word(text: str) -> str:
    return (
        text if text.isascii() and text.replace("-", "_").isidentifier() and len(text) < 64 else _short(text)
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and _is_simple(value) else as_json(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}... ({len(text)} characters)"


def _is_simple(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _plain(value: Any, depth: int = 0) -> Any:
    """Return what JSON can hold of a metadata value."""
    if depth > _MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return value if value is None or isinstance(value, str | int | float) else str(value)
