"""Frames drawn as a PNG (vx-peek --png): one panel a stream, seconds across, Hz on the mel scale upwards.

Memory is bounded whatever the length: a panel holds at most `2 * COLUMNS` columns, and when they are full
each two become their mean.  Only the first `MAX_PANELS` streams are drawn.  matplotlib is imported here and
nowhere else, and no display is asked for.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from voxtral_pipes.errors import BadInputError, UnsupportedError
from voxtral_pipes.formats.frame import Frame, Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 2048
MAX_PANELS = 8
MAX_BINS = 1024
_HZ_TICKS = (0, 250, 500, 1000, 2000, 4000, 8000)
_PANEL_INCHES = (12.0, 3.2)


def check_matplotlib() -> None:
    """Find out whether a picture can be drawn, before an hour of audio has been read.

    Raises:
        UnsupportedError: matplotlib is not installed, or broken.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            "--png needs matplotlib, which is not installed: pip install 'voxtral-pipes[plot]'"
        ) from error


class Panel(Protocol):
    """One stream of one kind of tensor."""

    def add(self, tensor: Tensor) -> None:
        """Take one tensor."""

    def draw(self, axes: Axes, begin_s: float, end_s: float) -> None:
        """Draw what was taken; it was `begin_s` to `end_s` on the clock of the source."""


