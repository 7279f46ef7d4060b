"""The causal audio encoder: log-mel frames to one embedding per 80 ms (asr.md sections 5, 7 and 8).

    mel [B, 8p, 128] -> conv0 (k 3, stride 1) -> gelu -> conv1 (k 3, stride 2) -> gelu     100/s -> 50/s
                     -> 32 blocks, window 750 -> norm                                      50/s
                     -> groups of 4 -> linear -> gelu -> linear -> [B, p, 3072]            12.5/s

Carried between calls: two mel frames, one conv0 output, the ring of keys and values, the position.
A row depends on mel frames up to its own last one; there is no look-ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from voxtral_pipes.config import EncoderConfig
from voxtral_pipes.kernels.packed import Weight
from voxtral_pipes.models.cache import RingKV, Span
from voxtral_pipes.models.layers import Linear, dense
from voxtral_pipes.models.stack import Stack, StackState

ROOT = "mm_streams_embeddings.embedding_module."
WHISPER = f"{ROOT}whisper_encoder."
KERNEL, STEM_STRIDE = 3, 2
"""Both convolutions have kernel 3; the first has stride 1, the second 2, each padded by kernel - stride left."""


@dataclass(slots=True)
class EncoderState(StackState):
    """What one lockstep batch of streams carries; owned by its caller, changed only by `Encoder.step`."""

    tails: tuple[Tensor, ...]
    """The last two mel frames, [B, 2, n_mels], and the last output of conv0, [B, 1, dim]; zeros (which in mel are
    not silence) before the first; written in place."""

    def restart(self) -> None:
        """Begin new streams; memory and graphs stay."""
        StackState.restart(self)
        for tail in self.tails:
            tail.zero_()


@dataclass(frozen=True, slots=True)
class Encoder:
    """Weights of the encoder; read-only and shared by all streams."""

    config: EncoderConfig
    convs: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
    """(weight [dim, in, 3], bias [dim]) of conv0 and conv1."""
    stack: Stack
    adapter: tuple[Linear, Linear]

    @classmethod
    def of(cls, tensors: Mapping[str, Weight], config: EncoderConfig) -> Encoder:
        """Assemble from tensors under their Mistral names, all on one device."""
        conv0, conv1 = (
            (
                dense(tensors, f"{WHISPER}conv_layers.{i}.conv.weight"),
                dense(tensors, f"{WHISPER}conv_layers.{i}.conv.bias"),
            )
            for i in range(2)
        )
        return cls(
            config=config,
            convs=(conv0, conv1),
            stack=(stack := Stack.of(tensors, f"{WHISPER}transformer.", config, rows="many")),
            adapter=(
                Linear.of(tensors, f"{ROOT}audio_language_projection.0").prepared(stack.dtype, rows="many"),
                Linear.of(tensors, f"{ROOT}audio_language_projection.2").prepared(stack.dtype, rows="many"),
            ),
        )

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return self.stack.dtype

    @property
    def token_frames(self) -> int:
        """Mel frames per embedding."""
        return STEM_STRIDE * self.config.downsample

    def new_state(self, max_step_tokens: int, batch: int = 1) -> EncoderState:
        """Begin `batch` streams that are stepped by at most `max_step_tokens` embeddings at a time."""
        config = self.config
        kv = self.stack.new_kv(
            batch=batch, window=config.window, max_step=max_step_tokens * config.downsample
        )
        tails = tuple(
            torch.zeros(batch, steps, channels, device=self.stack.device, dtype=self.dtype)
            for steps, channels in ((KERNEL - 1, config.n_mels), (KERNEL - STEM_STRIDE, config.dim))
        )

        def run(mel: Tensor, turn: Tensor, span: Span) -> Tensor:
            return self._run(tails, kv, mel, turn, span)

        # Rows travel on by a pipe.  That they come to the host in the step itself saves a copy and two waits.
        return EncoderState(kv, 0, run, tails, to_host=True)

    def warm(self, state: EncoderState, *tokens: int) -> None:
        """Record steps of so many embeddings each ahead of the first audio of a new state."""
        silence = torch.zeros(state.tails[0].shape[0], self.token_frames, self.config.n_mels)
        self.stack.warm(state, *(partial(self.step, state, silence.repeat(1, n, 1)) for n in tokens))

    def step(self, state: EncoderState, mel: Tensor) -> tuple[Tensor, EncoderState]:
        """Encode the next frames: mel float32 [B, 8n, n_mels] -> embeddings [B, n, decoder dim] and the state.

        The result is on the host, and the same for any division into steps, up to rounding.

        Raises:
            ValueError: the frames are not whole embeddings, or more than the state was made for.
        """
        return self.start_step(state, mel)(), state

    @torch.inference_mode()
    def start_step(self, state: EncoderState, mel: Tensor) -> Callable[[], Tensor]:
        """Start `step`; what is returned gives the embeddings (see `Stack.start`)."""
        if mel.shape[1] % self.token_frames:
            raise ValueError(f"{mel.shape[1]} mel frames are not a multiple of {self.token_frames}")
        return self.stack.start(state, mel.shape[1] // STEM_STRIDE, mel)

    def _run(self, tails: tuple[Tensor, ...], kv: RingKV, mel: Tensor, turn: Tensor, span: Span) -> Tensor:
        """Do the tensor work of a step, without the bookkeeping: it can be recorded."""
        x = self.stack.normed(self.stack(self._stem(tails, mel), kv, turn, span))
        groups = x.reshape(x.shape[0], x.shape[1] // self.config.downsample, -1)
        first, second = self.adapter
        return second(F.gelu(first(groups)))

    def _stem(self, tails: tuple[Tensor, ...], mel: Tensor) -> Tensor:
        """Mel [B, 2n, n_mels] to [B, n, dim]; carries the tails of both convolutions, in place."""
        mel_tail, conv_tail = tails
        x = torch.cat((mel_tail, mel.to(self.stack.device, self.dtype)), dim=1)
        mel_tail.copy_(x[:, -mel_tail.shape[1] :])
        x = torch.cat((conv_tail, F.gelu(_convolve(x, *self.convs[0], stride=1))), dim=1)
        conv_tail.copy_(x[:, -conv_tail.shape[1] :])
        return F.gelu(_convolve(x, *self.convs[1], stride=STEM_STRIDE))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, *, stride: int) -> Tensor:
    """Convolve [B, T, C] with weight [M, C, K]: [B, (T - K) / stride + 1, M].

    As a product: for the few frames of a live step cuDNN takes several times as long to reorder them.
    """
    return F.linear(x.unfold(1, KERNEL, stride).flatten(2), weight.flatten(1), bias)
