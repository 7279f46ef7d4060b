"""Random checkpoints in the real file layouts, for tests, demonstrations and speed measurements.

Every tensor comes from a generator of its own, seeded by seed and name, and is drawn, rounded to BF16 and
written in pieces, so that even the full size needs little memory and all layouts of one seed hold the same
weights.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist
from string import ascii_lowercase
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from voxtral_pipes.config import AsrConfig, DecoderConfig, EncoderConfig
from voxtral_pipes.errors import OutputError
from voxtral_pipes.models.hf_names import hf_name
from voxtral_pipes.models.hyperparameters import ENCODER
from voxtral_pipes.models.random_tekken import STREAMING_PAD, STREAMING_WORD, n_special, write_tekken
from voxtral_pipes.models.shapes import Shape, decoder_shapes, encoder_shapes, is_rotary

Format = Literal["safetensors", "hf", "gguf-q4"]
Words = npt.NDArray[np.uint16]
"""BF16 as it is stored."""

_PIECE_WEIGHTS = 1 << 22
_LEVELS = 1 << 16
_DECODER_FACTORS = {
    "attention.wo.weight": 0.25,
    "feed_forward.w2.weight": 3.0,
    "ada_rms_norm_t_cond.2.weight": 0.3,
}
_ENCODER_FACTORS = {"feed_forward.w2.weight": 2.0, "audio_language_projection.2.weight": 0.25}
_QUIET_SCALE = 0.25
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

    Same config and seed give the same bytes; "gguf-q4" holds the weights of the others after quantisation.

    Raises:
        ValueError: the format is unknown, or dimensions are no multiples of 32 and Q4_0 is asked for.
        OutputError: the directory holds a model already, or cannot be written.
    """
    shapes = encoder_shapes(config) | decoder_shapes(config)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        taken = [path.name for path in out_dir.iterdir() if path.suffix in (".safetensors", ".gguf", ".json")]
        if taken:
            raise OutputError(f"{out_dir} holds {taken[0]} already: name an empty directory")
        if format == "hf":
            _write_safetensors(out_dir / "model.safetensors", _hf_order(shapes), config, seed)
            _write_json(out_dir / "config.json", hf_settings(config))
        else:
            if format == "safetensors":
                _write_safetensors(out_dir / "consolidated.safetensors", {n: n for n in shapes}, config, seed)
            elif format == "gguf-q4":
                _write_gguf(out_dir / "voxtral-q4.gguf", shapes, seed)
            else:
                raise ValueError(f"unknown format {format!r}")
            _write_json(out_dir / "params.json", params_settings(config))
        write_tekken(out_dir / "tekken.json", config.decoder.vocab_size, config.audio)
    except OSError as error:
        raise OutputError(f"{out_dir} cannot be written: {error.strerror or error}") from error
    return out_dir


@dataclass(frozen=True, slots=True)
class _Law:
    """How the weights of one tensor are distributed: mean + scale * N(0, 1)."""

    mean: float
    scale: float


def _law(name: str, shape: Shape) -> _Law:
    """Keep activations near one through any depth, and decoding varied.

    The head is the embedding, so what enters a position is answered with itself unless the layers outweigh
    it; what outweighs it must depend on the token and not only on the (averaging) attention: hence a strong
    decoder w2 and a weak wo.  The factors were found by decoding with the tiny model.
    """
    if name.endswith("norm.weight"):
        return _Law(1.0, 0.1)
    if name.endswith(".bias"):
        return _Law(0.0, 0.05)
    if name.endswith("tok_embeddings.weight"):
        return _Law(0.0, 0.2)
    factors = _DECODER_FACTORS if name.startswith("layers.") else _ENCODER_FACTORS
    factor = next((value for ending, value in factors.items() if name.endswith(ending)), 1.0)
    return _Law(0.0, factor / math.sqrt(math.prod(shape[1:])))


