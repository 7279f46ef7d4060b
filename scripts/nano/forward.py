"""The recogniser as a function of its weights, batched and differentiable, for training.

The same mathematics as `voxtral_pipes.models.encode` and `.decode`, which step through streams with rings of keys and
cannot be trained; a test holds the two together.  Weights are a dict under their names in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from voxtral_pipes.config import AsrConfig, DecoderConfig, EncoderConfig
from voxtral_pipes.kernels.reference import rms_norm
from voxtral_pipes.models.cache import Rotary
from voxtral_pipes.models.decode import EMBEDDING
from voxtral_pipes.models.encode import KERNEL, ROOT, STEM_STRIDE, WHISPER
from voxtral_pipes.models.layers import time_embedding
from voxtral_pipes.models.shapes import decoder_shapes, encoder_shapes

Weights = Mapping[str, Tensor]


PHONES = "training.phones"
"""What hears phones in the encoder's frames: in no checkpoint, for only training needs it."""


def new_weights(config: AsrConfig, seed: int, n_phones: int = 0) -> dict[str, Tensor]:
    """Draw weights to start from: residual branches small, so that deep stacks begin as shallow ones."""
    draw = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in (encoder_shapes(config) | decoder_shapes(config)).items():
        if name.endswith("norm.weight"):
            weights[name] = torch.ones(shape)
        elif name.endswith(".bias"):
            weights[name] = torch.zeros(shape)
        else:
            layers = config.decoder.n_layers if name.startswith("layers.") else config.encoder.n_layers
            scale = 0.05 if name == EMBEDDING else prod(shape[1:]) ** -0.5
            if name.endswith(("wo.weight", "feed_forward.w2.weight")):
                scale /= (2 * layers) ** 0.5
            elif name.endswith("ada_rms_norm_t_cond.2.weight"):
                scale *= 0.1
            weights[name] = scale * torch.randn(shape, generator=draw)
    weights[f"{PHONES}.weight"] = 0.02 * torch.randn(n_phones + 1, config.encoder.dim, generator=draw)
    weights[f"{PHONES}.bias"] = torch.zeros(n_phones + 1)
    return weights


def encode(weights: Weights, config: AsrConfig, mel: Tensor) -> Tensor:
    """Map mel [B, 8p, n_mels], the padded stream from its start, to embeddings [B, p, decoder dim]."""
    return adapt(weights, config, hear(weights, config, mel))


def hear(weights: Weights, config: AsrConfig, mel: Tensor, dropout: float = 0.0) -> Tensor:
    """Map mel [B, 8p, n_mels] to the encoder's frames [B, 4p, dim]."""
    c = config.encoder
    x = mel.transpose(1, 2)
    for i, stride in enumerate((1, STEM_STRIDE)):
        weight, bias = (weights[f"{WHISPER}conv_layers.{i}.conv.{part}"] for part in ("weight", "bias"))
        x = F.gelu(F.conv1d(F.pad(x, (KERNEL - stride, 0)), weight, bias, stride=stride))
    return _stack(weights, f"{WHISPER}transformer.", c, x.transpose(1, 2), None, dropout)


