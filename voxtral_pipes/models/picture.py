"""Pictures as PNG (vx-peek --png): of frames here, one panel for each tensor that can be drawn of each stream.

Only the first `MAX_PANELS` panels are drawn, and memory is bounded whatever the length (`models.columns`).
matplotlib is imported here and nowhere else, and no display is asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from voxtral_pipes.errors import BadInputError, UnsupportedError
from voxtral_pipes.formats.frame import Frame
from voxtral_pipes.models.panels import PANELS, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PANELS = 8
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


def write_png(file: BinaryIO, panels: Sequence[Callable[[Axes], None]]) -> None:
    """Draw panels below each other; each is a function that draws on the axes it is given."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width, height * len(panels)), dpi=120, layout="constrained")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # glyphs that the font lacks, in names of sources
        with np.errstate(all="ignore"):
            for axes, draw in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
                draw(axes)
            FigureCanvasAgg(figure)  # makes itself the canvas of the figure; pyplot might look for a display
            figure.savefig(file, format="png")


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
        for name in PANELS:
            if name in frame.tensors:
                self._tensor(stream, name, frame)

    def _tensor(self, stream: int, name: str, frame: Frame) -> None:
        drawn = self._drawn.get((stream, name))
        if drawn is None:
            if len(self._drawn) == MAX_PANELS:
                self._say(
                    "many",
                    UnsupportedError(f"more than {MAX_PANELS} streams and tensors: the .png shows the first"),
                )
                return
            drawn = _Drawn(PANELS[name](), self._sources.get(stream, ""))
        try:
            drawn.panel.add(frame.tensors[name])
        except BadInputError as error:
            self._say(stream, BadInputError(f"stream {stream}: {name!r} {error}; the .png leaves it out"))
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
        write_png(
            file,
            [
                partial(self._panel, f"stream {stream}  {name}  {drawn.source}", drawn)
                for (stream, name), drawn in self._drawn.items()
            ],
        )

    def _panel(self, title: str, drawn: _Drawn, axes: Axes) -> None:
        begin_s = (drawn.begin or 0) / self._rate_hz
        end_s = max(drawn.end / self._rate_hz, begin_s + 1e-3)
        drawn.panel.draw(axes, begin_s, end_s)
        for tick in (0, drawn.audio_end):  # where the audio begins and ends, between the paddings
            if tick is not None and begin_s < tick / self._rate_hz < end_s:
                axes.axvline(tick / self._rate_hz, color="white", linewidth=0.8, linestyle=":")
        axes.set_xlim(begin_s, end_s)
        axes.set_xlabel("s")
        axes.set_title("".join(c for c in title if c.isprintable()), fontsize=9, loc="left", parse_math=False)
