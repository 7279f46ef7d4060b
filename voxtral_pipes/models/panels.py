"""The panels of a picture of frames: what one tensor of one stream looks like, seconds across.

Each takes tensors one after another, holds what `columns.Columns` keeps of them, and draws at the end.  numpy
alone: the axes to draw on are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from voxtral_pipes.errors import BadInputError
from voxtral_pipes.formats.frame import Tensor
from voxtral_pipes.models.codes import CODE_OFFSET, END_AUDIO, is_codes
from voxtral_pipes.models.columns import Columns, first, mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_BINS = 1024
MAX_DIMENSIONS = 1 << 16
HIDDEN_BANDS = 64
"""Groups of dimensions that a hidden state is drawn in."""
SEMANTIC_ROWS = 4
"""Height of the semantic strip, in acoustic codebooks."""
_HZ_TICKS = (0, 250, 500, 1000, 2000, 4000, 8000)
_GOLDEN = 0.6180339887498949


class Panel(Protocol):
    """One stream of one kind of tensor."""

    def add(self, tensor: Tensor) -> None:
        """Take one tensor.

        Raises:
            BadInputError: it is not what this panel draws, or not of the shape of those before; the message
                goes on from the name of the tensor.
        """

    def draw(self, axes: Axes, begin_s: float, end_s: float) -> None:
        """Draw what was taken; it was `begin_s` to `end_s` on the clock of the source."""


class MelPanel:
    """A log-mel spectrogram, Hz on the mel scale upwards; tensors are f32 [n, bins]."""

    def __init__(self) -> None:
        self._columns: Columns | None = None

    def add(self, tensor: Tensor) -> None:
        """Take mel frames."""
        rows = _floats(tensor, MAX_BINS, "is no spectrogram")
        if self._columns is None:
            self._columns = Columns(rows.shape[1], np.float32, mean)
        _check_width(self._columns, rows, "bins")
        self._columns.add(rows)

    def draw(self, axes: Axes, begin_s: float, end_s: float) -> None:
        """Draw the spectrogram; NaN stays blank."""
        assert self._columns is not None
        n_bins = self._columns.width
        axes.imshow(
            self._columns.image().T, cmap="magma", extent=(begin_s, _shown(self._columns, begin_s, end_s), 0, n_bins),
            origin="lower", aspect="auto", interpolation="nearest",
        )  # fmt: skip
        axes.set_ylim(-0.5, n_bins + 0.5)
        axes.set_yticks([bin_of(hz, n_bins) for hz in _HZ_TICKS], [str(hz) for hz in _HZ_TICKS])
        axes.set_ylabel("Hz (mel scale)")


class HiddenPanel:
    """Hidden states as the RMS of groups of dimensions, and of all; tensors are f32 or bf16 [n, dimensions].

    The mean square is what is averaged, over dimensions and over time: values of both signs would cancel.
    """

    def __init__(self) -> None:
        self._columns: Columns | None = None
        self._dimensions = 0

    def add(self, tensor: Tensor) -> None:
        """Take hidden states."""
        rows = _floats(tensor, MAX_DIMENSIONS, "is no sequence of hidden states")
        if self._columns is None:
            self._dimensions = rows.shape[1]
            self._columns = Columns(min(HIDDEN_BANDS, self._dimensions) + 1, np.float32, mean)
        if rows.shape[1] != self._dimensions:
            raise BadInputError(f"changes from {self._dimensions} dimensions to {rows.shape[1]}")
        with np.errstate(all="ignore"):
            squares = np.square(rows, dtype=np.float32)
            starts = self._starts()
            sizes = np.diff([*starts, self._dimensions]).astype(np.float32)
            bands = np.add.reduceat(squares, starts, axis=1) / sizes
            self._columns.add(np.column_stack([bands, squares.mean(axis=1)]))

    def _starts(self) -> list[int]:
        """Return the dimension that each group begins with."""
        n_bands = min(HIDDEN_BANDS, self._dimensions)
        return [band * self._dimensions // n_bands for band in range(n_bands)]

    def draw(self, axes: Axes, begin_s: float, end_s: float) -> None:
        """Draw the groups as a matrix, logarithmic in colour, and over it the RMS of the whole state as a line."""
        assert self._columns is not None
        rms = np.sqrt(self._columns.image())
        shown_s = _shown(self._columns, begin_s, end_s)
        log = np.log10(rms[:, :-1])
        log[~np.isfinite(log)] = np.nan  # stays blank: of no numbers, and of nothing but zeros
        axes.imshow(
            log.T, cmap="viridis", extent=(begin_s, shown_s, 0, self._dimensions),
            origin="lower", aspect="auto", interpolation="nearest",
        )  # fmt: skip
        axes.set_ylabel(f"dimension ({len(self._starts())} groups)")
        if not np.isnan(log).all():
            _note(axes, f"colour: log10 RMS, {np.nanmin(log):.1f} to {np.nanmax(log):.1f}; line: RMS of all")
        line = axes.twinx()
        times = begin_s + (np.arange(len(rms)) + 0.5) * (shown_s - begin_s) / max(1, len(rms))
        line.plot(times, rms[:, -1], color="white", linewidth=1.2)
        line.set_ylabel("RMS")


class CodesPanel:
    """The codes of each frame, codebooks upwards; tensors are integers [n, codebooks], offset included.

    Codes are names, and the mean of two names is nothing: of a long stream every k-th frame is kept.  The semantic
    codes are a strip of their own, below, whose colours only tell codes apart.
    """

    def __init__(self) -> None:
        self._columns: Columns | None = None
        self._end_row: int | None = None

    def add(self, tensor: Tensor) -> None:
        """Take rows of codes."""
        if not is_codes(tensor):
            raise BadInputError(f"{_form(tensor)}, which is no matrix of codes")
        rows = np.clip(tensor.numpy().astype(np.int64), -1, 2**31 - 1).astype(np.int32)
        if self._columns is None:
            self._columns = Columns(rows.shape[1], np.int32, first)
        _check_width(self._columns, rows, "codebooks")
        ends = np.flatnonzero(rows[:, 0] == END_AUDIO)
        if self._end_row is None and len(ends):
            self._end_row = self._columns.rows + int(ends[0])
        self._columns.add(rows)

    def draw(self, axes: Axes, begin_s: float, end_s: float) -> None:
        """Draw both parts; special codes stay blank, and the END row gets a line, also where it was left out."""
        assert self._columns is not None
        image = self._columns.image()
        until_s = _shown(self._columns, begin_s, end_s)
        shown = np.where(image >= CODE_OFFSET, image, np.nan).T
        # Neighbours in the semantic codebook have nothing to do with each other: their colours lie far apart.
        semantic, acoustic = shown[:1] * _GOLDEN % 1, shown[1:]
        top = image.shape[1]
        for part, bottom, height, cmap in (
            (semantic, -SEMANTIC_ROWS, SEMANTIC_ROWS, "hsv"),
            (acoustic, 1, top - 1, "viridis"),
        ):
            axes.imshow(
                part, cmap=cmap, extent=(begin_s, until_s, bottom, bottom + height),
                origin="lower", aspect="auto", interpolation="nearest",
            )  # fmt: skip
        ticks = [codebook for codebook in range(1, top) if codebook == 1 or codebook % 6 == 0]
        axes.set_yticks(
            [-SEMANTIC_ROWS / 2, *(codebook + 0.5 for codebook in ticks)], ["semantic", *map(str, ticks)]
        )
        axes.set_ylim(-SEMANTIC_ROWS - 0.5, top + 0.5)
        axes.set_ylabel("codebook")
        notes = [f"acoustic {image[:, 1:].min()} to {image[:, 1:].max()}"] if len(image) else []
        if self._columns.group > 1:
            notes.append(f"one frame of {self._columns.group}")
        if self._end_row is not None:
            at_s = begin_s + (end_s - begin_s) * self._end_row / self._columns.rows
            axes.axvline(at_s, color="red", linewidth=1)
            notes.append(f"END at {at_s:.2f} s (red)")
        _note(axes, "; ".join(notes))


PANELS: Mapping[str, Callable[[], Panel]] = {
    "mel": MelPanel, "embeds": HiddenPanel, "hidden": HiddenPanel, "codes": CodesPanel,
}  # fmt: skip
"""What can be drawn, by tensor name."""


def _floats(tensor: Tensor, most: int, what: str) -> npt.NDArray[np.float32]:
    """Return the rows of a tensor as float32 [n, 1..most]."""
    rows = tensor.float32() if tensor.dtype in ("f32", "f16", "bf16", "f64") else None
    if rows is None or rows.ndim != 2 or not 1 <= rows.shape[1] <= most:
        raise BadInputError(f"{_form(tensor)}, which {what}")
    return rows


def _form(tensor: Tensor) -> str:
    return f"is {tensor.dtype} {list(tensor.shape)}"


def _check_width(columns: Columns, rows: npt.NDArray[Any], what: str) -> None:
    if rows.shape[1] != columns.width:
        raise BadInputError(f"changes from {columns.width} {what} to {rows.shape[1]}")


def _note(axes: Axes, text: str) -> None:
    """Write above the right corner of a panel."""
    axes.text(1, 1.01, text, transform=axes.transAxes, ha="right", va="bottom", fontsize=8)


def _shown(columns: Columns, begin_s: float, end_s: float) -> float:
    """Return where the last column ends: at `end_s` or, where it is not complete, a little behind."""
    return begin_s + (end_s - begin_s) * columns.share()


def bin_of(hz: float, n_bins: int) -> float:
    """Return where a frequency lies on an axis on which bin m is drawn at m to m + 1 (asr.md section 4).

    The filters are the inner `n_bins` of points equally spaced from 0 to 8000 Hz on the Slaney scale.
    """
    return _mel(hz) / _mel(8000) * (n_bins + 1) - 0.5


def _mel(hz: float) -> float:
    return 3 * hz / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)
