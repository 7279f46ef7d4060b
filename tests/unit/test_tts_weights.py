"""models/checkpoint.py for speech synthesis: one set of weights in every layout, settings, and refusals."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from asr_models import SMALL
from safetensors.torch import load_file, save_file
from tts_checkpoints import ODD, PACKABLE, Stored, change, make, packed, stored, values, write_gguf
from tts_models import random_codes_of

from voxtral_pipes.config import BackboneConfig, CodecConfig, FlowConfig, TtsConfig
from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.locate import files_at
from voxtral_pipes.kernels.packed import PackedWeight, StoredWeight
from voxtral_pipes.kernels.reference import dequantize
from voxtral_pipes.models.checkpoint import AsrCheckpoint, TtsCheckpoint
from voxtral_pipes.models.codec import Codec
from voxtral_pipes.models.gguf_layout import gguf_shapes
from voxtral_pipes.models.random_model import cut_raw, make_asr_model, make_tts_model
from voxtral_pipes.models.random_tts import Format, params_settings
from voxtral_pipes.models.tts_hyperparameters import from_params, from_shapes
from voxtral_pipes.models.tts_shapes import (
    BOOK,
    CODE_TABLE,
    FLOW,
    TEXT_TABLE,
    codec_shapes,
    conv_names,
    flow_shapes,
    gain_and_direction,
    tts_shapes,
)
from voxtral_pipes.models.voices import PUBLISHED
from voxtral_pipes.models.weights import load_weights

CPU = torch.device("cpu")
LAYOUTS: tuple[Format, ...] = ("safetensors", "gguf-q4", "gguf-q8")
KINDS = {"gguf-q4": "Q4_0", "gguf-q8": "Q8_0"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("tts")
    for layout in LAYOUTS:
        make(home / layout, PACKABLE, layout)
    make(home / "odd", ODD)
    return home


def opened(path: Path) -> TtsCheckpoint:
    return TtsCheckpoint(files_at(path))


def load(checkpoint: TtsCheckpoint) -> dict[str, StoredWeight]:
    return load_weights(checkpoint, tts_shapes(checkpoint.config, checkpoint.names), CPU, torch.float32)


def same(ours: Mapping[str, StoredWeight], theirs: Mapping[str, StoredWeight]) -> None:
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        other = theirs[name]
        if isinstance(weight, PackedWeight):
            assert isinstance(other, PackedWeight) and weight.format == other.format
            assert torch.equal(weight.blocks, other.blocks), name
        else:
            assert isinstance(other, torch.Tensor) and torch.equal(weight, other), name


# --- layouts


@pytest.mark.parametrize("layout", [*LAYOUTS, "odd"])
def test_every_tensor_is_what_the_package_of_its_format_reads(home: Path, layout: str) -> None:
    checkpoint = opened(home / layout)
    config = ODD if layout == "odd" else PACKABLE
    assert (checkpoint.family, checkpoint.config) == ("voxtral-tts", config)
    theirs = values(home / layout)
    assert checkpoint.names == theirs.keys()
    weights = load(checkpoint)
    assert weights.keys() == theirs.keys()
    for name, weight in weights.items():
        unpacked = dequantize(weight, torch.float32) if isinstance(weight, PackedWeight) else weight
        assert torch.equal(unpacked, theirs[name]), name
    n_packed = sum(isinstance(weight, PackedWeight) for weight in weights.values())
    layers = config.backbone.n_layers + config.flow.n_layers
    assert n_packed == (7 * layers + 4 if layout in KINDS else 0)


def test_all_layouts_hold_one_model(home: Path) -> None:
    dense = load(opened(home / "safetensors"))
    norm = load_file(home / "safetensors" / "consolidated.safetensors")["norm.weight"]
    fingerprint = hashlib.sha256(norm.view(torch.int16).numpy().tobytes()).hexdigest()[:16]
    normed = {name for conv in conv_names(PACKABLE.codec) for name in gain_and_direction(conv)}
    folded = {f"{conv}.weight" for conv in conv_names(PACKABLE.codec)}
    for layout in LAYOUTS:
        checkpoint = opened(home / layout)
        assert checkpoint.identity == {"family": "voxtral-tts", "fp": fingerprint}
        assert checkpoint.names == ((dense.keys() - normed) | folded if layout in KINDS else dense.keys())
        for name, weight in load(checkpoint).items():
            if isinstance(weight, PackedWeight):
                original = dense[name]
                assert isinstance(original, torch.Tensor)
                expected, _ = packed(original.numpy(), KINDS[layout])
                assert weight.blocks.flatten().tolist() == expected.ravel().tolist(), name
            elif name not in folded:
                assert torch.equal(weight, dense[name]), name  # type: ignore[arg-type]
    assert opened(home / "odd").fingerprint != fingerprint


def split(source: Path, target: Path, size: int) -> None:
    write_gguf(target / "voxtral-tts.gguf", stored(source), split=size)
    assert len(list(target.glob("*-of-*.gguf"))) > 2


@pytest.mark.parametrize(
    ("layout", "cut", "size"),
    [
        ("safetensors", cut_raw, 5001),
        ("safetensors", cut_raw, 65536),
        ("gguf-q4", cut_raw, 5001),
        ("gguf-q8", cut_raw, 65536),
        ("gguf-q4", split, 200_000),
        ("gguf-q8", split, 400_000),
    ],
)
def test_pieces_hold_the_same_model(
    home: Path, tmp_path: Path, layout: str, cut: Callable[..., None], size: int
) -> None:
    whole, pieces = home / layout, tmp_path / "pieces"
    shutil.copytree(whole, pieces)
    if cut is split:
        next(pieces.glob("*.gguf")).unlink()
        split(whole, pieces, size)
        assert opened(next(pieces.glob("*-00002-of-*"))).identity == opened(whole).identity
    else:
        cut(pieces, size)
        assert len(list(pieces.glob("shard-*"))) > 10
    one, many = opened(whole), opened(pieces)
    assert (one.identity, one.config, one.names) == (many.identity, many.config, many.names)
    same(load(many), load(one))


def waveform(checkpoint: TtsCheckpoint) -> torch.Tensor:
    config = checkpoint.config.codec
    names = codec_shapes(config, checkpoint.names)
    codec = Codec.of(load_weights(checkpoint, names, CPU, torch.float32), config)
    codes = random_codes_of(config.semantic_size, config.acoustic_levels, config.acoustic_dim, 30)
    return codec.step(codec.new_state(), codes)[0]


def test_folded_and_parametrised_codecs_give_the_same_waveform(home: Path, tmp_path: Path) -> None:
    expected = waveform(opened(home / "safetensors"))
    assert float(expected.abs().max()) > 0.05
    for layout in KINDS:
        torch.testing.assert_close(waveform(opened(home / layout)), expected, atol=1e-6, rtol=0)
    # Some of each in one file, as formats.md section 4 allows.
    tensors, folded = load_file(home / "safetensors" / "consolidated.safetensors"), values(home / "gguf-q8")
    for conv in conv_names(PACKABLE.codec)[::2]:
        for name in gain_and_direction(conv):
            del tensors[name]
        tensors[f"{conv}.weight"] = folded[f"{conv}.weight"]
    mixed = rewritten(home / "safetensors", tmp_path / "a", tensors)
    torch.testing.assert_close(waveform(opened(mixed)), expected, atol=1e-6, rtol=0)


def test_only_what_is_asked_for_is_loaded_and_lies_where_it_lay(home: Path) -> None:
    name = f"{FLOW}layers.0.feed_forward.w1.weight"
    for layout in LAYOUTS:
        checkpoint = opened(home / layout)
        one, two = (load_weights(checkpoint, [name], CPU, torch.bfloat16)[name] for _ in range(2))
        if isinstance(one, PackedWeight):
            assert isinstance(two, PackedWeight)
            assert one.blocks.data_ptr() == two.blocks.data_ptr()
        else:
            assert isinstance(two, torch.Tensor)
            assert one.data_ptr() == two.data_ptr() and one.dtype == torch.bfloat16
    sizes = [opened(home / layout).stored_bytes([name]) for layout in LAYOUTS]
    assert sizes == [64 * 32 * 2, 64 * 32 // 32 * 18, 64 * 32 // 32 * 34]


# --- settings


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


def test_params_beside_a_gguf_win(home: Path, tmp_path: Path) -> None:
    make_tts_model(tmp_path, published_head_sizes(), "gguf-q4")
    args = "multimodal.audio_model_args.acoustic_transformer_args"
    change(tmp_path / "params.json", {f"{args}.n_decoding_steps": 3, "rope_theta": 500.0, "max_seq_len": 99})
    config = opened(tmp_path).config
    assert (config.flow.steps, config.backbone.rope_theta, config.backbone.max_positions) == (3, 500.0, 99)
    change(tmp_path / "params.json", {"n_heads": 8, "n_kv_heads": 4, "head_dim": 64})  # same shapes
    assert opened(tmp_path).config.backbone.n_heads == 8


def test_what_a_bare_gguf_does_not_tell_is_refused(home: Path, tmp_path: Path) -> None:
    shutil.copy(next((home / "gguf-q4").glob("*.gguf")), tmp_path)
    with pytest.raises(
        BadModelError, match=r"wq.weight has 96 rows, not a multiple .* 128: put the params.json"
    ):
        opened(tmp_path)
    shutil.copytree(home / "odd", tmp_path / "a")
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


def test_params_that_cannot_be_followed_are_one_clear_line(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "odd", tmp_path / "a")
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


# --- tensors


def rewritten(source: Path, target: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    target.mkdir(exist_ok=True)
    for name in ("params.json", "tekken.json"):
        shutil.copy(source / name, target)
    save_file(dict(tensors), target / "consolidated.safetensors")
    return target


@pytest.mark.parametrize(
    "name",
    [
        "layers.1.attention.wo.weight", "norm.weight", CODE_TABLE, f"{FLOW}time_projection.weight",
        f"{BOOK}cluster_usage", "audio_tokenizer.output_proj.conv.parametrizations.weight.original0",
        "audio_tokenizer.decoder_blocks.3.layers.1.ffn_scale",
    ],
)  # fmt: skip
def test_a_missing_tensor_is_named_by_the_stage_that_needs_it(home: Path, tmp_path: Path, name: str) -> None:
    tensors = load_file(home / "odd" / "consolidated.safetensors")
    kept = tensors.pop(name)
    checkpoint = opened(rewritten(home / "odd", tmp_path / "a", tensors))
    with pytest.raises(BadModelError, match=f"^consolidated.safetensors: tensor {name} is missing$"):
        load(checkpoint)
    if not name.startswith(FLOW):
        load_weights(checkpoint, flow_shapes(ODD.flow), CPU, torch.float32)
    for wrong in (kept.to(torch.int64), kept.to(torch.uint8)):
        checkpoint = opened(rewritten(home / "odd", tmp_path / "a", tensors | {name: wrong}))
        with pytest.raises(BadModelError, match=rf"{name} has the type (I64|U8)"):
            load(checkpoint)
    grown = torch.cat((kept, kept))
    with pytest.raises(BadModelError, match=rf"{name} has the shape .* the hyperparameters ask for"):
        opened(rewritten(home / "odd", tmp_path / "a", tensors | {name: grown}))
    with pytest.raises(BadModelError, match=rf"{name} has the shape .* the hyperparameters ask for"):
        opened(rewritten(home / "odd", tmp_path / "a", tensors | {name: kept[None].contiguous()}))


def test_a_fingerprint_needs_a_norm(home: Path, tmp_path: Path) -> None:
    tensors = load_file(home / "odd" / "consolidated.safetensors")
    norm = tensors["norm.weight"]
    expected = opened(home / "odd").fingerprint
    for kind in (torch.float32, torch.float16):
        path = rewritten(home / "odd", tmp_path / "a", tensors | {"norm.weight": norm.to(kind)})
        if torch.equal(norm.to(kind).bfloat16(), norm):
            assert opened(path).fingerprint == expected
    path = rewritten(home / "odd", tmp_path / "a", tensors | {"norm.weight": norm.to(torch.int64)})
    with pytest.raises(BadModelError, match=r"norm.weight has the type I64, which norms do not have"):
        opened(path).identity  # noqa: B018


def packed_model(home: Path, target: Path, changed: Mapping[str, Stored]) -> Path:
    target.mkdir()
    shutil.copy(home / "gguf-q4" / "params.json", target)
    write_gguf(target / "voxtral-tts.gguf", stored(home / "gguf-q4") | dict(changed))
    return target


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize(
    "name",
    [
        "norm.weight", f"{FLOW}norm.weight", "layers.2.ffn_norm.weight", f"{BOOK}embedding_sum",
        f"{FLOW}layers.1.attention_norm.weight",
    ],
)  # fmt: skip
def test_packed_norms_and_codebooks_are_refused(home: Path, tmp_path: Path, name: str, kind: str) -> None:
    original = values(home / "gguf-q4")[name].numpy()
    path = packed_model(home, tmp_path / "a", {name: packed(original, kind)})
    if original.ndim == 2:
        with pytest.raises(BadModelError, match=rf"{name} is packed \({kind}\), which codebooks cannot be"):
            opened(path)
        return
    with pytest.raises(BadModelError, match=f"{name} is {kind}, and only matrices can be packed"):
        load(opened(path))
    if name == "norm.weight":
        with pytest.raises(BadModelError, match=f"norm.weight has the type {kind}"):
            opened(path).identity  # noqa: B018


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_a_gguf_may_hold_matrices_in_other_types(home: Path, tmp_path: Path, kind: str) -> None:
    """All that a reader demands of the published file's mixture is that it can compute with it."""
    names = ["layers.0.attention.wq.weight", CODE_TABLE, TEXT_TABLE, f"{FLOW}llm_projection.weight"]
    original = values(home / "safetensors")
    path = packed_model(home, tmp_path / "a", {name: packed(original[name].numpy(), kind) for name in names})
    weights = load(opened(path))
    for name in names:
        weight = weights[name]
        unpacked = dequantize(weight, torch.float32) if isinstance(weight, PackedWeight) else weight
        stored_value = gguf.dequantize(*packed(original[name].numpy(), kind))
        np.testing.assert_array_equal(unpacked.numpy(), stored_value)


def test_a_model_of_the_other_family_is_refused_by_name(home: Path, tmp_path: Path) -> None:
    asr = make_asr_model(tmp_path / "asr", SMALL)
    with pytest.raises(
        BadModelError,
        match=r"^consolidated.safetensors is a speech recognition model \(voxtral-asr\); this command needs a "
        r"synthesis model$",
    ):
        opened(asr)
    for layout in ("safetensors", "gguf-q4"):
        with pytest.raises(
            BadModelError, match=r"is a speech synthesis model \(voxtral-tts\); .* recognition model$"
        ):
            AsrCheckpoint(files_at(home / layout))
    # The settings of one beside the weights of the other.
    shutil.copytree(home / "odd", tmp_path / "a")
    shutil.copy(asr / "params.json", tmp_path / "a")
    with pytest.raises(BadModelError, match="multimodal describes a speech recognition model"):
        opened(tmp_path / "a")
    with pytest.raises(BadModelError, match=r"is not a Voxtral model: its first tensor is 'x'"):
        opened(rewritten(home / "odd", tmp_path / "b", {"x": torch.zeros(1)}))
    with pytest.raises(BadModelError, match="holds no tensors"):
        opened(rewritten(home / "odd", tmp_path / "b", {}))
