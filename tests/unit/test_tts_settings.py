"""The settings of a speech synthesis model: params.json, or the shapes of its tensors where there is none."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tts_checkpoints import KINDS, ODD, change, load, opened

from voxtral_pipes.config import BackboneConfig, CodecConfig, FlowConfig, TtsConfig
from voxtral_pipes.errors import BadModelError
from voxtral_pipes.models.gguf_layout import gguf_shapes
from voxtral_pipes.models.random_model import cut_raw, make_tts_model
from voxtral_pipes.models.random_tts import Format, params_settings
from voxtral_pipes.models.tts_hyperparameters import from_params, from_shapes
from voxtral_pipes.models.tts_shapes import BOOK, FLOW, TEXT_TABLE, tts_shapes
from voxtral_pipes.models.voices import PUBLISHED


def test_params_of_the_published_model(tmp_path: Path) -> None:
    path = tmp_path / "params.json"
    path.write_text(json.dumps(params_settings(TtsConfig(), PUBLISHED)))
    assert from_params(path) == TtsConfig()
    args = "multimodal.audio_model_args.acoustic_transformer_args"
    change(path, {f"{args}.n_decoding_steps": 8, "max_seq_len": ..., "unknown": [1], "sliding_window": None})
    assert from_params(path) == replace(TtsConfig(), flow=FlowConfig(steps=8))


@pytest.mark.parametrize("folded", [True, False])
def test_the_published_shapes_alone_tell_the_published_model(folded: bool) -> None:
    shapes = gguf_shapes(TtsConfig()) if folded else tts_shapes(TtsConfig())
    assert len(shapes) == (381 if folded else 386)
    assert from_shapes(shapes, "a.gguf") == TtsConfig()


def published_head_sizes() -> TtsConfig:
    codes = {"semantic_size": 61, "acoustic_dim": 11}
    return TtsConfig(
        backbone=BackboneConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=96, vocab_size=1400, **codes),
        flow=FlowConfig(input_dim=64, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, hidden_dim=64, **codes),
        codec=CodecConfig(semantic_dim=5, dim=18, hidden_dim=22, n_heads=2, stage_layers=(2, 1, 3, 1),
                          **codes),
    )  # fmt: skip


@pytest.mark.parametrize("layout", KINDS)
def test_a_bare_gguf_tells_its_shapes(tmp_path: Path, layout: Format) -> None:
    config = published_head_sizes()
    make_tts_model(tmp_path, config, layout)
    (tmp_path / "params.json").unlink()
    assert opened(tmp_path).config == config
    cut_raw(tmp_path, 100_000)
    assert opened(tmp_path).config == config
    (tmp_path / "tekken.json").unlink()
    load(opened(tmp_path))


def test_params_beside_a_gguf_win(tts_layouts: Path, tmp_path: Path) -> None:
    make_tts_model(tmp_path, published_head_sizes(), "gguf-q4")
    args = "multimodal.audio_model_args.acoustic_transformer_args"
    change(tmp_path / "params.json", {f"{args}.n_decoding_steps": 3, "rope_theta": 500.0, "max_seq_len": 99})
    config = opened(tmp_path).config
    assert (config.flow.steps, config.backbone.rope_theta, config.backbone.max_positions) == (3, 500.0, 99)
    change(tmp_path / "params.json", {"n_heads": 8, "n_kv_heads": 4, "head_dim": 64})  # same shapes
    assert opened(tmp_path).config.backbone.n_heads == 8


def test_what_a_bare_gguf_does_not_tell_is_refused(tts_layouts: Path, tmp_path: Path) -> None:
    shutil.copy(next((tts_layouts / "gguf-q4").glob("*.gguf")), tmp_path)
    with pytest.raises(
        BadModelError, match=r"wq.weight has 96 rows, not a multiple .* 128: put the params.json"
    ):
        opened(tmp_path)
    shutil.copytree(tts_layouts / "odd", tmp_path / "a")
    (tmp_path / "a" / "params.json").unlink()
    with pytest.raises(BadModelError, match=r"no params.json beside consolidated.safetensors"):
        opened(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (TEXT_TABLE, None, "tok_embeddings.weight is missing or malformed"),
        (TEXT_TABLE, (131072, 3072, 1), "tok_embeddings.weight is missing or malformed"),
        (f"{FLOW}layers.0.attention.wk.weight", None, "acoustic_transformer.layers.0.attention.wk"),
        (
            "layers.0.attention.wk.weight",
            (5 * 128, 3072),
            "query and key-value heads of the backbone: 32 is not",
        ),
        ("layers.0.attention.wk.weight", (5 * 100, 3072), "has 500 rows"),
        (f"{BOOK}embedding_sum", (70_000, 256), "70000 entries of the semantic codebook are too many"),
        (
            f"{BOOK}embedding_sum",
            (8192, 255),
            "acoustic codebooks of codec and backbone do not agree: 37 and 36",
        ),
        (f"{BOOK}embedding_sum", (8192, 300), "do not agree: -8 and 36"),
        (f"{FLOW}input_projection.weight", (3072, 40), "do not agree: 36 and 40"),
        (f"{FLOW}llm_projection.weight", (3072, 3000), "flow head input and backbone width do not agree"),
        (f"{FLOW}llm_projection.weight", (3071, 3072), "flow head width"),
        ("audio_tokenizer.decoder_blocks.0.conv.weight", None, "original1 is missing or malformed"),
    ],
)
def test_shapes_that_make_no_model(name: str, shape: tuple[int, ...] | None, message: str) -> None:
    shapes = dict(gguf_shapes(TtsConfig()))
    shapes.pop(name, None)
    if shape is not None:
        shapes[name] = shape
    with pytest.raises(BadModelError, match=message) as caught:
        from_shapes(shapes, "a.gguf")
    assert str(caught.value).startswith("a.gguf: ")


MODEL, CODEC = "multimodal.audio_model_args", "multimodal.audio_tokenizer_args"

ARGS = f"{MODEL}.acoustic_transformer_args"


@pytest.mark.parametrize(
    ("strides", "size", "first"),
    [
        (None, 16, 2), ("2,2,2,1", 16, 2), ("1,2,2,2", 16, 2), ("2,1", 16, 8), ("1", 16, 16), ("4,2", 16, 4),
        ("2,2,2,1", 17, 2), ("2,2,2,2,2", 16, 1), (None, 24, 3), (None, 1, 1),
    ],
)  # fmt: skip
def test_the_first_window_is_what_the_encoder_left(
    tmp_path: Path, strides: str | None, size: int, first: int
) -> None:
    """tts.md section 9: halved at each stride of the encoder above 1, which is not released."""
    path = tmp_path / "params.json"
    path.write_text(json.dumps(params_settings(TtsConfig(), PUBLISHED)))
    changes = {f"{CODEC}.attn_sliding_window_size": size}
    change(path, changes | ({f"{CODEC}.encoder_convs_strides_str": strides} if strides else {}))
    assert from_params(path).codec == CodecConfig(first_window=first)


NO_SIZES: tuple[Any, ...] = (
    ..., 0, -3, 2.5, True, "many", [1], {}, float("nan"), float("inf"), 2**40, 10**400,
)  # fmt: skip


NO_FACTORS: tuple[Any, ...] = (
    ..., 0, -1, "1e-5", False, float("nan"), float("inf"), float("-inf"), 10**400,
)  # fmt: skip


HOSTILE: list[tuple[dict[str, Any], str]] = [
    *(
        ({where: value}, f"{where.rpartition('.')[2]} (is|has|describes)")
        for where in (
            "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size", f"{ARGS}.dim",
            f"{MODEL}.semantic_codebook_size", f"{MODEL}.n_acoustic_codebook", f"{ARGS}.n_layers", f"{ARGS}.n_heads",
            f"{ARGS}.input_dim", f"{CODEC}.dim", f"{CODEC}.semantic_dim", f"{CODEC}.attn_sliding_window_size",
            f"{CODEC}.n_heads", f"{CODEC}.pretransform_patch_size",
        )
        for value in NO_SIZES
    ),
    *(
        ({where: value}, f"{where.rpartition('.')[2]} is")
        for where in ("rope_theta", "norm_eps", f"{CODEC}.norm_eps", f"{CODEC}.qk_norm_eps")
        for value in NO_FACTORS
    ),
    ({"max_seq_len": 0}, "max_seq_len is 0"),
    ({f"{ARGS}.n_decoding_steps": 0}, "n_decoding_steps is 0; a number of 1 or more is needed"),
    ({f"{ARGS}.n_decoding_steps": 2**31}, "n_decoding_steps is 2147483648"),
    ({f"{ARGS}.n_decoding_steps": 1001}, "n_decoding_steps is 1001; a number of 1000 or less is needed"),
    ({f"{ARGS}.norm_eps": -1}, "norm_eps is -1"),
    ({"n_layers": 10**9}, "n_layers is 1000000000"),
    ({f"{ARGS}.n_layers": 1001}, "n_layers is 1001"),
    ({"multimodal": ...}, "multimodal is missing"),
    ({"multimodal": 3}, "multimodal is not a map"),
    ({"multimodal": {"whisper_model_args": {}}}, "multimodal describes a speech recognition model"),
    ({MODEL: ...}, "audio_model_args is missing"),
    ({ARGS: []}, "acoustic_transformer_args is not a map"),
    ({CODEC: ...}, "audio_tokenizer_args is missing"),
    ({"model_type": "voxtral"}, "model_type is 'voxtral'; only 'voxtral_tts'"),
    ({"sliding_window": 4096}, "sliding_window is set"),
    ({f"{MODEL}.input_embedding_concat_type": "concat"}, "only 'sum' is supported"),
    ({f"{MODEL}.audio_encoding_args.codebook_pattern": "delay"}, "only 'parallel' is supported"),
    ({f"{MODEL}.acoustic_codebook_size": 1}, "acoustic_codebook_size is 1"),
    ({f"{MODEL}.n_acoustic_codebook": 10_000}, "do not agree|too many"),
    ({f"{ARGS}.use_biases": True}, "use_biases is True"),
    ({f"{CODEC}.use_biases": True}, "use_biases is True"),
    ({f"{CODEC}.channels": 2}, "channels is 2"),
    ({f"{CODEC}.causal": False}, "causal is False"),
    ({f"{CODEC}.conv_weight_norm": False}, "conv_weight_norm is False"),
    ({f"{CODEC}.qk_norm": False}, "qk_norm is False"),
    ({f"{CODEC}.layer_scale": False}, "layer_scale is False"),
    ({f"{CODEC}.half_attn_window_upon_downsampling": False}, "half_attn_window_upon_downsampling is False"),
    ({f"{CODEC}.patch_proj_kernel_size": 5}, "patch_proj_kernel_size is 5"),
    ({f"{CODEC}.n_kv_heads": 1}, "n_kv_heads is 1; only 3 is supported"),
    (
        {f"{CODEC}.{key}": value for key, value in (
            ("decoder_transformer_lengths_str", "1,2,1"), ("decoder_convs_strides_str", "1,2,2"),
            ("decoder_convs_kernels_str", "3,4,4"), ("pretransform_patch_size", 480),
        )},
        "frames of the codec have 4 patches; at least 7 are needed",
    ),
    ({f"{CODEC}.sampling_rate": 44100}, "speaks at 44100 Hz; only 24000 Hz"),
    ({f"{CODEC}.decoder_convs_strides_str": "1,2,2,2,4"}, "decoder_convs_strides_str is '1,2,2,2,4'; only '1,2,2,2,2'"),
    ({f"{CODEC}.decoder_convs_strides_str": "2,2,2,2,2"}, "only '1,2,2,2,2' is supported"),
    ({f"{CODEC}.decoder_convs_strides_str": "1,2,2,2"}, "only '1,2,2,2,2' is supported"),
    ({f"{CODEC}.decoder_convs_strides_str": [1, 2, 2]}, r"decoder_convs_strides_str is \[1, 2, 2\], not a string"),
    ({f"{CODEC}.decoder_convs_kernels_str": "3,4,4,4,3"}, "decoder_convs_kernels_str is '3,4,4,4,3'; only '3,4,4,4,4'"),
    ({f"{CODEC}.decoder_convs_kernels_str": ...}, "decoder_convs_kernels_str is missing"),
    ({f"{CODEC}.encoder_convs_strides_str": "2,,1"}, "not a list of small numbers"),
    ({f"{CODEC}.encoder_convs_strides_str": ""}, "not a list of small numbers"),
    ({f"{CODEC}.decoder_transformer_lengths_str": "1,-2,1"}, "not a list of small numbers"),
    ({f"{CODEC}.decoder_transformer_lengths_str": "1,0,1"}, "not a list of small numbers"),
    ({f"{CODEC}.decoder_transformer_lengths_str": "1," * 20 + "1"}, "not a list of small numbers"),
    ({f"{CODEC}.decoder_transformer_lengths_str": "9" * 5000}, "not a list of small numbers"),
    ({f"{CODEC}.decoder_transformer_lengths_str": ...}, "decoder_transformer_lengths_str is missing"),
    # Valid each, but not with the tensors or with one another.
    ({"n_heads": 5}, "heads of the backbone: 5 is not a multiple of 2"),
    ({"head_dim": 11}, "backbone head size: 11 is not a multiple of 2"),
    ({f"{ARGS}.n_kv_heads": 2}, "heads of the flow head: 9 is not a multiple of 2"),
    ({f"{ARGS}.dim": 47}, "flow head width: 47 is not a multiple of 2"),
    ({f"{ARGS}.input_dim": 50}, "flow head input and backbone width do not agree: 50 and 52"),
    ({f"{CODEC}.semantic_codebook_size": 60}, "semantic codebook of codec and backbone do not agree: 60 and 61"),
    ({f"{CODEC}.acoustic_dim": 12}, "acoustic codebooks of codec and backbone do not agree: 12 and 11"),
    ({f"{CODEC}.acoustic_codebook_size": 21}, "acoustic levels of codec and backbone do not agree: 21 and 17"),
    ({"hidden_dim": 72}, r"layers.0.feed_forward.w1.weight has the shape \[70, 52\], .* ask for \[72, 52\]"),
    ({"vocab_size": 1484}, r"tok_embeddings.weight has the shape \[1483, 52\], .* ask for \[1484, 52\]"),
    ({"head_dim": 12}, r"layers.0.attention.wq.weight has the shape \[60, 52\], .* ask for \[72, 52\]"),
    ({f"{ARGS}.hidden_dim": 60}, r"acoustic_transformer.layers.0.feed_forward.w1.weight has the shape \[58, 46\]"),
    ({f"{CODEC}.hidden_dim": 35}, r"decoder_blocks.1.layers.0.feed_forward.w1.weight has the shape \[34, 22\]"),
    ({f"{CODEC}.head_dim": 8}, r"decoder_blocks.1.layers.0.attention.wq.weight has the shape \[21, 22\]"),
]  # fmt: skip


def test_params_that_cannot_be_followed_are_one_clear_line(tts_layouts: Path, tmp_path: Path) -> None:
    shutil.copytree(tts_layouts / "odd", tmp_path / "a")
    path = tmp_path / "a" / "params.json"
    good = path.read_text()
    assert opened(tmp_path / "a").config == ODD
    for changes, message in HOSTILE:
        path.write_text(good)
        change(path, changes)
        with pytest.raises(BadModelError, match=message) as caught:
            opened(tmp_path / "a")
        said = str(caught.value)
        assert "\n" not in said and len(said) < 400 and ("params.json" in said or "consolidated" in said), (
            changes
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"), (b"[]", "not a JSON map"), (b"\xff{}", "not valid JSON"), (b"{", "not valid JSON"),
        (b'{"dim": 1, "dim": 2}', "twice"), (b'{"dim":' + b"[" * 100_000, "not valid JSON"),
        (b'{"dim": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    ],
)  # fmt: skip
def test_params_that_are_no_settings(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "params.json").write_bytes(content)
    with pytest.raises(BadModelError, match=message):
        from_params(tmp_path / "params.json")
