"""What lies beside the weights of a model, written beside a GGUF: settings, tokenizer, voices.

What is there already stays as it is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from voxtral_pipes.errors import OutputError
from voxtral_pipes.formats.atomic import replace_file
from voxtral_pipes.formats.locate import ModelFiles
from voxtral_pipes.formats.safetensors_writer import bf16_header
from voxtral_pipes.formats.settings import read_json
from voxtral_pipes.models.asr_params import params_settings
from voxtral_pipes.models.checkpoint import AsrCheckpoint, Checkpoint, TtsCheckpoint
from voxtral_pipes.models.voices import FOLDER, KEY, read_rows, row_table, voices_in

if TYPE_CHECKING:
    from torch import Tensor


def write_companions(files: ModelFiles, checkpoint: Checkpoint, home: Path) -> None:
    """Write params.json, tekken.json and voice_embedding/ into `home`, where they are missing.

    Beside transformers' layout there is no params.json: it is made from the hyperparameters.

    Raises:
        BadModelError: a voice cannot be read.
        OutputError: something cannot be written.
    """
    try:
        if files.tekken is not None:
            _copy(files.tekken, home / "tekken.json")
        if not checkpoint.half_split and files.params is not None:
            _copy(files.params, home / "params.json")
        elif isinstance(checkpoint, AsrCheckpoint) and not (home / "params.json").exists():
            text = json.dumps(params_settings(checkpoint.config), indent=2) + "\n"
            replace_file(home / "params.json", lambda file: file.write(text.encode()))
        if isinstance(checkpoint, TtsCheckpoint):
            _write_voices(files, checkpoint.config.backbone.dim, home / FOLDER)
    except OSError as error:
        raise OutputError(f"{home} cannot be written to: {error.strerror or error}") from error


def _copy(source: Path, target: Path) -> None:
    if not target.exists():
        with source.open("rb") as held:
            replace_file(target, lambda file: shutil.copyfileobj(held, file))


def _write_voices(files: ModelFiles, dim: int, folder: Path) -> None:
    """Write each voice as a safetensors file of one BF16 tensor, [N, dim] (formats.md section 2)."""
    source = files.weights[0].parent / FOLDER
    if not source.is_dir():
        return
    table = _rows_of(files.tekken)
    for voice in voices_in(source, table).values():
        target = folder / f"{voice.name}.safetensors"
        if voice.path is None or target.exists():
            continue
        rows = read_rows(voice, dim)
        folder.mkdir(exist_ok=True)
        replace_file(target, lambda file, rows=rows: write_embedding(file, rows))  # type: ignore[misc]


def _rows_of(tekken: Path | None) -> Mapping[str, int] | None:
    """Return the rows of each voice, where there is a tekken.json."""
    if tekken is None:
        return None
    audio = read_json(tekken).get("audio")
    return row_table(audio if isinstance(audio, dict) else {}, tekken.name)


def write_embedding(file: BinaryIO, rows: Tensor) -> None:
    """Write [N, dim] as safetensors: one tensor, `embedding`, rounded to BF16."""
    import torch

    words = rows.to(torch.bfloat16).contiguous().view(torch.int16).numpy()
    file.write(bf16_header({KEY: tuple(rows.shape)}))
    file.write(words.astype("<i2", copy=False).data)
