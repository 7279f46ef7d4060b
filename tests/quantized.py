"""scripts/quantize and what it is made of, on small models; imported by name, not collected."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from preloaded import script_preloaded

from voxtral_pipes.formats.locate import ModelFiles, files_at
from voxtral_pipes.models.checkpoint import AsrCheckpoint, TtsCheckpoint
from voxtral_pipes.models.dense_rows import DenseRows
from voxtral_pipes.models.gguf_layout import GgufLayout, Packing, asr_layout, tts_layout
from voxtral_pipes.models.quantize import quantize
from voxtral_pipes.models.quantize_errors import TensorError, tensor_errors

TESTS = str(Path(__file__).parent)
KINDS: tuple[Packing, ...] = ("q4_0", "q8_0")
WEIGHTS = 3000
"""In a piece, so that even tensors of small models come in several."""


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return script_preloaded("quantize", *args)


def opened(source: Path, kind: Packing = "q4_0") -> tuple[ModelFiles, DenseRows, GgufLayout]:
    """Open a model; a file `is-tts` beside it says of which family."""
    files = files_at(source)
    if (source.parent / "is-tts").exists():
        speech = TtsCheckpoint(files)
        layout = tts_layout(speech.config, kind)
        return files, DenseRows(speech, layout), layout
    hearing = AsrCheckpoint(files)
    layout = asr_layout(hearing.config, kind)
    return files, DenseRows(hearing, layout), layout


def packed(source: Path, out: Path, kind: Packing = "q4_0", **options: Any) -> Path:
    files, rows, layout = opened(source, kind)
    quantize(files, rows, layout, out, piece_weights=options.pop("piece_weights", WEIGHTS), **options)
    return out


def errors(source: Path, out: Path) -> dict[str, TensorError]:
    _, rows, layout = opened(source)
    return {error.name: error for error in tensor_errors(out, rows, layout)}
