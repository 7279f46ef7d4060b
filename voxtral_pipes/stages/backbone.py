"""text ids -> hidden states: the prompt in one pass, then a state every 80 ms from the codes that come back.

The loop is closed by `Codes`: vx-flow at the other end of a socket, or a saved stream of codes.  A stream is spoken
when its text is complete, one stream after the other.  Latency: one frame, which is what the codes depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from voxtral_pipes.config import MAX_FRAMES, TTS_FRAME_TICKS, TTS_RATE_HZ, BackboneConfig
from voxtral_pipes.errors import BadInputError
from voxtral_pipes.formats.frame import Frame
from voxtral_pipes.kernels.precision import Precision
from voxtral_pipes.models.codes import END_AUDIO, check_row, is_codes
from voxtral_pipes.models.prompt import PromptIds
from voxtral_pipes.stages.base import Hello, Incoming, Output, check_models


class Codes(Protocol):
    """Where the codes of each frame come from."""

    @property
    def announcement(self) -> Mapping[str, Any] | None:
        """The `fb` of hello, if the next command is to answer."""

    def start(self) -> None:
        """Called when hello is out."""

    def ready(self) -> None:
        """Called when the model is loaded; returns when `take` can be called."""

    def limit(self, stream: int) -> int | None:
        """Return how many frames there will be at most, where that is known."""

    def take(self, stream: int, frame: int) -> list[int] | None:
        """Return the codes of a frame, offset included; None if no more of this stream are wanted."""


class Voice(Protocol):
    """Who speaks."""

    @property
    def name(self) -> str:
        """As --voice takes it."""

    @property
    def language(self) -> str:
        """Two letters, or "-"."""


class Speaker(Protocol):
    """The model with its voice; made when hello is out, because torch takes a second to import."""

    voice_rows: int
    """Placeholders that the prompt must hold."""

    def begin(self, ids: list[int], max_frames: int) -> Any:
        """Run the prompt of a stream of up to `max_frames`; return the hidden state [1, dim] of frame 0."""

    def next(self, codes: list[int]) -> Any:
        """Return the hidden state [1, dim] of the frame after the one with these codes."""


@dataclass(slots=True)
class BackboneOptions:
    """What the user may choose, and what the process knows."""

    max_frames: int = MAX_FRAMES
    stopped: Callable[[], bool] = lambda: False
    """True once speaking is to end after the current frame."""
    warn: Callable[[str], None] = lambda line: None


class BackboneStage:
    """The backbone as a stage; one stream is spoken at a time."""

    name, needs = "vx-backbone", "i"

    def __init__(
        self,
        config: BackboneConfig,
        precision: Precision,
        load: Callable[[], Speaker],
        codes: Codes,
        voice: Voice,
        ids: PromptIds,
        options: BackboneOptions,
        model: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config
        self.codes = codes
        self.ids = ids
        self.options = options
        self._said = {"voice": voice.name, "language": voice.language}
        self._precision = precision
        self._load = load
        self._model = model
        self._speaker: Speaker | None = None

    def hello(self) -> Hello:
        """Describe the output: `hidden`, in the dtype it is computed in, and where to answer."""
        hidden = {"d": self._precision, "h": [-1, self.config.dim]}
        return Hello({"hidden": hidden}, self._model, ticks_hz=TTS_RATE_HZ, feedback=self.codes.announcement)

    def prepare(self) -> None:
        """Load the model while vx-flow connects and loads its own."""
        self.codes.start()
        self._speaker = self._load()
        self.codes.ready()

    @property
    def speaker(self) -> Speaker:
        """The model; there once `prepare` is done."""
        assert self._speaker is not None
        return self._speaker

    def open(self, stream: int, meta: Mapping[str, Any]) -> tuple[BackboneStream, Mapping[str, Any]]:
        """Begin a stream."""
        return BackboneStream(self, stream), {**meta, **self._said}


class BackboneStream:
    """One stream: the ids that have come; the state of the model is the speaker's."""

    done = False

    def __init__(self, stage: BackboneStage, stream: int) -> None:
        self._stage = stage
        self._stream = stream
        self._ids: list[int] = []

    def push(self, frame: Frame) -> Iterator[Output]:
        """Collect text ids; nothing can be said before the last of them."""
        if frame.ids is None:
            raise BadInputError(f"data frame {frame.seq} holds no token ids ('i')")
        if len(self._ids) + len(frame.ids) > self._stage.config.max_positions:
            raise BadInputError(
                f"the text has more than {self._stage.config.max_positions} tokens, the positions of the model; "
                "lower vx-tokenize --max-chars"
            )
        self._ids += frame.ids
        return iter(())

    def mark(self, meta: Mapping[str, Any]) -> None:
        """Pass marks by."""

    def flush(self) -> Iterator[Output]:
        """Speak."""
        from voxtral_pipes.stages.tensors import send_computed  # imports torch, which must not delay hello

        stage, options = self._stage, self._stage.options
        if options.stopped():
            return
        prompt = stage.ids.prompt(self._ids, stage.speaker.voice_rows, stage.config.vocab_size)
        # The last frame needs no position of its own behind it.
        limit = min(options.max_frames, stage.config.max_positions - len(prompt) + 1)
        if limit < 1:
            raise BadInputError(
                f"the prompt has {len(prompt)} tokens, the model {stage.config.max_positions} positions; lower "
                "vx-tokenize --max-chars"
            )
        saved = stage.codes.limit(self._stream)
        if saved is not None:
            limit = min(limit, saved)
        if limit == 0:
            return  # nothing was said then
        hidden = stage.speaker.begin(prompt, limit)
        for frame in range(limit):
            state = send_computed(hidden, f"the hidden state of frame {frame} is")
            yield Output(TTS_FRAME_TICKS * frame, TTS_FRAME_TICKS, {"hidden": state})
            codes = stage.codes.take(self._stream, frame)
            if codes is None or self._ends(codes, frame) or options.stopped():
                return
            if frame + 1 < limit:
                hidden = stage.speaker.next(codes)
        if limit == saved:
            return
        seconds = limit * TTS_FRAME_TICKS / TTS_RATE_HZ
        options.warn(
            f"stream {self._stream}: stopped at {limit} frames ({seconds:.1f} s) before the model ended "
            "(--max-frames)"
        )

    def _ends(self, codes: list[int], frame: int) -> bool:
        config = self._stage.config
        check_row(codes, config.semantic_size, config.acoustic_levels, 1 + config.acoustic_dim)
        if codes[0] == END_AUDIO and frame == 0:
            self._stage.options.warn(
                f"stream {self._stream}: the model ended at frame 0, so nothing is said; try "
                "vx-flow --no-empty"
            )
        return codes[0] == END_AUDIO


