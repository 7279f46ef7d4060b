"""Write a trained model in the published layout: weights, settings, vocabulary, voices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from nano.tts_size import VOCAB_SIZE
from nano.tts_weights import VOICES
from voxtral_pipes.config import TtsConfig
from voxtral_pipes.formats.bf16 import Words, bf16_words
from voxtral_pipes.models.random_files import new_directory, write_json, write_safetensors
from voxtral_pipes.models.random_tekken import tts_audio, write_tekken
from voxtral_pipes.models.random_tts import params_settings
from voxtral_pipes.models.tts_shapes import tts_shapes
from voxtral_pipes.models.voices import FOLDER, KEY


def export(out_dir: Path, config: TtsConfig, weights: Mapping[str, Tensor], voices: Sequence[str]) -> None:
    """Write a model into a new directory; of `weights` what the checkpoint knows, and the voices.

    Raises:
        OutputError: the directory holds a model already, or cannot be written.
    """
    rows = dict.fromkeys(voices, weights[VOICES].shape[1])
    shapes = dict(sorted(tts_shapes(config).items()))
    with new_directory(out_dir):
        write_safetensors(out_dir / "consolidated.safetensors", shapes, lambda name: _words(weights[name]))
        (out_dir / FOLDER).mkdir()
        for number, name in enumerate(voices):
            voice = weights[VOICES][number]
            path = out_dir / FOLDER / f"{name}.safetensors"
            write_safetensors(path, {KEY: tuple(voice.shape)}, {KEY: list(_words(voice))}.__getitem__)
        write_json(out_dir / "params.json", params_settings(config, rows))
        write_tekken(out_dir / "tekken.json", VOCAB_SIZE, tts_audio(config.codec, rows))


def _words(weight: Tensor) -> Iterable[Words]:
    values: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = (
        weight.detach().float().cpu().contiguous().numpy()
    )
    yield bf16_words(values)
