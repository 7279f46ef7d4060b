"""Weights to start from, under their names in the checkpoint."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nano.tts_size import EncoderSize
from voxtral_pipes.config import CodecConfig, TtsConfig
from voxtral_pipes.models.shapes import Shape, block_shapes
from voxtral_pipes.models.tts_shapes import (
    BOOK,
    CODE_TABLE,
    TEXT_TABLE,
    backbone_shapes,
    codec_shapes,
    flow_shapes,
)

ENCODER = "training_encoder."
VOICES = "training_voices"
_SMALL = ("wo.weight", "feed_forward.w2.weight")


def encoder_shapes(size: EncoderSize, codec: CodecConfig) -> dict[str, Shape]:
    """Return name and shape of every tensor of the encoder: patches, one layer a rate, halvings, latents."""
    shapes: dict[str, Shape] = {f"{ENCODER}first.weight": (size.dim, codec.patch_samples, 7)}
    stages = len(codec.stage_layers)
    for i in range(stages):
        shapes |= block_shapes(f"{ENCODER}layers.{i}.", size.dim, size.dim, size.dim, size.hidden_dim)
        if i < stages - 1:
            shapes[f"{ENCODER}halvings.{i}.weight"] = (size.dim, size.dim, 4)
    shapes[f"{ENCODER}norm.weight"] = (size.dim,)
    shapes[f"{ENCODER}out.weight"] = (codec.semantic_dim + codec.acoustic_dim, size.dim, 3)
    return shapes


def codec_weights(config: CodecConfig, size: EncoderSize, seed: int) -> dict[str, Tensor]:
    """Draw encoder and decoder; layers of both begin as small corrections."""
    draw = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, shape in (encoder_shapes(size, config) | codec_shapes(config)).items():
        if name.endswith("_scale"):
            weights[name] = torch.full(shape, 0.3)
        elif name.endswith("norm.weight") or name == f"{BOOK}cluster_usage":
            weights[name] = torch.ones(shape)
        elif name == f"{BOOK}embedding_sum":
            weights[name] = torch.randn(shape, generator=draw)
        elif name.endswith("original0"):
            weights[name] = torch.full(shape, 0.3 if "output_proj" in name else 1.4)
        else:
            scale = math.prod(shape[1:]) ** -0.5 * (0.3 if name.endswith(_SMALL) else 1.0)
            weights[name] = scale * torch.randn(shape, generator=draw)
    return weights


def speech_weights(config: TtsConfig, voices: int, rows: int, seed: int) -> dict[str, Tensor]:
    """Draw backbone, flow head and the rows of so many voices, [voices, rows, dim]."""
    draw = torch.Generator().manual_seed(seed)
    weights = {VOICES: 0.1 * torch.randn((voices, rows, config.backbone.dim), generator=draw)}
    layers = config.backbone.n_layers
    for name, shape in (backbone_shapes(config.backbone) | flow_shapes(config.flow)).items():
        if name.endswith("norm.weight"):
            weights[name] = torch.ones(shape)
            continue
        scale = (
            0.1
            if name == TEXT_TABLE
            else 0.1 / config.codebooks**0.5
            if name == CODE_TABLE
            else shape[-1] ** -0.5
        )
        if name.endswith(_SMALL):
            scale /= (2 * layers) ** 0.5
        weights[name] = scale * torch.randn(shape, generator=draw)
    return weights