class SavedCodes:
    """A saved stream of codes, read whole: the backbone says again what it said then (`--codes`)."""

    announcement = None
    MAX_BYTES = 256 << 20
    FRAME_BYTES = 256
    """What a frame or a stream takes beside its codes."""

    def __init__(self, frames: Iterable[Frame], model: Mapping[str, str] | None = None) -> None:
        """Read all frames.

        Raises:
            BadInputError: no whole stream of codes, one of another model, or more than memory should hold.
        """
        incoming = Incoming(frames, "codes", "vx-backbone --codes")
        check_models(incoming.hello(), model)
        rows: dict[int, list[np.ndarray[Any, Any]]] = {}
        total = 0
        for frame in incoming.read():
            if frame.kind == "error":
                raise BadInputError(
                    f"it holds an error of {frame.fields.get('by', 'a command')!s:.60}: "
                    f"{frame.fields.get('msg', '')!s:.200}"
                )
            if frame.stream is None:
                continue
            if frame.kind in ("open", "data"):
                total += self.FRAME_BYTES
            if frame.kind == "open":
                if frame.stream in rows:
                    raise BadInputError(f"there are two streams {frame.stream}")
                rows[frame.stream] = []
            elif frame.kind == "data":
                codes, held = frame.tensors.get("codes"), rows[frame.stream]
                if codes is None or codes.dtype != "u16" or not is_codes(codes):
                    raise BadInputError(
                        f"a data frame of stream {frame.stream} holds no tensor codes, u16 [n, 37]"
                    )
                if held and held[0].shape[1] != codes.shape[1]:
                    raise BadInputError(f"the rows of stream {frame.stream} differ in width")
                total += len(codes.data)
                held.append(codes.numpy())
            if total > self.MAX_BYTES:
                raise BadInputError(f"there are over {self.MAX_BYTES >> 20} MiB of codes, with their frames")
        self._rows = {
            stream: np.concatenate(held) if held else np.empty((0, 0), "<u2") for stream, held in rows.items()
        }

    def start(self) -> None:
        """Do nothing."""

    def ready(self) -> None:
        """Do nothing."""

    def limit(self, stream: int) -> int:
        """Return the number of saved frames: as many come out again.

        Raises:
            BadInputError: the stream was not saved.
        """
        if stream not in self._rows:
            raise BadInputError(f"the saved codes hold no stream {stream}")
        return len(self._rows[stream])

    def take(self, stream: int, frame: int) -> list[int]:
        """Return the saved row of a frame."""
        row: list[int] = self._rows[stream][frame].tolist()
        return row
