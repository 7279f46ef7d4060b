"""Small random speech synthesis models for tests; imported by name, not collected.

Weights depend on name and shape alone, so that the scripts in tests/golden can make them again elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from voxtral_pipes.config import BackboneConfig, CodecConfig, FlowConfig
from voxtral_pipes.models.tts_shapes import CODEC, FLOW, flow_shapes

SMALL_CODEC = CodecConfig(
    patch_samples=12,
    semantic_size=50,
    semantic_dim=10,
    acoustic_dim=7,
    dim=24,
    hidden_dim=40,
    n_heads=4,
    head_dim=10,
    stage_layers=(1, 2, 1, 2),
)
"""Odd on purpose: heads wider together than the model, stages of different depth."""

ODD_CODEC = CodecConfig(
    patch_samples=5,
    semantic_size=37,
    semantic_dim=9,
    acoustic_levels=20,
    acoustic_dim=5,
    dim=23,
    hidden_dim=33,
    n_heads=3,
    head_dim=7,
    stage_layers=(2, 1, 3, 1),
    first_window=3,
)
"""Odder: hardly a size with a factor in common, and heads that are no power of two."""

DEEP_CODEC = replace(ODD_CODEC, stage_layers=(2, 2, 2, 2), first_window=2)
"""As many layers and as wide windows as the published codec has, so frames reach as far back as there."""

SMALL_FLOW = FlowConfig(
    input_dim=40,
    dim=40,
    n_layers=3,
    n_heads=6,
    n_kv_heads=2,
    head_dim=12,
    hidden_dim=56,
    semantic_size=150,
    acoustic_dim=7,
)

ODD_FLOW = FlowConfig(
    input_dim=26,
    dim=26,
    n_layers=2,
    n_heads=3,
    n_kv_heads=3,
    head_dim=7,
    hidden_dim=33,
    semantic_size=37,
    acoustic_dim=5,
    acoustic_levels=20,
)
"""Its width is even, and equal to that of the hidden states, because the reference can be made no other way."""

TIE_FLOWS = tuple(replace(SMALL_FLOW, acoustic_levels=levels) for levels in (21, 17))
"""With 17 levels every boundary between two of them is a float32 number; with the published 21 not every one."""

CODECS = {"small": SMALL_CODEC, "odd": ODD_CODEC}
FLOWS = {"small": SMALL_FLOW, "odd": ODD_FLOW}
CODEC_FRAMES, FLOW_FRAMES = 48, 40
STEPS, GUIDANCES = (1, 3, 7), (1.0, 1.2)

SMALL_BACKBONE = BackboneConfig(
    dim=40,
    n_layers=3,
    n_heads=6,
    n_kv_heads=2,
    head_dim=12,
    hidden_dim=56,
    vocab_size=300,
    semantic_size=50,
    acoustic_dim=7,
)


LOW_USAGE = (0.0, 3e-6, 2e-5)
"""Of the first semantic entries: never used, below the floor, above it."""


def random_tensors(shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """Draw float32 tensors that keep activations near 1."""
    tensors = {}
    for name, shape in shapes.items():
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        draw = np.random.Generator(np.random.PCG64(seed)).standard_normal(tuple(shape))
        if name.endswith(("norm.weight", "original0")):
            draw = 1 + 0.2 * draw
        elif name.endswith("_scale"):
            draw = 0.3 + 0.1 * draw
        elif name.endswith("cluster_usage"):
            draw = np.abs(draw) + 0.5
            draw[: len(LOW_USAGE)] = LOW_USAGE
        elif name.endswith("embedding_sum"):
            draw[: len(LOW_USAGE)] *= 1e-5  # what is seldom used has a small sum
        elif name.endswith("acoustic_codebook_output.weight"):
            draw *= 0.5 / np.sqrt(shape[1])  # velocities that leave most of the state within its range
        elif len(shape) > 1 and "embeddings" not in name:
            draw /= np.sqrt(np.prod(shape[1:]))
        if name.startswith(CODEC) and name.endswith(("wq.weight", "wk.weight")):
            draw *= 0.01  # so small that the eps of their norm shows
        tensors[name] = torch.from_numpy(draw.astype(np.float32))
    return tensors


def random_codes(config: CodecConfig, n_frames: int, seed: int = 1) -> torch.Tensor:
    """Draw codes int64 [1, n_frames, 1 + acoustic_dim], offset included, and entries of `LOW_USAGE` early on."""
    codes = random_codes_of(config.semantic_size, config.acoustic_levels, config.acoustic_dim, n_frames, seed)
    for entry, frame in zip(range(len(LOW_USAGE)), range(3, n_frames, 2), strict=False):
        codes[:, frame, 0] = 2 + entry
    return codes


def random_codes_of(semantic: int, levels: int, width: int, n_frames: int, seed: int = 1) -> torch.Tensor:
    """Draw codes int64 [1, n_frames, 1 + width] of codebooks of these sizes, special offset included."""
    rng = np.random.default_rng(seed)
    first, rest = rng.integers(1, semantic, (1, n_frames, 1)), rng.integers(0, levels, (1, n_frames, width))
    return torch.from_numpy(np.concatenate([first, rest], axis=2) + 2)


def random_rows(n: int, width: int, seed: int) -> torch.Tensor:
    """Draw float32 [n, width] from N(0, 1)."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((n, width)).astype(np.float32))


def flow_tensors(config: FlowConfig) -> dict[str, torch.Tensor]:
    """Draw the weights of a flow head."""
    return random_tensors(flow_shapes(config))


def flow_inputs(config: FlowConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw hidden states [FLOW_FRAMES, input_dim] and noise [FLOW_FRAMES, acoustic_dim].

    Of every ten hidden states one wants END_AUDIO, one EMPTY_AUDIO and one the first row of padding.
    """
    rows = random_rows(FLOW_FRAMES, config.input_dim, 1)
    head = flow_tensors(config)[f"{FLOW}semantic_codebook_output.weight"]
    for place, wanted in ((4, 1), (5, 0), (6, config.semantic_size + 2)):
        rows[place::10] = 0.3 * rows[place::10] + 6 * head[wanted]
    return rows, random_rows(FLOW_FRAMES, config.acoustic_dim, 101)


def tie_inputs(config: FlowConfig) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Make weights whose velocity is zero, hidden states, and noise on the boundaries between levels."""
    tensors = flow_tensors(config)
    tensors[f"{FLOW}acoustic_codebook_output.weight"].zero_()
    rows = config.acoustic_levels - 1
    levels = torch.arange(rows, dtype=torch.float64)[:, None].expand(-1, config.acoustic_dim)
    noise = ((levels + 0.5) * 2 / rows - 1).float()
    return tensors, random_rows(rows, config.input_dim, 3), noise
