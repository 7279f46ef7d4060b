"""The speech backbone: a prompt of text and voice, then codes in and a hidden state out (tts.md sections 3, 4 and 7).

    prompt: E[ids], the rows at the voice's placeholders replaced by the voice's own
    frame t: the sum of the 37 rows of its codes is the input at position P + t
    hidden = rms(blocks(x), norm), read by the flow head; there is no token head

Carried between calls: the ring of keys and values, which never wraps (there is no window), and the position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from voxtral_pipes.config import BackboneConfig
from voxtral_pipes.kernels import dispatch as ops
from voxtral_pipes.kernels.packed import Weight
from voxtral_pipes.models.cache import RingKV, Span
from voxtral_pipes.models.codes import CODE_OFFSET
from voxtral_pipes.models.prompt import MARKS
from voxtral_pipes.models.stack import Stack, StackState
from voxtral_pipes.models.tts_shapes import CODE_TABLE, TEXT_TABLE

POSITIONS_STEP, PROMPT_STEP = 1024, 64
USUAL_TEXT = 128
"""Tokens of texts for which everything is ready on CUDA before the first one comes."""


def code_offsets(config: BackboneConfig) -> Tensor:
    """Return where the rows of each codebook begin in the code table, int64 [1 + acoustic_dim] (tts.md section 7)."""
    acoustic = config.acoustic_levels + CODE_OFFSET
    first = config.semantic_size + CODE_OFFSET
    return torch.tensor([0, *(first + acoustic * k for k in range(config.acoustic_dim))])


@dataclass(frozen=True, slots=True)
class Backbone:
    """Weights of the backbone; read-only and shared by all streams."""

    config: BackboneConfig
    text_table: Weight
    """[vocab, dim]."""
    code_table: Weight
    """[rows of all codebooks, dim]; codebook k begins at `offsets[k]`."""
    offsets: Tensor
    stack: Stack

    @classmethod
    def of(cls, tensors: Mapping[str, Weight], config: BackboneConfig) -> Backbone:
        """Assemble from tensors under their released names, all on one device."""
        stack = Stack.of(tensors, "", config)
        return cls(
            config=config,
            text_table=ops.prepare_table(tensors[TEXT_TABLE], stack.dtype),
            code_table=ops.prepare_table(tensors[CODE_TABLE], stack.dtype),
            offsets=code_offsets(config).to(stack.device),
            stack=stack,
        )

    def new_state(self, max_positions: int, batch: int = 1) -> StackState:
        """Begin `batch` streams of at most `max_positions` positions, prompt included."""
        kv = self.stack.new_kv(batch=batch, window=max_positions, max_step=1)

        def run(x: Tensor, *rest: Any) -> Tensor:
            *last, turn, span = rest
            return self._run(kv, x, last[0] if last else None, turn, span)

        return StackState(kv, 0, run, to_host=True)

    @torch.inference_mode()
    def embed_prompt(self, ids: Tensor, voice: Tensor, placeholder: int) -> Tensor:
        """Embed a prompt: ids int64 [P], voice [N, dim] -> [1, P, dim].

        The N positions that hold `placeholder` take the voice's rows, in order and in place of their own.

        Raises:
            ValueError: there are not N placeholders.
        """
        x = ops.embedding(ids.to(self.stack.device), self.text_table, self.stack.dtype)
        places = (ids == placeholder).nonzero()[:, 0].to(self.stack.device)
        if len(places) != len(voice):
            raise ValueError(f"a prompt of {len(places)} placeholders for a voice of {len(voice)} rows")
        return x.index_copy(0, places, voice.to(self.stack.device, self.stack.dtype))[None]

    @torch.inference_mode()
    def embed_codes(self, codes: Tensor) -> Tensor:
        """Embed frames: codes int64 [B, n, 1 + acoustic_dim], special offset included -> [B, n, dim], a plain sum."""
        return ops.embedding_sum(codes.to(self.stack.device), self.offsets, self.code_table, self.stack.dtype)

    @torch.inference_mode()
    def step(self, state: StackState, x: Tensor) -> tuple[Tensor, StackState]:
        """Run the next positions -> hidden [B, dim] of the last one.

        x is [B, n, dim] from `embed_prompt`, n > 1 at position 0: its hidden state gives frame 0.  Or it is the
        codes of frames, int64 [B, n, 1 + acoustic_dim]; the embedding is then part of the recorded step.

        Raises:
            ValueError: the state was made for fewer positions.
        """
        if state.position + x.shape[1] > state.kv.window:
            raise ValueError(
                f"{state.position} + {x.shape[1]} positions in a state made for {state.kv.window}"
            )
        return self.stack.advance(state, x.shape[1], x, record=x.shape[1] == 1), state

    @torch.inference_mode()
    def prefill(self, state: StackState, x: Tensor, *, record: bool = False) -> tuple[Tensor, StackState]:
        """Run a prompt [B, P, dim] at position 0 -> hidden [B, dim] of its last position.

        On CUDA it is filled up to a length of which there are few, for which kernels are chosen and, with `record`,
        graphs made: what is written behind the prompt is overwritten before it is seen.
        """
        positions = x.shape[1]
        filled = min(-(-positions // PROMPT_STEP) * PROMPT_STEP, state.kv.window)
        if self.stack.device.type != "cuda" or filled < positions:
            return self.step(state, x)
        x = F.pad(x, (0, 0, 0, filled - positions))
        hidden = self.stack.advance(state, filled, x, torch.tensor([positions - 1]), record=record)
        state.position = positions
        return hidden, state

    def warm(self, state: StackState) -> None:
        """Record the single step of a new state ahead of its first frame."""
        batch = state.kv.keys.shape[1]
        codes = torch.full((batch, 1, 1 + self.config.acoustic_dim), CODE_OFFSET)
        self.stack.warm(state, lambda: self.step(state, codes))

    def _run(self, kv: RingKV, x: Tensor, last: Tensor | None, turn: Tensor, span: Span) -> Tensor:
        """Do the tensor work of a step, without the bookkeeping: it can be recorded."""
        if not x.is_floating_point():
            x = self.embed_codes(x)
        y = self.stack(x, kv, turn, span)
        return self.stack.normed(y[:, -1] if last is None else y.index_select(1, last)[:, 0])


class Speaker:
    """The backbone with a voice: one stream after the other in one state, whose memory and graphs stay.

    A state is for one process that speaks one stream at a time; `begin` forgets the stream before.
    """

    def __init__(self, backbone: Backbone, voice: Tensor, placeholder: int, max_frames: int) -> None:
        """`voice` is [N, dim]; on CUDA the first steps are recorded here, for streams of `max_frames`."""
        self._backbone = backbone
        self._voice = voice
        self.voice_rows = len(voice)
        self._placeholder = placeholder
        self._state = backbone.new_state(self._round(len(voice) + USUAL_TEXT + max_frames))
        if backbone.stack.device.type == "cuda":
            backbone.warm(self._state)
            shortest = len(voice) + MARKS + 1
            for positions in range(shortest, shortest + USUAL_TEXT + PROMPT_STEP, PROMPT_STEP):
                for _ in range(2):
                    self._prefill([placeholder] * len(voice) + [0] * (positions - len(voice)), record=True)

    def begin(self, ids: list[int], max_frames: int) -> Tensor:
        """Run a prompt for a stream of up to `max_frames` -> hidden [1, dim] of frame 0."""
        positions = len(ids) + max_frames - 1
        if positions > self._state.kv.window:
            self._state = self._backbone.new_state(self._round(positions))
        return self._prefill(ids)

    def _prefill(self, ids: list[int], *, record: bool = False) -> Tensor:
        self._state.restart()
        x = self._backbone.embed_prompt(torch.tensor(ids), self._voice, self._placeholder)
        hidden, _ = self._backbone.prefill(self._state, x, record=record)
        return hidden

    def next(self, codes: list[int]) -> Tensor:
        """Run a frame of codes, offset included -> hidden [1, dim] of the frame behind it."""
        row = torch.from_numpy(np.array([[codes]]))  # torch.tensor takes four times as long for a list
        hidden, _ = self._backbone.step(self._state, row)
        return hidden

    @staticmethod
    def _round(positions: int) -> int:
        """Round up, so that a slightly longer prompt needs no other state."""
        return -(-positions // POSITIONS_STEP) * POSITIONS_STEP
