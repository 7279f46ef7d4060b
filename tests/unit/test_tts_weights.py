"""models/checkpoint.py for speech synthesis: one set of weights in every layout, and tensors that are refused."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from asr_models import SMALL
from safetensors.torch import load_file, save_file
from tts_checkpoints import (
    KINDS,
    LAYOUTS,
    ODD,
    PACKABLE,
    Stored,
    load,
    opened,
    packed,
    stored,
    values,
    write_gguf,
)
from tts_models import random_codes_of

from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.locate import files_at
from voxtral_pipes.kernels.packed import PackedWeight, StoredWeight
from voxtral_pipes.kernels.reference import dequantize
from voxtral_pipes.models.checkpoint import AsrCheckpoint, TtsCheckpoint
from voxtral_pipes.models.codec import Codec
from voxtral_pipes.models.random_model import cut_raw, make_asr_model
from voxtral_pipes.models.tts_shapes import (
    BOOK,
    CODE_TABLE,
    FLOW,
    TEXT_TABLE,
    codec_shapes,
    conv_names,
    flow_shapes,
    gain_and_direction,
)
from voxtral_pipes.models.weights import load_weights

CPU = torch.device("cpu")


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
def test_every_tensor_is_what_the_package_of_its_format_reads(tts_layouts: Path, layout: str) -> None:
    checkpoint = opened(tts_layouts / layout)
    config = ODD if layout == "odd" else PACKABLE
    assert (checkpoint.family, checkpoint.config) == ("voxtral-tts", config)
    theirs = values(tts_layouts / layout)
    assert checkpoint.names == theirs.keys()
    weights = load(checkpoint)
    assert weights.keys() == theirs.keys()
    for name, weight in weights.items():
        unpacked = dequantize(weight, torch.float32) if isinstance(weight, PackedWeight) else weight
        assert torch.equal(unpacked, theirs[name]), name
    n_packed = sum(isinstance(weight, PackedWeight) for weight in weights.values())
    layers = config.backbone.n_layers + config.flow.n_layers
    assert n_packed == (7 * layers + 4 if layout in KINDS else 0)


def test_all_layouts_hold_one_model(tts_layouts: Path) -> None:
    dense = load(opened(tts_layouts / "safetensors"))
    norm = load_file(tts_layouts / "safetensors" / "consolidated.safetensors")["norm.weight"]
    fingerprint = hashlib.sha256(norm.view(torch.int16).numpy().tobytes()).hexdigest()[:16]
    normed = {name for conv in conv_names(PACKABLE.codec) for name in gain_and_direction(conv)}
    folded = {f"{conv}.weight" for conv in conv_names(PACKABLE.codec)}
    for layout in LAYOUTS:
        checkpoint = opened(tts_layouts / layout)
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
    assert opened(tts_layouts / "odd").fingerprint != fingerprint


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
    tts_layouts: Path, tmp_path: Path, layout: str, cut: Callable[..., None], size: int
) -> None:
    whole, pieces = tts_layouts / layout, tmp_path / "pieces"
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


def test_folded_and_parametrised_codecs_give_the_same_waveform(tts_layouts: Path, tmp_path: Path) -> None:
    expected = waveform(opened(tts_layouts / "safetensors"))
    assert float(expected.abs().max()) > 0.05
    for layout in KINDS:
        torch.testing.assert_close(waveform(opened(tts_layouts / layout)), expected, atol=1e-6, rtol=0)
    # Some of each in one file, as formats.md section 4 allows.
    tensors, folded = (
        load_file(tts_layouts / "safetensors" / "consolidated.safetensors"),
        values(tts_layouts / "gguf-q8"),
    )
    for conv in conv_names(PACKABLE.codec)[::2]:
        for name in gain_and_direction(conv):
            del tensors[name]
        tensors[f"{conv}.weight"] = folded[f"{conv}.weight"]
    mixed = rewritten(tts_layouts / "safetensors", tmp_path / "a", tensors)
    torch.testing.assert_close(waveform(opened(mixed)), expected, atol=1e-6, rtol=0)


def test_only_what_is_asked_for_is_loaded_and_lies_where_it_lay(tts_layouts: Path) -> None:
    name = f"{FLOW}layers.0.feed_forward.w1.weight"
    for layout in LAYOUTS:
        checkpoint = opened(tts_layouts / layout)
        one, two = (load_weights(checkpoint, [name], CPU, torch.bfloat16)[name] for _ in range(2))
        if isinstance(one, PackedWeight):
            assert isinstance(two, PackedWeight)
            assert one.blocks.data_ptr() == two.blocks.data_ptr()
        else:
            assert isinstance(two, torch.Tensor)
            assert one.data_ptr() == two.data_ptr() and one.dtype == torch.bfloat16
    sizes = [opened(tts_layouts / layout).stored_bytes([name]) for layout in LAYOUTS]
    assert sizes == [64 * 32 * 2, 64 * 32 // 32 * 18, 64 * 32 // 32 * 34]


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
def test_a_missing_tensor_is_named_by_the_stage_that_needs_it(
    tts_layouts: Path, tmp_path: Path, name: str
) -> None:
    tensors = load_file(tts_layouts / "odd" / "consolidated.safetensors")
    kept = tensors.pop(name)
    checkpoint = opened(rewritten(tts_layouts / "odd", tmp_path / "a", tensors))
    with pytest.raises(BadModelError, match=f"^consolidated.safetensors: tensor {name} is missing$"):
        load(checkpoint)
    if not name.startswith(FLOW):
        load_weights(checkpoint, flow_shapes(ODD.flow), CPU, torch.float32)
    for wrong in (kept.to(torch.int64), kept.to(torch.uint8)):
        checkpoint = opened(rewritten(tts_layouts / "odd", tmp_path / "a", tensors | {name: wrong}))
        with pytest.raises(BadModelError, match=rf"{name} has the type (I64|U8)"):
            load(checkpoint)
    grown = torch.cat((kept, kept))
    with pytest.raises(BadModelError, match=rf"{name} has the shape .* the hyperparameters ask for"):
        opened(rewritten(tts_layouts / "odd", tmp_path / "a", tensors | {name: grown}))
    with pytest.raises(BadModelError, match=rf"{name} has the shape .* the hyperparameters ask for"):
        opened(rewritten(tts_layouts / "odd", tmp_path / "a", tensors | {name: kept[None].contiguous()}))


def test_a_fingerprint_needs_a_norm(tts_layouts: Path, tmp_path: Path) -> None:
    tensors = load_file(tts_layouts / "odd" / "consolidated.safetensors")
    norm = tensors["norm.weight"]
    expected = opened(tts_layouts / "odd").fingerprint
    for kind in (torch.float32, torch.float16):
        path = rewritten(tts_layouts / "odd", tmp_path / "a", tensors | {"norm.weight": norm.to(kind)})
        if torch.equal(norm.to(kind).bfloat16(), norm):
            assert opened(path).fingerprint == expected
    path = rewritten(tts_layouts / "odd", tmp_path / "a", tensors | {"norm.weight": norm.to(torch.int64)})
    with pytest.raises(BadModelError, match=r"norm.weight has the type I64, which norms do not have"):
        opened(path).identity  # noqa: B018


def packed_model(tts_layouts: Path, target: Path, changed: Mapping[str, Stored]) -> Path:
    target.mkdir()
    shutil.copy(tts_layouts / "gguf-q4" / "params.json", target)
    write_gguf(target / "voxtral-tts.gguf", stored(tts_layouts / "gguf-q4") | dict(changed))
    return target


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize(
    "name",
    [
        "norm.weight", f"{FLOW}norm.weight", "layers.2.ffn_norm.weight", f"{BOOK}embedding_sum",
        f"{FLOW}layers.1.attention_norm.weight",
    ],
)  # fmt: skip
def test_packed_norms_and_codebooks_are_refused(
    tts_layouts: Path, tmp_path: Path, name: str, kind: str
) -> None:
    original = values(tts_layouts / "gguf-q4")[name].numpy()
    path = packed_model(tts_layouts, tmp_path / "a", {name: packed(original, kind)})
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
def test_a_gguf_may_hold_matrices_in_other_types(tts_layouts: Path, tmp_path: Path, kind: str) -> None:
    """All that a reader demands of the published file's mixture is that it can compute with it."""
    names = ["layers.0.attention.wq.weight", CODE_TABLE, TEXT_TABLE, f"{FLOW}llm_projection.weight"]
    original = values(tts_layouts / "safetensors")
    path = packed_model(
        tts_layouts, tmp_path / "a", {name: packed(original[name].numpy(), kind) for name in names}
    )
    weights = load(opened(path))
    for name in names:
        weight = weights[name]
        unpacked = dequantize(weight, torch.float32) if isinstance(weight, PackedWeight) else weight
        stored_value = gguf.dequantize(*packed(original[name].numpy(), kind))
        np.testing.assert_array_equal(unpacked.numpy(), stored_value)


def test_a_model_of_the_other_family_is_refused_by_name(tts_layouts: Path, tmp_path: Path) -> None:
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
            AsrCheckpoint(files_at(tts_layouts / layout))
    # The settings of one beside the weights of the other.
    shutil.copytree(tts_layouts / "odd", tmp_path / "a")
    shutil.copy(asr / "params.json", tmp_path / "a")
    with pytest.raises(BadModelError, match="multimodal describes a speech recognition model"):
        opened(tmp_path / "a")
    with pytest.raises(BadModelError, match=r"is not a Voxtral model: its first tensor is 'x'"):
        opened(rewritten(tts_layouts / "odd", tmp_path / "b", {"x": torch.zeros(1)}))
    with pytest.raises(BadModelError, match="holds no tensors"):
        opened(rewritten(tts_layouts / "odd", tmp_path / "b", {}))
