"""The causal audio encoder: log-mel frames to one embedding per 80 ms (asr.md sections 5, 7 and 8).

    mel [B, 8p, 128] -> conv0 (k 3, stride 1) -> gelu -> conv1 (k 3, stride 2) -> gelu     100/s -> 50/s
                     -> 32 blocks, window 750 -> norm                                      50/s
                     -> groups of 4 -> linear -> gelu -> linear -> [B, p, 3072]            12.5/s

Carried between calls: two mel frames, one conv0 output, the ring of keys and values, the position.
A row depends on mel frames up to its own last one; there is no look-ahead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from voxtral_pipes.config import EncoderConfig
from voxtral_pipes.kernels import dispatch as ops
from voxtral_pipes.kernels.packed import Weight
from voxtral_pipes.models.cache import RingKV, Rotary
from voxtral_pipes.models.layers import Block, Linear, dense

ROOT = "mm_streams_embeddings.embedding_module."
WHISPER = f"{ROOT}whisper_encoder."
KERNEL, STEM_STRIDE = 3, 2
"""Both convolutions have kernel 3; the first has stride 1, the second 2, each padded by kernel - stride left."""


@dataclass(slots=True)
class EncoderState:
    """What one lockstep batch of streams carries; owned by its caller, changed only by `Encoder.step`."""

    mel_tail: Tensor
    """[B, n_mels, 2], the last mel frames; zeros (not silence) before the first."""
    conv_tail: Tensor
    """[B, dim, 1], the last output of conv0 after its GELU; zeros before the first."""
    kv: RingKV
    position: int
    """Encoder positions done, 4 per embedding."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """Weights of the encoder; read-only and shared by all streams."""

    config: EncoderConfig
    convs: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
    """(weight [dim, in, 3], bias [dim]) of conv0 and conv1."""
    blocks: tuple[Block, ...]
    norm: Tensor
    adapter: tuple[Linear, Linear]
    rotary: Rotary
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, tensors: Mapping[str, Weight], config: EncoderConfig) -> Encoder:
        """Assemble from tensors under their Mistral names, all on one device."""
        norm = dense(tensors[f"{WHISPER}transformer.norm.weight"])
        conv0, conv1 = (
            (
                dense(tensors[f"{WHISPER}conv_layers.{i}.conv.weight"]),
                dense(tensors[f"{WHISPER}conv_layers.{i}.conv.bias"]),
            )
            for i in range(2)
        )
        return cls(
            config=config,
            convs=(conv0, conv1),
            blocks=tuple(
                Block.of(tensors, f"{WHISPER}transformer.layers.{i}.", config.head_dim, config.norm_eps)
                for i in range(config.n_layers)
            ),
            norm=norm,
            adapter=(
                Linear.of(tensors, f"{ROOT}audio_language_projection.0"),
                Linear.of(tensors, f"{ROOT}audio_language_projection.2"),
            ),
            rotary=Rotary(config.head_dim, config.rope_theta, norm.device),
            device=norm.device,
            dtype=norm.dtype,
        )

    @property
    def token_frames(self) -> int:
        """Mel frames per embedding."""
        return STEM_STRIDE * self.config.downsample

    def new_state(self, max_step_tokens: int, batch: int = 1) -> EncoderState:
        """Begin `batch` streams that are stepped by at most `max_step_tokens` embeddings at a time."""
        config, place = self.config, {"device": self.device, "dtype": self.dtype}
        return EncoderState(
            mel_tail=torch.zeros(batch, config.n_mels, KERNEL - 1, device=self.device, dtype=self.dtype),
            conv_tail=torch.zeros(
                batch, config.dim, KERNEL - STEM_STRIDE, device=self.device, dtype=self.dtype
            ),
            kv=RingKV.new(
                layers=config.n_layers,
                batch=batch,
                heads=config.n_heads,
                head_dim=config.head_dim,
                window=config.window,
                max_step=max_step_tokens * config.downsample,
                **place,  # type: ignore[arg-type]
            ),
            position=0,
        )

    @torch.inference_mode()
    def step(self, state: EncoderState, mel: Tensor) -> tuple[Tensor, EncoderState]:
        """Encode the next frames: mel float32 [B, 8n, n_mels] -> embeddings [B, n, decoder dim] and the state.

        The result is the same for any division into steps, up to rounding.

        Raises:
            ValueError: the frames are not whole embeddings, or more than the state was made for.
        """
        if mel.shape[1] % self.token_frames:
            raise ValueError(f"{mel.shape[1]} mel frames are not a multiple of {self.token_frames}")
        x = self._stem(state, mel)
        steps = x.shape[1]
        turn = self.rotary.at(state.position, steps)
        span = state.kv.span(state.position, steps)
        for layer, block in enumerate(self.blocks):
            x = block(x, turn, state.kv, layer, span)
        state.position += steps
        x = ops.rms_norm(x, self.norm, self.config.norm_eps)
        groups = x.reshape(x.shape[0], steps // self.config.downsample, -1)
        first, second = self.adapter
        return second(F.gelu(first(groups))), state

    def _stem(self, state: EncoderState, mel: Tensor) -> Tensor:
        """Mel [B, 2n, n_mels] to [B, n, dim]; carries the tails of both convolutions."""
        (weight0, bias0), (weight1, bias1) = self.convs
        x = mel.to(self.device, self.dtype).transpose(1, 2)
        x = torch.cat((state.mel_tail, x), dim=2)
        state.mel_tail = x[:, :, -state.mel_tail.shape[2] :].clone()
        x = F.gelu(F.conv1d(x, weight0, bias0))
        x = torch.cat((state.conv_tail, x), dim=2)
        state.conv_tail = x[:, :, -state.conv_tail.shape[2] :].clone()
        return F.gelu(F.conv1d(x, weight1, bias1, stride=STEM_STRIDE)).transpose(1, 2)
