"""embeds -> token ids: the schedule of asr.md section 11, one id for each position from the prompt's last on.

Latency: none; a position runs when its embedding is there.  A file's prompt runs in one pass once it is complete.  Of
a live stream's prompt only the left padding does, which is there before the first sound; the positions behind it run
one by one as they come, so that the first id costs no more than any other.  Which positions run together follows from
the `open` frame alone, never from how the input was cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from voxtral_pipes.config import AsrConfig
from voxtral_pipes.formats.frame import Frame, Tensor
from voxtral_pipes.formats.tekken import PUBLISHED_SPECIAL, Tekken
from voxtral_pipes.models.decode import CHOSEN, Choice, Decoder, greedy_choice
from voxtral_pipes.models.stack import StackState
from voxtral_pipes.stages.base import Hello, Output
from voxtral_pipes.stages.settings import StreamSettings
from voxtral_pipes.stages.tensors import not_finite, take_rows, take_vector

SILENCE_DBFS = -50.0
"""Input below this is no speech the model could have missed."""
MAX_IDLE_KINDS = 2
"""Kinds of streams of which states are kept; whoever mixes more makes them anew."""
GUARD_STEP, GUARD_CAP = 0.5, 10.0
"""Logits taken from the blank id for each blank beyond the limit, and at most."""


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Ids with a meaning of their own (asr.md section 12); the defaults are the published ones."""

    bos: int = PUBLISHED_SPECIAL["<s>"]
    eos: int = PUBLISHED_SPECIAL["</s>"]
    pad: int = PUBLISHED_SPECIAL["[STREAMING_PAD]"]
    """Nothing to say at this step; also fills the prompt."""

    @classmethod
    def of(cls, tekken: Tekken) -> SpecialIds:
        """Resolve them by name."""
        return cls(tekken.special("<s>"), tekken.special("</s>"), tekken.special("[STREAMING_PAD]"))


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """What the user may choose about decoding."""

    stop_at_eos: bool = False
    blank_guard: int | None = None
    """Blanks in a row over audible input before the blank id is penalised; None: never."""
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class DecodeStage:
    """The decoder as a stage; weights shared by all its streams."""

    decoder: Decoder
    config: AsrConfig
    ids: SpecialIds = SpecialIds()
    options: DecodeOptions = DecodeOptions()
    model: Mapping[str, str] | None = None
    name: str = "vx-decode"
    needs: str = "embeds"
    _idle: dict[tuple[int, int], list[StackState]] = field(default_factory=dict)
    """States that streams have left, by delay and prompt: on CUDA each has its graphs, which are dear to make.

    A state is large: 0.9 GB of the published model."""

    def hello(self) -> Hello:
        """Describe the output: ids, and `logprob` if asked for."""
        out: dict[str, dict[str, Any]] = {"i": {"d": "u32", "h": [-1]}}
        if self.options.logprobs:
            out["logprob"] = {"d": "f32", "h": [-1]}
        return Hello(out, self.model, ticks_hz=self.config.audio.rate_hz)

    def prepare(self) -> None:
        """Have the steps of the first stream ready on CUDA, where the first ones wait for libraries and graphs."""
        settings = StreamSettings.of({}, self.config.audio)
        if not self._left(settings):
            self._left(settings).append(self._new_state(settings))

    def open(self, stream: int, meta: Mapping[str, Any]) -> tuple[DecodeStream, Mapping[str, Any]]:
        """Begin a stream."""
        settings = StreamSettings.of(meta, self.config.audio)
        left = self._left(settings)
        state = left.pop() if left else self._new_state(settings)
        state.restart()
        return DecodeStream(self, settings, state, left.append), meta

    def _left(self, settings: StreamSettings) -> list[StackState]:
        key = settings.delay_tokens, settings.prompt_tokens
        if key not in self._idle and len(self._idle) >= MAX_IDLE_KINDS:
            del self._idle[next(iter(self._idle))]
        return self._idle.setdefault(key, [])

    def _new_state(self, settings: StreamSettings) -> StackState:
        finish = partial(greedy_choice, pad=self.ids.pad)
        state = self.decoder.new_state(settings.delay_tokens, finish=finish)
        self.decoder.warm(state, settings.prompt_tokens, settings.left_pad_tokens)
        return state


@lru_cache(16)
def _one_token(token: int) -> torch.Tensor:
    """Return int64 [1, 1], only to be read: it is mostly the pad."""
    return torch.full((1, 1), token)


class BlankGuard:
    """Penalises the blank id after a long run of blanks over input louder than silence.

    Some recordings make the model fall silent for good; the penalty grows with the run and is capped, so real
    pauses stay possible.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._run = 0

    def penalty(self) -> float:
        """Return what to take from the blank id's logit at the next position."""
        return min(GUARD_CAP, GUARD_STEP * max(0, self._run - self._limit + 1))

    def saw(self, blank: bool, level: float) -> None:
        """Count the position that was just decided, whose input had `level` dBFS."""
        self._run = self._run + 1 if blank and level > SILENCE_DBFS else 0


