"""The codec as a function of its weights, batched and differentiable: encoder, quantisers, decoder.

The decoder is the mathematics of `voxtral_pipes.models.codec`, which streams and cannot be trained; a test holds the
two together.  The encoder is ours: every layer is causal, so codes of a beginning are the beginning of the codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from nano.tts_size import EncoderSize
from nano.tts_weights import ENCODER
from voxtral_pipes.config import CodecConfig
from voxtral_pipes.kernels.reference import rms_norm
from voxtral_pipes.models.codec import USAGE_FLOOR, alibi_slopes, fold_weight_norm
from voxtral_pipes.models.codes import CODE_OFFSET
from voxtral_pipes.models.tts_shapes import (
    BOOK,
    CODEC,
    FIRST_KERNEL,
    OUT_KERNEL,
    conv_names,
    gain_and_direction,
)

Weights = Mapping[str, Tensor]
SUM, USAGE = f"{BOOK}embedding_sum", f"{BOOK}cluster_usage"
_NORM_EPS = 1e-5
DEAD = 0.1
"""An entry that is chosen so much more rarely than the mean begins again."""
_RANGE = 0.99
"""Acoustic values stay so far within -1 and 1 that the outermost levels can be reached by rounding alone."""


def encode(weights: Weights, config: CodecConfig, size: EncoderSize, samples: Tensor) -> Tensor:
    """Map waveforms [B, 1920 n] to latents [B, n, semantic + acoustic], neither rounded nor bounded."""
    patches = samples.unflatten(1, (-1, config.patch_samples)).transpose(1, 2)
    x = F.conv1d(F.pad(patches, (6, 0)), weights[f"{ENCODER}first.weight"]).transpose(1, 2)
    window = size.window
    for i in range(len(config.stage_layers)):
        if i:
            x = x.transpose(1, 2)
            x = F.conv1d(F.pad(x, (2, 0)), weights[f"{ENCODER}halvings.{i - 1}.weight"], stride=2).transpose(
                1, 2
            )
            window //= 2
        layer = f"{ENCODER}layers.{i}."
        n = rms_norm(x, weights[f"{layer}attention_norm.weight"], _NORM_EPS)
        q, k, v = (F.linear(n, weights[f"{layer}attention.{name}.weight"]) for name in ("wq", "wk", "wv"))
        x = x + F.linear(_attend(q, k, v, size.n_heads, window), weights[f"{layer}attention.wo.weight"])
        x = x + _swiglu(weights, layer, rms_norm(x, weights[f"{layer}ffn_norm.weight"], _NORM_EPS))
    x = rms_norm(x, weights[f"{ENCODER}norm.weight"], _NORM_EPS).transpose(1, 2)
    return F.conv1d(F.pad(x, (2, 0)), weights[f"{ENCODER}out.weight"]).transpose(1, 2)


def book(weights: Weights) -> Tensor:
    """Return the semantic codebook [entries, semantic_dim], as readers of the checkpoint compute it."""
    return weights[SUM].float() / weights[USAGE].float().clamp(min=USAGE_FLOOR)[:, None]


def nearest(weights: Weights, semantic: Tensor) -> Tensor:
    """Return the number of the nearest entry for each latent, int64 [...]."""
    entries = book(weights)
    distances = entries.square().sum(dim=1) - 2 * semantic.float() @ entries.T
    return distances.argmin(dim=-1)


def bounded(acoustic: Tensor) -> Tensor:
    """Bring acoustic latents into -1 to 1."""
    return _RANGE * acoustic.float().tanh()


def levels(count: int, values: Tensor) -> Tensor:
    """Round values in -1 to 1 to so many levels from 0 on, int64; ties to even, as the flow head does."""
    half = (count - 1) / 2
    return torch.round(half * (values.clamp(-1, 1) + 1)).to(torch.int64)


def codes_of(weights: Weights, config: CodecConfig, latents: Tensor) -> Tensor:
    """Quantise latents [B, n, ...] to codes int64 [B, n, 37], offset included."""
    semantic, acoustic = latents.split((config.semantic_dim, config.acoustic_dim), dim=-1)
    bare = torch.cat(
        (nearest(weights, semantic)[..., None], levels(config.acoustic_levels, bounded(acoustic))), dim=-1
    )
    return bare + CODE_OFFSET


@dataclass(frozen=True, slots=True)
class Quantised:
    """What the decoder is trained on."""

    latents: Tensor
    """[B, n, semantic + acoustic]; gradients go through the rounding as if it were not there."""
    commitment: Tensor
    """Mean squared distance of semantic latents from their entries."""
    semantic: Tensor
    """The latents before rounding, float32 [B, n, semantic_dim], without gradient."""
    chosen: Tensor


def quantise(weights: Weights, config: CodecConfig, latents: Tensor, noise: Tensor | None) -> Quantised:
    """Round as `codes_of` does, with straight-through gradients; `noise` [B, n, acoustic] is added to what is rounded.

    With noise the decoder stays in order where a flow head misses a level.
    """
    semantic, acoustic = latents.float().split((config.semantic_dim, config.acoustic_dim), dim=-1)
    chosen = nearest(weights, semantic.detach())
    entries = book(weights)[chosen]
    values = bounded(acoustic)
    rounded = levels(config.acoustic_levels, values).float() * 2 / (config.acoustic_levels - 1) - 1
    if noise is not None:
        rounded = (rounded + noise).clamp(-1, 1)
    return Quantised(
        latents=torch.cat(
            (semantic + (entries - semantic).detach(), values + (rounded - values).detach()), dim=-1
        ),
        commitment=(semantic - entries.detach()).square().mean(),
        semantic=semantic.detach(),
        chosen=chosen,
    )


@torch.no_grad()
def update_book(weights: Weights, quantised: Quantised, decay: float, draw: torch.Generator) -> Tensor:
    """Move entries towards the mean of what chose them; entries that die begin again at a latent; return how many."""
    flat, chosen = quantised.semantic.flatten(0, 1), quantised.chosen.flatten()
    sums, usage = weights[SUM], weights[USAGE]
    counts = torch.zeros_like(usage).index_add_(0, chosen, torch.ones_like(chosen, dtype=usage.dtype))
    usage.mul_(decay).add_(counts, alpha=1 - decay)
    sums.mul_(decay).add_(torch.zeros_like(sums).index_add_(0, chosen, flat), alpha=1 - decay)
    # For all entries, those alive too: nothing waits for the device to say which are dead.
    dead = usage < DEAD * len(flat) / len(usage)
    rows = torch.randint(len(flat), (len(usage),), generator=draw, device=flat.device)
    share = len(flat) / len(usage)
    usage.copy_(torch.where(dead, share, usage))
    sums.copy_(torch.where(dead[:, None], flat[rows] * share, sums))
    return dead.sum()


def decode(weights: Weights, config: CodecConfig, latents: Tensor) -> Tensor:
    """Map latents [B, n, semantic + acoustic] to waveforms [B, 1920 n]."""
    first, *ups, out = (
        fold_weight_norm(*(weights[part] for part in gain_and_direction(name))) for name in conv_names(config)
    )
    x = F.conv1d(F.pad(latents.transpose(1, 2), (FIRST_KERNEL - 1, 0), mode="replicate"), first).transpose(
        1, 2
    )
    for stage, count in enumerate(config.stage_layers):
        if stage:
            x = F.conv_transpose1d(x.transpose(1, 2), ups[stage - 1], stride=2)[..., :-2].transpose(1, 2)
        for i in range(count):
            x = _layer(weights, config, f"{CODEC}decoder_blocks.{2 * stage + 1}.layers.{i}.", x, stage)
    patches = F.conv1d(F.pad(x.transpose(1, 2), (OUT_KERNEL - 1, 0), mode="reflect"), out)
    return patches.transpose(1, 2).flatten(1).float()


def _layer(weights: Weights, config: CodecConfig, layer: str, x: Tensor, stage: int) -> Tensor:
    n = rms_norm(x, weights[f"{layer}attention_norm.weight"], config.norm_eps)
    q, k, v = (F.linear(n, weights[f"{layer}attention.{name}.weight"]) for name in ("wq", "wk", "wv"))
    q, k = (
        rms_norm(part, weights[f"{layer}attention.{name}.weight"], config.qk_norm_eps)
        for part, name in ((q, "q_norm"), (k, "k_norm"))
    )
    mixed = _attend(q, k, v, config.n_heads, config.first_window * 2**stage)
    x = x + weights[f"{layer}attention_scale"] * F.linear(mixed, weights[f"{layer}attention.wo.weight"])
    m = rms_norm(x, weights[f"{layer}ffn_norm.weight"], config.norm_eps)
    return x + weights[f"{layer}ffn_scale"] * _swiglu(weights, layer, m)


def _swiglu(weights: Weights, layer: str, m: Tensor) -> Tensor:
    w1, w2, w3 = (weights[f"{layer}feed_forward.{name}.weight"] for name in ("w1", "w2", "w3"))
    return F.linear(F.silu(F.linear(m, w1)) * F.linear(m, w3), w2)


def _attend(q: Tensor, k: Tensor, v: Tensor, n_heads: int, window: int) -> Tensor:
    """Attend causally to window + 1 keys with ALiBi, [B, T, H D] each."""
    bias = _bias(q.shape[1], n_heads, window, q.device)
    q, k, v = (part.unflatten(-1, (n_heads, -1)).transpose(1, 2).to(v.dtype) for part in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(v.dtype))
    return mixed.transpose(1, 2).flatten(2)


@lru_cache(64)
def _bias(steps: int, n_heads: int, window: int, device: torch.device) -> Tensor:
    at = torch.arange(steps, device=device)
    ahead = at - at[:, None]
    slopes = alibi_slopes(n_heads).to(device)[:, None, None]
    return (slopes * ahead).masked_fill((ahead > 0) | (ahead < -window), -torch.inf)