class MelPanel:
    """A log-mel spectrogram; tensors are f32 [n, bins]."""

    def __init__(self) -> None:
        self._columns: npt.NDArray[np.float32] | None = None
        self._filled = 0
        self._pooled = 1  # mel frames that one column stands for
        self._waiting = np.empty((0, 0), np.float32)  # fewer frames than a column needs
        self._rows = 0

    def add(self, tensor: Tensor) -> None:
        """Take mel frames.

        Raises:
            BadInputError: the shape is not [n, bins], or not that of the frames before.
        """
        rows = tensor.float32() if tensor.dtype in ("f32", "f16", "bf16", "f64") else None
        if rows is None or rows.ndim != 2 or not 1 <= rows.shape[1] <= MAX_BINS:
            raise BadInputError(f"'mel' is {tensor.dtype} {list(tensor.shape)}, which is no spectrogram")
        if self._columns is None:
            self._columns = np.empty((2 * COLUMNS, rows.shape[1]), np.float32)
            self._waiting = np.empty((0, rows.shape[1]), np.float32)
        if rows.shape[1] != self._columns.shape[1]:
            raise BadInputError(f"'mel' changes from {self._columns.shape[1]} bins to {rows.shape[1]}")
        self._rows += len(rows)
        rows = np.concatenate([self._waiting, rows])
        while len(rows) >= self._pooled:
            rows = self._take(self._columns, rows)
        self._waiting = rows.copy()

    def _take(
        self, columns: npt.NDArray[np.float32], rows: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Fill columns with what fits and return the rest; full columns are halved."""
        count = min(len(rows) // self._pooled, len(columns) - self._filled)
        taken = count * self._pooled
        columns[self._filled : self._filled + count] = _means(rows[:taken], self._pooled)
        self._filled += count
        if self._filled == len(columns):
            columns[:COLUMNS] = _means(columns, 2)
            self._filled = COLUMNS
            self._pooled *= 2
        return rows[taken:]

    def draw(self, axes: Axes, begin_s: float, end_s: float) -> None:
        """Draw the spectrogram; NaN stays blank."""
        assert self._columns is not None
        image = self._columns[: self._filled]
        if len(self._waiting):
            image = np.concatenate([image, _means(self._waiting, len(self._waiting))])
        shown_s = (end_s - begin_s) * len(image) * self._pooled / max(1, self._rows)
        n_bins = self._columns.shape[1]
        axes.imshow(
            image.T, cmap="magma", extent=(begin_s, begin_s + shown_s, 0, n_bins),
            origin="lower", aspect="auto", interpolation="nearest",
        )  # fmt: skip
        axes.set_ylim(-0.5, n_bins + 0.5)
        axes.set_yticks([_bin_of(hz, n_bins) for hz in _HZ_TICKS], [str(hz) for hz in _HZ_TICKS])
        axes.set_ylabel("Hz (mel scale)")


PANELS: dict[str, type[MelPanel]] = {"mel": MelPanel}
"""What can be drawn, by tensor name."""


class _Drawn:
    """What is known of one panel besides its values."""

    def __init__(self, panel: Panel, source: str) -> None:
        self.panel = panel
        self.source = source
        self.begin: int | None = None
        self.end = 0
        self.audio_end: int | None = None


class Picture:
    """Collects what can be drawn."""

    def __init__(self) -> None:
        self._drawn: dict[tuple[int, str], _Drawn] = {}
        self._sources: dict[int, str] = {}
        self._rate_hz = 16000
        self._said: set[Any] = set()

    def add(self, frame: Frame) -> None:
        """Keep what can be drawn of one frame.

        Raises:
            BadInputError: a tensor that does not look like what its name says; once a stream.
            UnsupportedError: there are more streams than panels; once.
        """
        rate = frame.fields.get("tb") if frame.kind == "hello" else None
        if isinstance(rate, int) and rate > 0:
            self._rate_hz = rate
        if (stream := frame.stream) is None:
            return
        if frame.kind == "open" and len(self._sources) < MAX_PANELS:
            self._sources[stream] = str(frame.meta.get("source", ""))[-80:]
        elif frame.kind == "mark":
            end = frame.meta.get("audio_end")
            for (owner, _), drawn in self._drawn.items():
                if owner == stream and type(end) is int:
                    drawn.audio_end = end
        for name in PANELS.keys() & frame.tensors.keys():
            self._tensor(stream, name, frame)

    def _tensor(self, stream: int, name: str, frame: Frame) -> None:
        drawn = self._drawn.get((stream, name))
        if drawn is None:
            if len(self._drawn) == MAX_PANELS:
                self._say(
                    "many", UnsupportedError(f"more than {MAX_PANELS} streams: the .png shows the first")
                )
                return
            drawn = _Drawn(PANELS[name](), self._sources.get(stream, ""))
        try:
            drawn.panel.add(frame.tensors[name])
        except BadInputError as error:
            self._say(stream, BadInputError(f"stream {stream}: {error}; the .png leaves it out"))
            return
        self._drawn[stream, name] = drawn
        begin = frame.tick if frame.tick is not None else drawn.end
        drawn.begin = begin if drawn.begin is None else drawn.begin
        drawn.end = begin + (frame.ticks or 0)

    def _say(self, what: Any, error: Exception) -> None:
        if what not in self._said and len(self._said) < MAX_PANELS:
            self._said.add(what)
            raise error

    def write(self, file: BinaryIO) -> None:
        """Draw the picture.

        Raises:
            BadInputError: nothing came that can be drawn.
        """
        if not self._drawn:
            raise BadInputError(f"there is nothing to draw: no tensor {' or '.join(map(repr, PANELS))} came")
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        width, height = _PANEL_INCHES
        figure = Figure(figsize=(width, height * len(self._drawn)), dpi=120, layout="constrained")
        all_axes = figure.subplots(len(self._drawn), squeeze=False)[:, 0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # glyphs that the font lacks, in names of sources
            for axes, ((stream, name), drawn) in zip(all_axes, self._drawn.items(), strict=True):
                self._panel(axes, f"stream {stream}  {name}  {drawn.source}", drawn)
            FigureCanvasAgg(figure)  # makes itself the canvas of the figure; pyplot might look for a display
            figure.savefig(file, format="png")

    def _panel(self, axes: Axes, title: str, drawn: _Drawn) -> None:
        begin_s = (drawn.begin or 0) / self._rate_hz
        end_s = max(drawn.end / self._rate_hz, begin_s + 1e-3)
        with np.errstate(all="ignore"):
            drawn.panel.draw(axes, begin_s, end_s)
        for tick in (0, drawn.audio_end):  # where the audio begins and ends, between the paddings
            if tick is not None and begin_s < tick / self._rate_hz < end_s:
                axes.axvline(tick / self._rate_hz, color="white", linewidth=0.8, linestyle=":")
        axes.set_xlim(begin_s, end_s)
        axes.set_xlabel("s")
        axes.set_title("".join(c for c in title if c.isprintable()), fontsize=9, loc="left", parse_math=False)


def _means(rows: npt.NDArray[np.float32], group: int) -> npt.NDArray[np.float32]:
    if group == 1:
        return rows
    with np.errstate(all="ignore"):
        mean: npt.NDArray[np.float32] = rows.reshape(-1, group, rows.shape[1]).mean(axis=1, dtype=np.float32)
    return mean


def _bin_of(hz: float, n_bins: int) -> float:
    """Return where a frequency lies on an axis on which bin m is drawn at m to m + 1 (asr.md section 4).

    The filters are the inner `n_bins` of points equally spaced from 0 to 8000 Hz on the Slaney scale.
    """
    return _mel(hz) / _mel(8000) * (n_bins + 1) - 0.5


def _mel(hz: float) -> float:
    return 3 * hz / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)
