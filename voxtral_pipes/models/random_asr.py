"""Random speech recognition checkpoints in the real file layouts, for tests, demonstrations and measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from voxtral_pipes.config import AsrConfig, DecoderConfig, EncoderConfig
from voxtral_pipes.formats.bf16 import Words, widen
from voxtral_pipes.formats.tekken import PUBLISHED_SPECIAL
from voxtral_pipes.models.asr_params import params_settings
from voxtral_pipes.models.gguf_layout import asr_layout
from voxtral_pipes.models.hf_names import hf_name
from voxtral_pipes.models.hyperparameters import ENCODER
from voxtral_pipes.models.random_files import (
    new_directory,
    write_gguf,
    write_json,
    write_safetensors,
)
from voxtral_pipes.models.random_tekken import asr_audio, n_special, write_tekken
from voxtral_pipes.models.random_weights import Law, fan_in_law, random_words
from voxtral_pipes.models.shapes import Shape, decoder_shapes, encoder_shapes, is_rotary

Format = Literal["safetensors", "hf", "gguf-q4", "gguf-q8"]

_DECODER_FACTORS = {
    "attention.wo.weight": 0.25,
    "feed_forward.w2.weight": 3.0,
    "ada_rms_norm_t_cond.2.weight": 0.3,
}
_ENCODER_FACTORS = {"feed_forward.w2.weight": 2.0, "audio_language_projection.2.weight": 0.25}
_QUIET_GAIN = 0.25
"""Rows of special tokens but PAD and WORD are that much smaller, so that decoding mostly yields text."""


def tiny_config() -> AsrConfig:
    """Return a model of about 1.5 MB, its windows so short that a few seconds fill them."""
    return AsrConfig(
        encoder=EncoderConfig(dim=64, n_layers=2, n_heads=4, head_dim=32, hidden_dim=128, window=80),
        decoder=DecoderConfig(
            dim=128,
            n_layers=2,
            n_heads=4,
            n_kv_heads=2,
            head_dim=32,
            hidden_dim=256,
            window=64,
            vocab_size=1600,
        ),
    )


def make_asr_model(out_dir: Path, config: AsrConfig, format: Format = "safetensors", seed: int = 0) -> Path:
    """Write a random model with its settings and tekken.json into `out_dir`, which is made; return `out_dir`.

    Same config and seed give the same bytes; the GGUF formats hold the weights of the others after quantisation.

    Raises:
        ValueError: the format is unknown, or dimensions are no multiples of 32 and a packed format is asked for.
        OutputError: the directory holds a model already, or cannot be written.
    """
    shapes = encoder_shapes(config) | decoder_shapes(config)

    def draw(name: str) -> Iterator[Words]:
        return random_words(name, shapes[name], seed, _law(name, shapes[name]))

    with new_directory(out_dir):
        if format == "hf":
            _write_hf(out_dir / "model.safetensors", shapes, config, draw)
            write_json(out_dir / "config.json", hf_settings(config))
        else:
            if format == "safetensors":
                write_safetensors(out_dir / "consolidated.safetensors", shapes, draw)
            elif format in ("gguf-q4", "gguf-q8"):
                layout = asr_layout(config, "q4_0" if format == "gguf-q4" else "q8_0")
                path = out_dir / f"voxtral-{format.removeprefix('gguf-')}.gguf"
                write_gguf(path, layout, lambda name: map(widen, draw(name)))
            else:
                raise ValueError(f"unknown format {format!r}")
            write_json(out_dir / "params.json", params_settings(config))
        write_tekken(out_dir / "tekken.json", config.decoder.vocab_size, asr_audio(config.audio))
    return out_dir


def _law(name: str, shape: Shape) -> Law:
    """Keep activations near one through any depth, and decoding varied.

    The head is the embedding, so what enters a position is answered with itself unless the layers outweigh
    it; what outweighs it must depend on the token and not only on the (averaging) attention: hence a strong
    decoder w2 and a weak wo.  The factors were found by decoding with the tiny model.
    """
    if name.endswith("norm.weight"):
        return Law(1.0, 0.1)
    if name.endswith(".bias"):
        return Law(0.0, 0.05)
    if name.endswith("tok_embeddings.weight"):
        quiet = set(range(n_special(shape[0]))) - {
            PUBLISHED_SPECIAL["[STREAMING_PAD]"],
            PUBLISHED_SPECIAL["[STREAMING_WORD]"],
        }
        return Law(0.0, 0.2, dict.fromkeys(quiet, _QUIET_GAIN))
    factors = _DECODER_FACTORS if name.startswith("layers.") else _ENCODER_FACTORS
    return fan_in_law(shape, next((value for ending, value in factors.items() if name.endswith(ending)), 1.0))


def _write_hf(
    path: Path, shapes: Mapping[str, Shape], config: AsrConfig, draw: Callable[[str], Iterator[Words]]
) -> None:
    """Write the layout of transformers: other names, another row order."""
    names = {hf_name(name): name for name in shapes}

    def draw_hf(stored: str) -> Iterator[Words]:
        name = names[stored]
        if not is_rotary(name):
            return draw(name)
        part = config.encoder if name.startswith(ENCODER) else config.decoder
        return _half_split(draw(name), part.head_dim)

    write_safetensors(path, {stored: shapes[name] for stored, name in names.items()}, draw_hf)


def _half_split(pieces: Iterator[Words], head_dim: int) -> Iterator[Words]:
    whole = np.concatenate(list(pieces))
    yield np.ascontiguousarray(
        whole.reshape(-1, head_dim // 2, 2, *whole.shape[1:]).swapaxes(1, 2).reshape(whole.shape)
    )


def hf_settings(config: AsrConfig) -> dict[str, Any]:
    """Return the contents of config.json (asr.md section 13).

    Raises:
        ValueError: the ada width is not 32, which transformers cannot express.
    """
    d, e, audio = config.decoder, config.encoder, config.audio
    if d.ada_dim != 32:
        raise ValueError(f"transformers has an ada width of 32 only, not {d.ada_dim}")
    return {
        "architectures": ["VoxtralRealtimeForConditionalGeneration"],
        "model_type": "voxtral_realtime",
        "audio_config": {
            "model_type": "voxtral_realtime_encoder", "hidden_size": e.dim, "intermediate_size": e.hidden_dim,
            "num_hidden_layers": e.n_layers, "num_attention_heads": e.n_heads, "head_dim": e.head_dim,
            "sliding_window": e.window, "rms_norm_eps": e.norm_eps, "num_mel_bins": e.n_mels,
            "activation_function": "gelu", "hidden_act": "silu", "vocab_size": d.vocab_size,
            "rope_parameters": {"rope_theta": e.rope_theta, "rope_type": "default"},
        },
        "text_config": {
            "model_type": "voxtral_realtime_text", "hidden_size": d.dim, "intermediate_size": d.hidden_dim,
            "num_hidden_layers": d.n_layers, "num_attention_heads": d.n_heads,
            "num_key_value_heads": d.n_kv_heads, "head_dim": d.head_dim, "sliding_window": d.window,
            "rms_norm_eps": d.norm_eps, "vocab_size": d.vocab_size, "hidden_act": "silu",
            "rope_parameters": {"rope_theta": d.rope_theta, "rope_type": "default"},
            "tie_word_embeddings": True,
        },
        "downsample_factor": e.downsample,
        "audio_length_per_tok": audio.token_frames,
        "default_num_delay_tokens": audio.delay_ms // audio.token_ms,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }  # fmt: skip