def adapt(weights: Weights, config: AsrConfig, frames: Tensor) -> Tensor:
    """Map frames [B, 4p, dim] to embeddings [B, p, decoder dim]."""
    groups = frames.reshape(frames.shape[0], frames.shape[1] // config.encoder.downsample, -1)
    adapter = f"{ROOT}audio_language_projection."
    return F.linear(F.gelu(F.linear(groups, weights[f"{adapter}0.weight"])), weights[f"{adapter}2.weight"])


def phones_heard(weights: Weights, frames: Tensor) -> Tensor:
    """Return how likely each phone is in frames [B, T, dim]: logarithms, float32 [B, T, 1 + phones]."""
    return F.linear(frames, weights[f"{PHONES}.weight"], weights[f"{PHONES}.bias"]).float().log_softmax(-1)


def phones_loss(heard: Tensor, phones: Tensor, counts: Tensor) -> Tensor:
    """Return how badly phones were heard, [B, T, 1 + phones]: their mean negative log-likelihood.

    By connectionist temporal classification (Graves et al., 2006).  `phones` follow each other through the rows;
    `counts` [B], on the host, are those of each.
    """
    if not len(counts):
        return heard.new_zeros(())
    steps = torch.full_like(counts, heard.shape[1])
    loss = F.ctc_loss(heard.transpose(0, 1), phones, steps, counts, reduction="sum", zero_infinity=True)
    return loss / max(1, len(phones))


def decode(
    weights: Weights, config: AsrConfig, audio: Tensor, tokens: Tensor, delays: Tensor, dropout: float = 0.0
) -> Tensor:
    """Map embeddings [B, p, dim], the token fed at each position [B, p] and delays in tokens [B] to logits."""
    c = config.decoder
    x = audio + weights[EMBEDDING][tokens]
    times = _times(c.dim, x.device)[delays]
    scales = []
    for i in range(c.n_layers):
        down, up = (weights[f"layers.{i}.ada_rms_norm_t_cond.{part}.weight"] for part in (0, 2))
        with torch.autocast(x.device.type, enabled=False):  # float32 there as well
            scales.append(1 + F.linear(F.gelu(F.linear(times, down)), up)[:, None])
    return F.linear(_stack(weights, "", c, x, scales, dropout), weights[EMBEDDING])


def _stack(
    weights: Weights,
    prefix: str,
    c: EncoderConfig | DecoderConfig,
    x: Tensor,
    scales: list[Tensor] | None,
    dropout: float,
) -> Tensor:
    x = x.float()  # what the layers add to stays exact under autocast
    turn, mask = _turn_and_mask(c.head_dim, c.rope_theta, c.window, x.shape[1], x.device)
    for i in range(c.n_layers):
        layer = f"{prefix}layers.{i}."
        n = rms_norm(x, weights[f"{layer}attention_norm.weight"], c.norm_eps)
        q, k, v = (
            _linear(weights, f"{layer}attention.{name}", n).unflatten(-1, (-1, c.head_dim))
            for name in ("wq", "wk", "wv")
        )
        q, k, v = (part.transpose(1, 2).to(v.dtype) for part in (_rotate(q, turn), _rotate(k, turn), v))
        seen = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=c.n_kv_heads != c.n_heads)
        x = x + F.dropout(_linear(weights, f"{layer}attention.wo", seen.transpose(1, 2).flatten(2)), dropout)
        m = rms_norm(x, weights[f"{layer}ffn_norm.weight"], c.norm_eps)
        if scales is not None:
            m = m * scales[i]
        ffn = f"{layer}feed_forward."
        gate = F.silu(_linear(weights, f"{ffn}w1", m)) * _linear(weights, f"{ffn}w3", m)
        x = x + F.dropout(_linear(weights, f"{ffn}w2", gate), dropout)
    return rms_norm(x, weights[f"{prefix}norm.weight"], c.norm_eps)


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def _rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Do what `reference.rotate` does, in real numbers, which can be compiled: turn [T, D / 2, 2]."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = turn[:, None].unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _turn_and_mask(
    head_dim: int, theta: float, window: int, steps: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    return _new_turn_and_mask(head_dim, theta, window, steps, device)


@lru_cache(16)
def _new_turn_and_mask(
    head_dim: int, theta: float, window: int, steps: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    at = torch.arange(steps, device=device)
    mask = (at <= at[:, None]) & (at > at[:, None] - window)
    return torch.view_as_real(Rotary(head_dim, theta).at(0, steps)).to(device), mask


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _times(dim: int, device: torch.device) -> Tensor:
    return _new_times(dim, device)


@lru_cache(4)
def _new_times(dim: int, device: torch.device) -> Tensor:
    return torch.stack([time_embedding(delay, dim) for delay in range(31)]).to(device)
