"""Random speech synthesis checkpoints in the real file layouts, for tests, demonstrations and measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from voxtral_pipes.config import BackboneConfig, CodecConfig, FlowConfig, TtsConfig
from voxtral_pipes.models.random_files import new_directory, write_json, write_safetensors
from voxtral_pipes.models.random_tekken import tts_audio, write_tekken
from voxtral_pipes.models.random_weights import Law, Words, fan_in_law, random_words
from voxtral_pipes.models.shapes import Shape

Format = Literal["safetensors"]

VOICES: Mapping[str, int] = {
    "casual_female": 214, "casual_male": 147, "cheerful_female": 132, "neutral_female": 218, "neutral_male": 169,
    "pt_male": 144, "pt_female": 175, "nl_male": 138, "nl_female": 146, "it_male": 168, "it_female": 172,
    "fr_male": 97, "fr_female": 97, "es_male": 208, "es_female": 138, "de_male": 163, "de_female": 147,
    "ar_male": 67, "hi_male": 94, "hi_female": 86,
}  # fmt: skip
"""Published voices and their rows (tts.md section 2)."""
SHORT_VOICES: Mapping[str, int] = {name: 3 + 7 * i % 10 for i, name in enumerate(VOICES)}
"""The same names with 3 to 12 rows."""

SOMETIMES, NEVER = 1.55, 0.1
"""Gains of the END_AUDIO row of the semantic head: with the tiny model's 254 entries it wins one frame in about 30,
and practically never.  A row of gain 1 would win as often as any other."""

_END_AUDIO = 1
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


def tts_shapes(config: TtsConfig) -> dict[str, Shape]:
    """Return name and shape of every tensor of consolidated.safetensors, by name (tts.md section 11)."""
    # They live in modules that import torch, which makers of recognition models need not wait for.
    from voxtral_pipes.models.backbone import backbone_shapes
    from voxtral_pipes.models.codec import codec_shapes
    from voxtral_pipes.models.flow import flow_shapes

    shapes = backbone_shapes(config.backbone) | flow_shapes(config.flow) | codec_shapes(config.codec)
    return dict(sorted(shapes.items()))


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
    arguments give the same bytes.

    Raises:
        ValueError: the format is unknown, or the parts of the model do not fit together.
        OutputError: the directory holds a model already, or cannot be written.
    """
    shapes = tts_shapes(config)
    settings = params_settings(config, voices)

    def draw(name: str) -> Iterator[Words]:
        return random_words(name, shapes[name], seed, _law(name, shapes[name], end_gain))

    def draw_voice(name: str) -> Iterator[Words]:
        rows = voices[name], config.backbone.dim
        return random_words(f"voice_embedding/{name}", rows, seed, Law(0.0, _EMBEDDED))

    with new_directory(out_dir):
        if format == "safetensors":
            write_safetensors(out_dir / "consolidated.safetensors", shapes, draw)
            _write_pt_voices(out_dir / "voice_embedding", voices, draw_voice)
        else:
            raise ValueError(f"unknown format {format!r}")
        write_json(out_dir / "params.json", settings)
        write_tekken(out_dir / "tekken.json", config.backbone.vocab_size, tts_audio(config.codec, voices))
    return out_dir


def _law(name: str, shape: Shape, end_gain: float) -> Law:
    """Keep activations near one through any depth, codes varied, and the waveform within its range.

    Weight norm makes `original0` the size of a row whatever `original1` is.  In the doubling ones it is that of an
    input channel, spread over four taps of which two meet in each output: hence the square root of two.
    """
    if name.endswith(("attention_scale", "ffn_scale")):
        return Law(0.3, 0.03)
    if name.endswith("norm.weight"):
        return Law(1.0, 0.1)
    if name.endswith("original0"):
        size = 0.12 if "output_proj" in name else 1.0 if "decoder_blocks.0." in name else 2**0.5
        return Law(size, size / 10)
    if name.endswith("cluster_usage"):
        return Law(2.0, 0.3)
    if name.endswith("embedding_sum"):
        return Law(0.0, 2.0)
    if name.endswith("tok_embeddings.weight"):
        return Law(0.0, _EMBEDDED)
    if name.endswith("audio_codebook_embeddings.embeddings.weight"):
        return Law(0.0, _EMBEDDED / 37**0.5)
    if name.endswith("semantic_codebook_output.weight"):
        plain = fan_in_law(shape)
        return Law(plain.mean, plain.scale, {_END_AUDIO: end_gain})
    if name.endswith("acoustic_codebook_output.weight"):
        return fan_in_law(shape, 0.5)
    return fan_in_law(shape)


def _write_pt_voices(home: Path, voices: Mapping[str, int], draw: Callable[[str], Iterator[Words]]) -> None:
    """Write each voice as torch.save does: one BF16 tensor [rows, dim] (tts.md section 2)."""
    import torch

    home.mkdir(exist_ok=True)
    for name in voices:
        words = np.concatenate(list(draw(name))).view(np.int16)
        torch.save(torch.from_numpy(words).view(torch.bfloat16), home / f"{name}.pt")


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