class DecodeStream:
    """One stream: embeddings of the prompt until it is complete, then the decoder's state and the last token."""

    def __init__(
        self,
        stage: DecodeStage,
        settings: StreamSettings,
        state: StackState,
        leave: Callable[[StackState], None],
    ) -> None:
        """Take a state that nobody else uses; `leave` gets it back."""
        self._decoder = stage.decoder
        self._state = state
        self._leave = leave
        self._options = stage.options
        self._ids = stage.ids
        self._settings = settings
        self._token_samples = stage.config.audio.token_samples
        self._together = settings.left_pad_tokens if settings.live else settings.prompt_tokens
        """Positions that run in one pass, at the start of the prompt."""
        self._prompt: list[torch.Tensor] = []
        """Rows that wait for that pass to be complete."""
        self._position = 0
        self._token = CHOSEN
        self._ahead: Callable[[], torch.Tensor] | None = None
        """The step of the next row, if it has been started."""
        self._audio_end: int | None = None
        guard = stage.options.blank_guard
        self._guard = None if guard is None else BlankGuard(guard)
        self.done = False

    def push(self, frame: Frame) -> Iterator[Output]:
        """Take embeddings, [n, dim] of any n; give an id for each position that is not inside the prompt."""
        rows = take_rows(frame, "embeds", self._decoder.config.dim)
        levels = take_vector(frame, "level", len(rows)) if self._guard else []
        for i in range(rows.shape[0]):
            level = levels[i] if i < len(levels) else 0.0
            following = rows[i + 1 : i + 2] if i + 1 < rows.shape[0] else None
            output = self._take_row(rows[i : i + 1], following, level)
            if output is not None:
                yield output
            if self.done:
                self._leave(self._state)
                return

    def mark(self, meta: Mapping[str, Any]) -> None:
        """Learn where the audio ends and right padding begins."""
        end = meta.get("audio_end")
        if type(end) is int:
            self._audio_end = end

    def flush(self) -> Iterator[Output]:
        """Nothing is held back: a stream shorter than its prompt has no output."""
        self._leave(self._state)
        yield from ()

    def _take_row(self, row: torch.Tensor, following: torch.Tensor | None, level: float) -> Output | None:
        """Take an embedding [1, dim]; with `following`, the next one, a device is kept busy meanwhile."""
        prompt = self._settings.prompt_tokens
        if self._position < self._together:
            choice = self._gather(row)
        else:
            pending = self._ahead or self._start(row, self._token_here())
            self._ahead = None
            if self._position < prompt - 1:
                choice = None  # nobody wants it, so it is not waited for
            else:
                if following is not None and self._decoder.works_aside and self._guard is None:
                    self._ahead = self._start(following, CHOSEN)
                choice = pending()
        output = None
        if choice is not None and self._position >= prompt - 1:
            output = self._decide(Choice.of(choice[0]), level)
        self._position += 1
        return output

    def _token_here(self) -> int:
        """Return the token in front of the present position: of the prompt, or the last one that was chosen."""
        if self._position >= self._settings.prompt_tokens:
            return self._token
        return self._ids.pad if self._position else self._ids.bos

    def _start(self, row: torch.Tensor, token: int) -> Callable[[], torch.Tensor]:
        """Start the step of an embedding [1, dim] behind a token."""
        return self._decoder.start_step(self._state, row[None], _one_token(token))

    def _gather(self, row: torch.Tensor) -> torch.Tensor | None:
        """Take an embedding [1, dim] of those that run in one pass; run it when they are complete."""
        self._prompt.append(row)
        if len(self._prompt) < self._together:
            return None
        rows = torch.cat(self._prompt)
        self._prompt.clear()
        prompt = [self._ids.bos] + [self._ids.pad] * (rows.shape[0] - 1)
        tokens = torch.tensor([prompt], device=self._decoder.device)
        choice, self._state = self._decoder.prefill(self._state, rows[None], tokens)
        return choice

    def _decide(self, choice: Choice, level: float) -> Output:
        """Take the most likely id (asr.md section 11: greedy is the only mode) and see whether it ends the stream."""
        if not math.isfinite(choice.log_sum):
            raise not_finite("the logits are")
        pads = choice.prefers_pad(self._guard.penalty() if self._guard else 0.0)
        token, logit = (self._ids.pad, choice.pad_logit) if pads else (choice.id, choice.logit)
        self._token = token
        if self._guard:
            self._guard.saw(token == self._ids.pad, level)
        tensors = {}
        if self._options.logprobs:
            tensors["logprob"] = Tensor.of(np.array([logit - choice.log_sum], np.float32))
        tick = self._token_samples * (self._position - self._settings.left_pad_tokens)
        past_audio = self._audio_end is not None and tick >= self._audio_end
        self.done = token == self._ids.eos and (past_audio or self._options.stop_at_eos)
        return Output(tick, self._token_samples, tensors, ids=[token])