@cache
def _quantiles() -> npt.NDArray[np.float64]:
    """Return the standard normal distribution as 65536 equally likely values."""
    normal = NormalDist()
    half = np.array([normal.inv_cdf((i + 0.5) / _LEVELS) for i in range(_LEVELS // 2)])
    return np.concatenate([half, -half[::-1]])


def bf16_words(values: npt.NDArray[np.float32]) -> Words:
    """Round finite float32 to the nearest BF16, ties to even (formats.md section 4)."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _float32(words: Words) -> npt.NDArray[np.float32]:
    return (words.astype(np.uint32) << 16).view(np.float32)


def random_words(name: str, shape: Shape, seed: int) -> Iterator[Words]:
    """Yield the weights of one tensor in pieces of whole rows; uint16 BF16 words, [rows, ...]."""
    law = _law(name, shape)
    table = bf16_words((law.mean + law.scale * _quantiles()).astype(np.float32))
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    bits = np.random.PCG64(int.from_bytes(digest, "little"))
    row = math.prod(shape[1:])
    step = max(1, _PIECE_WEIGHTS // row)
    for start in range(0, shape[0], step):
        rows = min(step, shape[0] - start)
        raw = bits.random_raw(-(-rows * row // 4)).astype("<u8", copy=False).view("<u2")[: rows * row]
        piece = table[raw].reshape(rows, *shape[1:])
        if name.endswith("tok_embeddings.weight"):
            ids = np.arange(start, start + rows)
            quiet = (ids < n_special(shape[0])) & (ids != STREAMING_PAD) & (ids != STREAMING_WORD)
            piece[quiet] = bf16_words(_float32(piece[quiet]) * np.float32(_QUIET_SCALE))
        yield piece


def _hf_order(shapes: Mapping[str, Shape]) -> dict[str, str]:
    return {hf_name(name): name for name in shapes}


def _half_split(pieces: Iterator[Words], head_dim: int) -> Iterator[Words]:
    whole = np.concatenate(list(pieces))
    yield np.ascontiguousarray(
        whole.reshape(-1, head_dim // 2, 2, *whole.shape[1:]).swapaxes(1, 2).reshape(whole.shape)
    )


def _write_safetensors(path: Path, names: Mapping[str, str], config: AsrConfig, seed: int) -> None:
    """Write BF16 tensors; `names` maps names in the file to Mistral's: other names, other row order."""
    shapes = encoder_shapes(config) | decoder_shapes(config)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for stored, name in names.items():
        end = at + 2 * math.prod(shapes[name])
        header[stored] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for stored, name in names.items():
            pieces = random_words(name, shapes[name], seed)
            if stored != name and is_rotary(name):
                part = config.encoder if name.startswith(ENCODER) else config.decoder
                pieces = _half_split(pieces, part.head_dim)
            for piece in pieces:
                file.write(piece.astype("<u2", copy=False).data)


def _write_gguf(path: Path, shapes: Mapping[str, Shape], seed: int) -> None:
    """Write matrices as Q4_0 by ggml's rule and all else as F32 (formats.md section 1)."""
    import gguf

    odd = [name for name, shape in shapes.items() if len(shape) == 2 and shape[1] % 32]
    if odd:
        raise ValueError(f"{odd[0]} has rows of {shapes[odd[0]][1]}; Q4_0 needs multiples of 32")
    writer = gguf.GGUFWriter(path, "voxtral")
    q4, f32 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.F32
    for name, shape in shapes.items():
        if len(shape) == 2:
            stored = (shape[0], shape[1] // 32 * 18)
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), math.prod(stored), raw_dtype=q4)
        else:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * math.prod(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape in shapes.items():
        pieces = (_float32(piece) for piece in random_words(name, shape, seed))
        kind = q4 if len(shape) == 2 else f32
        writer.write_tensor_data(np.concatenate([gguf.quantize(piece, kind) for piece in pieces]))
    writer.close()


def cut_raw(model_dir: Path, shard_bytes: int) -> None:
    """Replace the weights file of `model_dir` by raw shards, named as `split -b` names them.

    Raises:
        ValueError: it would take more than 650 shards, or the size is not positive.
    """
    (whole,) = (path for path in model_dir.iterdir() if path.suffix in (".safetensors", ".gguf"))
    n_shards = -(-whole.stat().st_size // max(shard_bytes, 1))
    if shard_bytes < 1 or n_shards > 26 * 25:  # after shard-yz the names grow longer
        raise ValueError(f"shards of {shard_bytes} bytes: {n_shards} would be needed; 1 to 650 can be named")
    with whole.open("rb") as source:
        for letters in itertools.islice(itertools.product(ascii_lowercase, repeat=2), n_shards):
            with (model_dir / f"shard-{''.join(letters)}").open("xb") as shard:
                left = shard_bytes
                while left and (piece := source.read(min(left, 1 << 24))):
                    shard.write(piece)
                    left -= len(piece)
    whole.unlink()


def _write_json(path: Path, settings: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def params_settings(config: AsrConfig) -> dict[str, Any]:
    """Return the contents of params.json (asr.md section 13)."""
    d, e, audio = config.decoder, config.encoder, config.audio
    return {
        "dim": d.dim, "n_layers": d.n_layers, "head_dim": d.head_dim, "hidden_dim": d.hidden_dim,
        "n_heads": d.n_heads, "n_kv_heads": d.n_kv_heads, "use_biases": False, "causal": True,
        "rope_theta": d.rope_theta, "norm_eps": d.norm_eps, "vocab_size": d.vocab_size, "model_parallel": 1,
        "tied_embeddings": True, "sliding_window": d.window, "model_max_length": 131072,
        "ada_rms_norm_t_cond": True, "ada_rms_norm_t_cond_dim": d.ada_dim,
        "multimodal": {"whisper_model_args": {
            "encoder_args": {
                "audio_encoding_args": {
                    "sampling_rate": audio.rate_hz, "frame_rate": audio.frame_rate_hz,
                    "num_mel_bins": audio.n_mels, "hop_length": audio.hop_samples,
                    "window_size": audio.window_samples, "chunk_length_s": None,
                    "global_log_mel_max": audio.log_mel_max, "transcription_format": "streaming",
                },
                "dim": e.dim, "n_layers": e.n_layers, "head_dim": e.head_dim, "hidden_dim": e.hidden_dim,
                "n_heads": e.n_heads, "n_kv_heads": e.n_heads, "vocab_size": d.vocab_size, "use_biases": True,
                "use_cache": False, "rope_theta": e.rope_theta, "causal": True, "norm_eps": e.norm_eps,
                "pos_embed": "rope", "max_source_positions": None, "ffn_type": "swiglu",
                "norm_type": "rms_norm", "sliding_window": e.window,
            },
            "downsample_args": {"downsample_factor": e.downsample},
        }},
    }  # fmt: skip


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
