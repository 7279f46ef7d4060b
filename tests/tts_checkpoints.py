"""Random speech synthesis checkpoints of odd dimensions in the real layouts; imported by name, not collected."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

from voxtral_pipes.config import BackboneConfig, CodecConfig, FlowConfig, TtsConfig
from voxtral_pipes.formats.locate import files_at
from voxtral_pipes.kernels.packed import StoredWeight
from voxtral_pipes.models.checkpoint import TtsCheckpoint
from voxtral_pipes.models.random_model import make_tts_model
from voxtral_pipes.models.random_tts import SOMETIMES, Format
from voxtral_pipes.models.tts_shapes import tts_shapes
from voxtral_pipes.models.weights import load_weights

_CODES = {"semantic_size": 61, "acoustic_dim": 11, "acoustic_levels": 17}

ODD = TtsConfig(
    backbone=BackboneConfig(
        dim=52, n_layers=3, n_heads=6, n_kv_heads=2, head_dim=10, hidden_dim=70, vocab_size=1483, rope_theta=31000.0,
        norm_eps=3e-5, max_positions=700, **_CODES,
    ),
    flow=FlowConfig(
        input_dim=52, dim=46, n_layers=2, n_heads=9, n_kv_heads=3, head_dim=6, hidden_dim=58, steps=5, norm_eps=2e-5,
        **_CODES,
    ),
    codec=CodecConfig(
        patch_samples=120, semantic_dim=13, dim=22, hidden_dim=34, n_heads=3, head_dim=7,
        stage_layers=(1, 2, 1, 1, 1), first_window=3, **_CODES,
    ),
)  # fmt: skip
"""Hardly two sizes alike and none a multiple of 32, a codec of another depth; settings that are not published."""

PACKABLE = TtsConfig(
    backbone=replace(ODD.backbone, dim=96, n_heads=3, n_kv_heads=1, head_dim=32, hidden_dim=160),
    flow=replace(
        ODD.flow, input_dim=96, dim=64, n_heads=6, n_kv_heads=2, head_dim=16, hidden_dim=32, steps=7
    ),
    codec=replace(
        ODD.codec, patch_samples=120, semantic_dim=32, stage_layers=(1, 1, 2, 1, 1), first_window=1
    ),
)
"""The same where rows are whole blocks of 32."""

LAYOUTS: tuple[Format, ...] = ("safetensors", "gguf-q4", "gguf-q8")
KINDS = {"gguf-q4": "Q4_0", "gguf-q8": "Q8_0"}
VOICES = {"casual_male": 9, "Fr_Female": 4, "ann": 1}


def make(
    home: Path,
    config: TtsConfig,
    format: Format = "safetensors",
    *,
    seed: int = 5,
    end_gain: float = SOMETIMES,
) -> Path:
    """Write a random model; params.json says which encoder it had, which decides the windows (tts.md section 9)."""
    make_tts_model(home, config, format, seed, voices=VOICES, end_gain=end_gain)
    strides = ",".join(["2"] * (len(config.codec.stage_layers) - 1) + ["1"])
    change(home / "params.json", {"multimodal.audio_tokenizer_args.encoder_convs_strides_str": strides})
    return home


def change(path: Path, changes: Mapping[str, Any]) -> None:
    """Set keys of a JSON file, "a.b" being b inside a; `...` takes one out."""
    settings = json.loads(path.read_text())
    for where, value in changes.items():
        *parents, key = where.split(".")
        section = settings
        for parent in parents:
            section = section[parent]
        if value is ...:
            del section[key]
        else:
            section[key] = value
    path.write_text(json.dumps(settings))


def opened(path: Path) -> TtsCheckpoint:
    """Open a checkpoint as the commands do."""
    return TtsCheckpoint(files_at(path))


def load(checkpoint: TtsCheckpoint) -> dict[str, StoredWeight]:
    """Read all tensors as the commands do."""
    names = tts_shapes(checkpoint.config, checkpoint.names)
    return load_weights(checkpoint, names, torch.device("cpu"), torch.float32)


def values(home: Path) -> dict[str, torch.Tensor]:
    """Read all tensors, float32, with the packages that belong to the formats."""
    if (home / "consolidated.safetensors").exists():
        return {name: t.float() for name, t in load_file(home / "consolidated.safetensors").items()}
    return {
        tensor.name: torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        for tensor in gguf.GGUFReader(next(home.glob("*.gguf"))).tensors
    }


Stored = tuple[np.ndarray[Any, Any], gguf.GGMLQuantizationType]


def stored(home: Path) -> dict[str, Stored]:
    """Read the tensors of a GGUF as they lie there."""
    reader = gguf.GGUFReader(next(home.glob("*.gguf")))
    return {tensor.name: (np.array(tensor.data), tensor.tensor_type) for tensor in reader.tensors}


def write_gguf(path: Path, tensors: Mapping[str, Stored], split: int = 0) -> None:
    """Write a GGUF with its package; with `split`, parts of so many bytes."""
    writer = gguf.GGUFWriter(path, "voxtral-tts", split_max_size=split)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def packed(data: Sequence[Any] | np.ndarray[Any, Any], kind: str) -> Stored:
    """Quantise float32 values."""
    type_ = gguf.GGMLQuantizationType[kind]
    return gguf.quantize(np.asarray(data, np.float32), type_), type_
