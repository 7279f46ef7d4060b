"""What the GGUF files of both models hold: names, order, types and shapes (formats.md sections 1 and 2).

No import of numpy or torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from voxtral_pipes.config import AsrConfig, TtsConfig
from voxtral_pipes.formats.table import TYPE_SIZES, TensorInfo
from voxtral_pipes.models.shapes import Shape, decoder_shapes, encoder_shapes
from voxtral_pipes.models.tts_shapes import conv_names, tts_shapes

Packing = Literal["q4_0", "q8_0"]

_DENSE = (
    "norm.weight", "attention_scale", "ffn_scale", "audio_codebook_embeddings", "input_projection.weight",
    "acoustic_codebook_output.weight", "audio_tokenizer.",
)  # fmt: skip
"""What the names of tensors contain that the GGUF of synthesis keeps as F32."""


@dataclass(frozen=True, slots=True)
class GgufLayout:
    """The contents of one file, values aside."""

    architecture: str
    """`general.architecture`, the only metadata."""
    tensors: Mapping[str, TensorInfo]
    """In the order of the file."""


def asr_layout(config: AsrConfig, packing: Packing) -> GgufLayout:
    """Return the contents of a recognition model: matrices packed, all else F32.

    Raises:
        ValueError: rows of a packed tensor are no multiple of 32.
    """
    shapes = encoder_shapes(config) | decoder_shapes(config)
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    return GgufLayout("voxtral", _table(shapes, matrices, packing))


def tts_layout(config: TtsConfig, packing: Packing) -> GgufLayout:
    """Return the contents of a synthesis model.

    Raises:
        ValueError: rows of a packed tensor are no multiple of 32.
    """
    shapes = gguf_shapes(config)
    return GgufLayout("voxtral-tts", _table(shapes, packed_names(shapes), packing))


def gguf_shapes(config: TtsConfig) -> dict[str, Shape]:
    """Return name and shape of every tensor of a synthesis GGUF in its order: by name, folded convolutions last."""
    folded = [f"{conv}.weight" for conv in conv_names(config.codec)]
    shapes = tts_shapes(config, folded)
    return {name: shapes[name] for name in sorted(shapes, key=lambda name: (name in folded, name))}


def packed_names(names: Iterable[str]) -> list[str]:
    """Return which tensors of a synthesis GGUF are quantised."""
    return [name for name in names if not any(mark in name for mark in _DENSE)]


def _table(shapes: Mapping[str, Shape], packed: Collection[str], packing: Packing) -> dict[str, TensorInfo]:
    kind, block = packing.upper(), TYPE_SIZES[packing.upper()][0]
    for name in packed:
        if shapes[name][-1] % block:
            raise ValueError(f"{name} has rows of {shapes[name][-1]}; {kind} needs multiples of {block}")
    held = set(packed)
    return {name: TensorInfo(shape, kind if name in held else "F32") for name, shape in shapes.items()}
