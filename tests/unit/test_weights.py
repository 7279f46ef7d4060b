"""models/weights.py: one set of weights in every layout, transformers as the judge, and refusals."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from asr_models import random_tensors
from reference_models import as_state_dict, reference_config
from safetensors.torch import load_file, save_file
from transformers import VoxtralRealtimeForConditionalGeneration

from voxtral_pipes.config import AsrConfig, AudioConfig, DecoderConfig, EncoderConfig
from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.locate import files_at
from voxtral_pipes.kernels.packed import PackedWeight, StoredWeight
from voxtral_pipes.models.audio_settings import audio_config
from voxtral_pipes.models.checkpoint import AsrCheckpoint
from voxtral_pipes.models.hf_names import hf_name, mistral_name
from voxtral_pipes.models.random_model import cut_raw, make_asr_model
from voxtral_pipes.models.shapes import decoder_shapes, encoder_shapes
from voxtral_pipes.models.weights import load_weights

CPU = torch.device("cpu")
CONFIG = AsrConfig(
    encoder=EncoderConfig(
        dim=64, n_layers=2, n_heads=2, head_dim=64, hidden_dim=96, window=13, rope_theta=5e5
    ),
    decoder=DecoderConfig(
        dim=96, n_layers=2, n_heads=6, n_kv_heads=2, head_dim=32, hidden_dim=128, window=40, vocab_size=320
    ),
)


def names_of(config: AsrConfig) -> list[str]:
    return [*encoder_shapes(config), *decoder_shapes(config)]


def load(checkpoint: AsrCheckpoint, dtype: torch.dtype = torch.float32) -> dict[str, StoredWeight]:
    return load_weights(checkpoint, names_of(checkpoint.config), CPU, dtype)


def assert_equal(ours: dict[str, StoredWeight], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert isinstance(weight, torch.Tensor)
        assert torch.equal(weight, theirs[name]), name


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("weights")
    for format in ("safetensors", "hf", "gguf-q4"):
        make_asr_model(home / format, CONFIG, format, seed=5)
    return home


def test_the_published_model_has_711_tensors() -> None:
    shapes = encoder_shapes(AsrConfig()) | decoder_shapes(AsrConfig())
    assert len(shapes) == 711
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 4_429_679_360
    for name in shapes:
        assert mistral_name(hf_name(name)) == name


def test_three_layouts_hold_the_same_model(home: Path) -> None:
    mistral, hf, q4 = (AsrCheckpoint(files_at(home / name)) for name in ("safetensors", "hf", "gguf-q4"))
    assert mistral.family == hf.family == q4.family == "voxtral-asr"
    assert mistral.config == hf.config == q4.config == CONFIG
    assert mistral.fingerprint == hf.fingerprint == q4.fingerprint
    dense = load(mistral)
    assert_equal(load(hf), dense)
    for name, weight in load(q4).items():
        if isinstance(weight, PackedWeight):
            assert weight.shape == tuple(dense[name].shape)
            packed = gguf.quantize(dense[name].numpy(), gguf.GGMLQuantizationType.Q4_0)  # type: ignore[union-attr]
            assert weight.blocks.flatten().tolist() == packed.ravel().tolist()
        else:
            assert torch.equal(weight, dense[name])  # type: ignore[arg-type]
    matrices = [name for name in names_of(CONFIG) if len(dense[name].shape) == 2]
    assert q4.stored_bytes(matrices) == mistral.stored_bytes(matrices) // 32 * 9
    assert q4.unpacked_bytes(matrices) == mistral.unpacked_bytes(matrices) == mistral.stored_bytes(matrices)


def test_the_fingerprint(home: Path) -> None:
    norm = load_file(home / "safetensors" / "consolidated.safetensors")["norm.weight"]
    expected = hashlib.sha256(norm.view(torch.int16).numpy().tobytes()).hexdigest()[:16]
    assert AsrCheckpoint(files_at(home / "gguf-q4")).fingerprint == expected


def test_what_lies_there_as_wanted_is_not_copied(home: Path) -> None:
    name = "layers.0.feed_forward.w1.weight"
    mistral, q4 = (AsrCheckpoint(files_at(home / layout)) for layout in ("safetensors", "gguf-q4"))
    one, two = (load_weights(mistral, [name], CPU, torch.bfloat16)[name] for _ in range(2))
    assert isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor)
    assert one.data_ptr() == two.data_ptr()
    left, right = (load_weights(q4, [name], CPU, torch.float32)[name] for _ in range(2))
    assert isinstance(left, PackedWeight) and isinstance(right, PackedWeight)
    assert left.blocks.data_ptr() == right.blocks.data_ptr()


@pytest.mark.parametrize("size", [4096, 5001])
@pytest.mark.parametrize("layout", ["safetensors", "gguf-q4"])
def test_raw_shards_hold_the_same_model(home: Path, tmp_path: Path, layout: str, size: int) -> None:
    shutil.copytree(home / layout, tmp_path / "cut")
    cut_raw(tmp_path / "cut", size)
    whole, cut = (AsrCheckpoint(files_at(path)) for path in (home / layout, tmp_path / "cut"))
    assert whole.fingerprint == cut.fingerprint
    for name, weight in load(whole).items():
        other = load_one(cut, name)
        if isinstance(weight, PackedWeight):
            assert isinstance(other, PackedWeight)
            assert torch.equal(weight.blocks, other.blocks)
        else:
            assert isinstance(other, torch.Tensor)
            assert torch.equal(weight, other)


def load_one(checkpoint: AsrCheckpoint, name: str) -> StoredWeight:
    return load_weights(checkpoint, [name], CPU, torch.float32)[name]


@pytest.mark.parametrize(("heads", "kv_heads", "encoder_heads"), [(6, 2, 3), (8, 4, 1)])
def test_what_transformers_saves_loads_here(
    tmp_path: Path, heads: int, kv_heads: int, encoder_heads: int
) -> None:
    config = AsrConfig(
        encoder=replace(CONFIG.encoder, n_heads=encoder_heads, head_dim=32, n_layers=1),
        decoder=replace(CONFIG.decoder, n_heads=heads, n_kv_heads=kv_heads, head_dim=16, n_layers=1),
    )
    tensors = random_tensors(encoder_shapes(config), 1) | random_tensors(decoder_shapes(config), 2)
    model = VoxtralRealtimeForConditionalGeneration(reference_config(config))
    model.load_state_dict(as_state_dict(tensors, config))
    model.save_pretrained(tmp_path)
    checkpoint = AsrCheckpoint(files_at(tmp_path))
    assert checkpoint.config == config
    assert_equal(load(checkpoint), dict(tensors))


def test_what_is_written_here_loads_in_transformers(home: Path) -> None:
    model = VoxtralRealtimeForConditionalGeneration.from_pretrained(home / "hf", dtype=torch.float32)
    tensors = load(AsrCheckpoint(files_at(home / "safetensors")))
    expected = as_state_dict(tensors, CONFIG)  # type: ignore[arg-type]
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
    settings = model.config.to_dict()
    assert settings["audio_config"]["rope_parameters"]["rope_theta"] == CONFIG.encoder.rope_theta
    assert settings["text_config"]["sliding_window"] == CONFIG.decoder.window


def published_head_sizes() -> AsrConfig:
    return AsrConfig(
        encoder=EncoderConfig(dim=64, n_layers=1, n_heads=2, hidden_dim=96),
        decoder=DecoderConfig(dim=96, n_layers=2, n_heads=2, n_kv_heads=1, hidden_dim=128, vocab_size=320),
    )


def test_a_bare_gguf_tells_its_shapes(tmp_path: Path) -> None:
    config = published_head_sizes()
    make_asr_model(tmp_path, config, "gguf-q4")
    (tmp_path / "params.json").unlink()
    assert AsrCheckpoint(files_at(tmp_path / "voxtral-q4.gguf")).config == config
    (tmp_path / "tekken.json").unlink()
    assert AsrCheckpoint(files_at(tmp_path)).config == config


def test_a_bare_gguf_of_other_head_sizes_is_refused(home: Path, tmp_path: Path) -> None:
    shutil.copy(home / "gguf-q4" / "voxtral-q4.gguf", tmp_path)
    with pytest.raises(BadModelError, match=r"wq.weight has 192 rows, not a multiple of .* 128"):
        AsrCheckpoint(files_at(tmp_path))


def edited(home: Path, target: Path, name: str, **changes: object) -> AsrCheckpoint:
    """Open a copy of a model after setting keys, `a__b` being b inside a, of one of its settings files."""
    shutil.copytree(home, target)
    settings = json.loads((target / name).read_text())
    for path, value in changes.items():
        *parents, key = path.split("__")
        section = settings
        for parent in parents:
            section = section[parent]
        section[key] = value
    (target / name).write_text(json.dumps(settings))
    return AsrCheckpoint(files_at(target))


ARGS = "multimodal__whisper_model_args__encoder_args__"


def test_quirks_of_params(home: Path, tmp_path: Path) -> None:
    changes = {"sliding_window": "40", f"{ARGS}sliding_window": "13", "rope_theta": 1000000}
    assert edited(home / "safetensors", tmp_path / "a", "params.json", **changes).config == CONFIG


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dim": 64}, r"layers.0.feed_forward.w1.weight has the shape \[128, 96\].* \[64, 96\]"),
        ({f"{ARGS}dim": 32}, r"conv_layers.0.conv.weight has the shape \[64, 128, 3\].* \[32, 128, 3\]"),
        ({"n_heads": 5}, "query and key-value heads: 5 is not a multiple of 2"),
        ({"n_kv_heads": None}, "n_kv_heads is missing"),
        ({"head_dim": 33}, "head size"),
        ({"rope_theta": -1}, "above 0"),
        ({"rope_theta": 10**400}, "too large"),
        ({"norm_eps": "1e-5"}, "not a number"),
        ({"sliding_window": "many"}, "not a whole number"),
        ({"n_layers": 10**9}, "n_layers"),
        ({"dim": True}, "not a whole number"),
        ({"tied_embeddings": False}, "tied_embeddings"),
        ({"ada_rms_norm_t_cond": False}, "ada_rms_norm_t_cond"),
        ({"multimodal": {"audio_model_args": {}}}, "speech synthesis"),
        ({f"{ARGS}audio_encoding_args__global_log_mel_max": None}, "global_log_mel_max is missing"),
        ({f"{ARGS}audio_encoding_args__num_mel_bins": 80}, "num_mel_bins"),
    ],
)
def test_params_that_do_not_fit(home: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadModelError, match=message):
        edited(home / "safetensors", tmp_path / "a", "params.json", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio_config__rope_parameters": None}, "audio_config.rope_theta is missing"),
        ({"audio_config__rope_parameters__rope_type": "yarn"}, "rope_type"),
        ({"audio_length_per_tok": 4}, "audio_length_per_tok"),
        ({"model_type": "voxtral"}, "model_type"),
        ({"text_config__hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_config_that_does_not_fit(
    home: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(BadModelError, match=message):
        edited(home / "hf", tmp_path / "a", "config.json", **changes)


def rewrite(source: Path, target: Path, tensors: dict[str, torch.Tensor]) -> Path:
    target.mkdir()
    for name in ("params.json", "tekken.json"):
        shutil.copy(source / name, target)
    save_file(tensors, target / "consolidated.safetensors")
    return target


def test_missing_tensors_and_types(home: Path, tmp_path: Path) -> None:
    tensors = load_file(home / "safetensors" / "consolidated.safetensors")
    gone = tensors.pop("layers.1.attention.wo.weight")
    tensors["layers.0.attention_norm.weight"] = torch.ones(96, dtype=torch.int64)
    checkpoint = AsrCheckpoint(files_at(rewrite(home / "safetensors", tmp_path / "a", tensors)))
    assert "layers.1.attention.wo.weight" not in checkpoint.names
    load_weights(checkpoint, encoder_shapes(CONFIG), CPU, torch.float32)
    with pytest.raises(BadModelError, match=r"layers.1.attention.wo.weight is missing"):
        load_one(checkpoint, "layers.1.attention.wo.weight")
    with pytest.raises(BadModelError, match="I64"):
        load_one(checkpoint, "layers.0.attention_norm.weight")
    tensors["layers.1.attention.wo.weight"] = gone.T.contiguous()
    with pytest.raises(BadModelError, match=r"wo.weight has the shape \[192, 96\].* \[96, 192\]"):
        AsrCheckpoint(files_at(rewrite(home / "safetensors", tmp_path / "b", tensors)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["acoustic_transformer.norm.weight", "mm_audio_embeddings.tok_embeddings.weight"], "voxtral-tts"),
        (["audio_tower.conv1.weight", "language_model.model.norm.weight"], "offline Voxtral"),
        (["enc.blk.0.attn_q.weight"], "voxtral.cpp"),
        (["encoder.weight"], "not a Voxtral model: its first tensor is 'encoder.weight'"),
        ([], "holds no tensors"),
    ],
)
def test_other_families_are_refused_by_name(
    home: Path, tmp_path: Path, names: Iterable[str], message: str
) -> None:
    tensors = {name: torch.zeros(1) for name in names}
    with pytest.raises(BadModelError, match=message):
        AsrCheckpoint(files_at(rewrite(home / "safetensors", tmp_path / "a", tensors)))


def test_both_spellings_at_once_are_refused(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "hf", tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    tensors["model.language_model.norm.weight"] = tensors["language_model.model.norm.weight"].clone()
    save_file(tensors, tmp_path / "a" / "model.safetensors")
    with pytest.raises(BadModelError, match="the same tensor"):
        AsrCheckpoint(files_at(tmp_path / "a"))


def test_settings_are_needed(home: Path, tmp_path: Path) -> None:
    for layout, name in (("safetensors", "params.json"), ("hf", "config.json")):
        shutil.copytree(home / layout, tmp_path / layout)
        (tmp_path / layout / name).unlink()
        with pytest.raises(BadModelError, match=name):
            AsrCheckpoint(files_at(tmp_path / layout))


def test_audio_settings(home: Path, tmp_path: Path) -> None:
    assert audio_config(None) == AudioConfig()
    source = home / "safetensors" / "tekken.json"
    settings = json.loads(source.read_text())
    assert audio_config(source, home / "safetensors" / "params.json") == AudioConfig()
    changed = tmp_path / "tekken.json"
    encoding = settings["audio"]["audio_encoding_config"]

    def write(**changes: object) -> Path:
        changed.write_text(json.dumps(settings | {"audio": settings["audio"] | changes}))
        return changed

    got = audio_config(write(transcription_delay_ms=240, streaming_n_left_pad_tokens=0))
    assert got == AudioConfig(delay_ms=240, left_pad_tokens=0)
    for change, message in (
        ({"transcription_delay_ms": 100}, "multiple of 80"),
        ({"sampling_rate": 24000}, "sampling_rate"),
        ({"transcription_format": "instruct"}, "transcription_format"),
        ({"frame_rate": 6.25}, "only 12.5 is supported"),
        ({"transcription_delay_ms": 0}, "transcription_delay_ms"),
        ({"streaming_n_left_pad_tokens": -1}, "streaming_n_left_pad_tokens"),
        ({"audio_encoding_config": encoding | {"num_mel_bins": 0}}, "num_mel_bins"),
        ({"audio_encoding_config": encoding | {"hop_length": 170}}, "1280"),
        ({"audio_encoding_config": None}, "audio_encoding_config is missing"),
    ):
        with pytest.raises(BadModelError, match=message):
            audio_config(write(**change))
    changed.write_text(json.dumps({key: value for key, value in settings.items() if key != "audio"}))
    with pytest.raises(BadModelError, match="no audio settings"):
        audio_config(changed)
    assert audio_config(changed, needs_audio=False) == AudioConfig()
    # What no file says is as published.
    assert audio_config(write(transcription_delay_ms=None)) == AudioConfig()
