"""Small random speech synthesis models for tests; imported by name, not collected.

Weights depend on name and shape alone, so that the scripts in tests/golden can make them again elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from voxtral_pipes.config import BackboneConfig, CodecConfig, FlowConfig

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
            draw[0] = 0.0  # an entry that was never used
        elif name.endswith("acoustic_codebook_output.weight"):
            draw *= 0.5 / np.sqrt(shape[1])  # velocities that leave most of the state within its range
        elif len(shape) > 1 and "embeddings" not in name and not name.endswith("embedding_sum"):
            draw /= np.sqrt(np.prod(shape[1:]))
        tensors[name] = torch.from_numpy(draw.astype(np.float32))
    return tensors


def random_codes(config: CodecConfig, n_frames: int, seed: int = 1) -> torch.Tensor:
    """Draw codes int64 [1, n_frames, 1 + acoustic_dim], special offset included."""
    return random_codes_of(config.semantic_size, config.acoustic_levels, config.acoustic_dim, n_frames, seed)


def random_codes_of(semantic: int, levels: int, width: int, n_frames: int, seed: int = 1) -> torch.Tensor:
    """Draw codes int64 [1, n_frames, 1 + width] of codebooks of these sizes, special offset included."""
    rng = np.random.default_rng(seed)
    first, rest = rng.integers(1, semantic, (1, n_frames, 1)), rng.integers(0, levels, (1, n_frames, width))
    return torch.from_numpy(np.concatenate([first, rest], axis=2) + 2)


def random_rows(n: int, width: int, seed: int) -> torch.Tensor:
    """Draw float32 [n, width] from N(0, 1)."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((n, width)).astype(np.float32))
