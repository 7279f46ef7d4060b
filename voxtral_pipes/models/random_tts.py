"""Random speech synthesis checkpoints in the real file layouts, for tests, demonstrations and measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from voxtral_pipes.config import BackboneConfig, CodecConfig, FlowConfig, TtsConfig
from voxtral_pipes.formats.bf16 import Words, widen
from voxtral_pipes.models.codes import END_AUDIO
from voxtral_pipes.models.gguf_layout import Packing, tts_layout
from voxtral_pipes.models.random_files import (
    new_directory,
    write_gguf,
    write_json,
    write_safetensors,
)
from voxtral_pipes.models.random_tekken import tts_audio, write_tekken
from voxtral_pipes.models.random_weights import Law, fan_in_law, random_words
from voxtral_pipes.models.shapes import Shape
from voxtral_pipes.models.tts_shapes import (
    CODE_TABLE,
    FLOW,
    TEXT_TABLE,
    conv_names,
    gain_and_direction,
    tts_shapes,
)
from voxtral_pipes.models.voices import FOLDER, KEY, PUBLISHED

Format = Literal["safetensors", "gguf-q4", "gguf-q8"]
Draw = Callable[[str], Iterator[Words]]
"""Gives the pieces of a tensor by its name."""

SHORT_VOICES: Mapping[str, int] = {name: 3 + 7 * i % 10 for i, name in enumerate(PUBLISHED)}
"""The names of the published voices with 3 to 12 rows."""

SOMETIMES, NEVER = 1.55, 0.1
"""Gains of the END_AUDIO row of the semantic head: with the tiny model's 254 entries it wins one frame in about 30,
and practically never.  A row of gain 1 would win as often as any other."""

_BACKBONE_FACTORS = {"attention.wo.weight": 0.25, "feed_forward.w2.weight": 2.0}
_EMBEDDED = 0.2
"""Size of what enters the backbone: text, voices, and the sum of the codes of a frame."""


def tiny_tts_config() -> TtsConfig:
    """Return a model of about 2.5 MB with the published frame: 37 codes, 1920 samples at 24 kHz."""
    semantic_size = 254
    return TtsConfig(
        backbone=BackboneConfig(
            dim=128,
            n_layers=2,
            n_heads=6,
            n_kv_heads=2,
            head_dim=32,
            hidden_dim=256,
            vocab_size=1600,
            semantic_size=semantic_size,
            max_positions=4096,
        ),
        flow=FlowConfig(
            input_dim=128,
            dim=96,
            n_layers=3,
            n_heads=4,
            n_kv_heads=2,
            head_dim=32,
            hidden_dim=160,
            semantic_size=semantic_size,
        ),
        codec=CodecConfig(
            semantic_size=semantic_size,
            semantic_dim=20,
            dim=48,
            hidden_dim=112,
            n_heads=4,
            head_dim=20,
        ),
    )


def make_tts_model(
    out_dir: Path,
    config: TtsConfig,
    format: Format = "safetensors",
    seed: int = 0,
    *,
    voices: Mapping[str, int] = SHORT_VOICES,
    end_gain: float = SOMETIMES,
) -> Path:
    """Write a random model, its settings, tekken.json and voices into `out_dir`, which is made; return `out_dir`.

    `voices` are the rows of each voice; `end_gain` is the factor of the weights that end an utterance.  Same
    arguments give the same bytes; the GGUF formats hold the weights of the other after quantisation.

    Raises:
        ValueError: the format is unknown, the parts of the model do not fit together, or dimensions are no
            multiples of 32 and a packed format is asked for.
        OutputError: the directory holds a model already, or cannot be written.
    """
    shapes = dict(sorted(tts_shapes(config).items()))
    settings = params_settings(config, voices)

    def draw(name: str) -> Iterator[Words]:
        return random_words(name, shapes[name], seed, _law(name, shapes[name], end_gain))

    def draw_voice(name: str) -> Iterator[Words]:
        rows = voices[name], config.backbone.dim
        return random_words(f"voice_embedding/{name}", rows, seed, Law(0.0, _EMBEDDED))

    with new_directory(out_dir):
        if format == "safetensors":
            write_safetensors(out_dir / "consolidated.safetensors", shapes, draw)
        elif format in ("gguf-q4", "gguf-q8"):
            path = out_dir / f"voxtral-tts-{format.removeprefix('gguf-')}.gguf"
            _write_gguf(path, config, "q4_0" if format == "gguf-q4" else "q8_0", draw)
        else:
            raise ValueError(f"unknown format {format!r}")
        _write_voices(out_dir / FOLDER, format, voices, config.backbone.dim, draw_voice)
        write_json(out_dir / "params.json", settings)
        write_tekken(out_dir / "tekken.json", config.backbone.vocab_size, tts_audio(config.codec, voices))
    return out_dir


def _law(name: str, shape: Shape, end_gain: float) -> Law:
    """Keep activations near one through any depth, codes varied, and the waveform within its range.

    A hidden state should depend on the frame before it more than on what all positions have in common, which attention
    averages out: otherwise some models never reach END_AUDIO, and others always do.  The factors were found by speaking
    with the tiny model.

    Weight norm makes `original0` the size of a row whatever `original1` is.  In the doubling ones it is that of an
    input channel, spread over four taps of which two meet in each output: hence the square root of two.
    """
    if name.endswith(("attention_scale", "ffn_scale")):
        return Law(0.3, 0.03)
    if name.endswith("norm.weight"):
        return Law(1.0, 0.1)
    if name.endswith("original0"):
        size = 0.1 if "output_proj" in name else 1.0 if "decoder_blocks.0." in name else 2**0.5
        return Law(size, size / 10)
    if name.endswith("cluster_usage"):
        return Law(2.0, 0.3)
    if name.endswith("embedding_sum"):
        return Law(0.0, 2.0)
    if name == TEXT_TABLE:
        return Law(0.0, _EMBEDDED)
    if name == CODE_TABLE:
        return Law(0.0, _EMBEDDED / 37**0.5)
    if name == f"{FLOW}semantic_codebook_output.weight":
        plain = fan_in_law(shape)
        return Law(plain.mean, plain.scale, {END_AUDIO: end_gain})
    if name == f"{FLOW}acoustic_codebook_output.weight":
        return fan_in_law(shape, 0.5)
    factors = _BACKBONE_FACTORS if name.startswith("layers.") else {}
    return fan_in_law(shape, next((value for ending, value in factors.items() if name.endswith(ending)), 1.0))


def _write_gguf(path: Path, config: TtsConfig, packing: Packing, draw: Draw) -> None:
    folded = {f"{conv}.weight": conv for conv in conv_names(config.codec)}

    def draw_wide(name: str) -> Iterator[npt.NDArray[np.float32]]:
        if name in folded:
            yield _folded(folded[name], draw)
        else:
            yield from map(widen, draw(name))

    write_gguf(path, tts_layout(config, packing), draw_wide)


def _folded(conv: str, draw: Draw) -> npt.NDArray[np.float32]:
    """Return the weight of a convolution, the same as a reader of its two halves computes."""
    import torch

    from voxtral_pipes.models.codec import fold_weight_norm

    gain, direction = (
        torch.from_numpy(np.concatenate([widen(piece) for piece in draw(name)]))
        for name in gain_and_direction(conv)
    )
    folded: npt.NDArray[np.float32] = fold_weight_norm(gain, direction).numpy()
    return folded


def _write_voices(home: Path, format: Format, voices: Mapping[str, int], dim: int, draw: Draw) -> None:
    """Write one BF16 tensor [rows, dim] for each voice.

    Beside safetensors they are what torch.save makes, beside a GGUF safetensors themselves (formats.md section 2).
    """
    home.mkdir(exist_ok=True)
    if format == "safetensors":
        import torch

        for name in voices:
            words = np.concatenate(list(draw(name))).view(np.int16)
            torch.save(torch.from_numpy(words).view(torch.bfloat16), home / f"{name}.pt")
    else:
        for name, rows in voices.items():
            pieces = list(draw(name))
            write_safetensors(home / f"{name}.safetensors", {KEY: (rows, dim)}, {KEY: pieces}.__getitem__)


def params_settings(config: TtsConfig, voices: Mapping[str, int]) -> dict[str, Any]:
    """Return the contents of params.json (tts.md section 2).

    What the published file leaves to defaults is there only where it differs from them.

    Raises:
        ValueError: the parts of the model do not fit together.
    """
    b, f, c = config.backbone, config.flow, config.codec
    codes = {(part.semantic_size, part.acoustic_dim, part.acoustic_levels) for part in (b, f, c)}
    if len(codes) > 1 or f.input_dim != b.dim:
        raise ValueError("backbone, flow head and codec differ in their codes or widths")
    published, n_doublings = FlowConfig(), len(c.stage_layers) - 1
    unusual = {"n_decoding_steps": (f.steps, published.steps), "norm_eps": (f.norm_eps, published.norm_eps)}
    return {
        "dim": b.dim, "n_layers": b.n_layers, "head_dim": b.head_dim, "hidden_dim": b.hidden_dim,
        "n_heads": b.n_heads, "n_kv_heads": b.n_kv_heads, "rope_theta": b.rope_theta, "norm_eps": b.norm_eps,
        "vocab_size": b.vocab_size, "max_seq_len": b.max_positions, "max_position_embeddings": 128000,
        "model_type": "voxtral_tts",
        "multimodal": {
            "bos_token_id": 1,
            "audio_model_args": {
                "semantic_codebook_size": b.semantic_size, "acoustic_codebook_size": b.acoustic_levels,
                "n_acoustic_codebook": b.acoustic_dim,
                "audio_encoding_args": {
                    "codebook_pattern": "parallel", "interleave_audio_tokens_per_segment": 8192,
                    "interleave_text_tokens_per_segment": 8192, "single_trailing_segment": False,
                    "num_codebooks": config.codebooks, "sampling_rate": c.rate_hz,
                    "frame_rate": c.rate_hz / c.frame_samples,
                },
                "audio_token_id": 24, "begin_audio_token_id": 25, "input_embedding_concat_type": "sum",
                "acoustic_transformer_args": {
                    "input_dim": f.input_dim, "dim": f.dim, "n_layers": f.n_layers, "head_dim": f.head_dim,
                    "hidden_dim": f.hidden_dim, "n_heads": f.n_heads, "n_kv_heads": f.n_kv_heads,
                    "use_biases": False, "rope_theta": 10000.0, "sigma": 1e-5, "sigma_max": 1.0,
                    **{key: value for key, (value, default) in unusual.items() if value != default},
                },
                "p_uncond": 0.0, "text_feature_bugged": False, "condition_dropped_token_id": 42,
            },
            "audio_tokenizer_args": {
                "channels": 1, "sampling_rate": c.rate_hz, "pretransform_patch_size": c.patch_samples,
                "patch_proj_kernel_size": 7, "semantic_codebook_size": c.semantic_size,
                "semantic_dim": c.semantic_dim, "acoustic_codebook_size": c.acoustic_levels,
                "acoustic_dim": c.acoustic_dim, "conv_weight_norm": True, "causal": True,
                "attn_sliding_window_size": c.first_window << n_doublings,
                "half_attn_window_upon_downsampling": True, "dim": c.dim, "hidden_dim": c.hidden_dim,
                "head_dim": c.head_dim, "n_heads": c.n_heads, "n_kv_heads": c.n_heads, "qk_norm": True,
                "qk_norm_eps": c.qk_norm_eps, "use_biases": False, "norm_eps": c.norm_eps,
                "layer_scale": True, "layer_scale_init": 0.01,
                "decoder_transformer_lengths_str": ",".join(map(str, c.stage_layers)),
                "decoder_convs_kernels_str": ",".join(["3"] + ["4"] * n_doublings),
                "decoder_convs_strides_str": ",".join(["1"] + ["2"] * n_doublings),
                "voice": {name: index for index, name in enumerate(voices)},
            },
        },
    }  # fmt: skip
