"""scripts/make-random-model tts: the published layouts, one set of weights in all, utterances that end."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from preloaded import script_preloaded, scripts_preloaded
from safetensors.torch import load_file

from voxtral_pipes.config import TtsConfig
from voxtral_pipes.formats.locate import files_at
from voxtral_pipes.formats.tekken import Tekken
from voxtral_pipes.models.backbone import Backbone
from voxtral_pipes.models.checkpoint import TtsCheckpoint
from voxtral_pipes.models.codec import Codec
from voxtral_pipes.models.codes import END_AUDIO
from voxtral_pipes.models.flow import Flow
from voxtral_pipes.models.gguf_layout import gguf_shapes, packed_names
from voxtral_pipes.models.random_model import make_tts_model, tiny_tts_config
from voxtral_pipes.models.random_tts import NEVER, SHORT_VOICES, Format
from voxtral_pipes.models.tts_shapes import tts_shapes

FORMATS: tuple[Format, ...] = ("safetensors", "gguf-q4", "gguf-q8")
NORMED = ".parametrizations.weight.original"


def files_of(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("tts")
    for format in FORMATS:
        make_tts_model(home / format, tiny_tts_config(), format, seed=3)
    return home


def dense(home: Path) -> dict[str, torch.Tensor]:
    return load_file(home / "safetensors" / "consolidated.safetensors")


def test_the_published_model_has_386_tensors() -> None:
    shapes = tts_shapes(TtsConfig())
    assert len(shapes) == 386
    assert 2 * sum(int(np.prod(shape)) for shape in shapes.values()) == 8_004_706_784


def test_the_published_gguf_has_207_and_174_tensors() -> None:
    shapes = gguf_shapes(TtsConfig())
    packed = set(packed_names(shapes))
    assert (len(shapes), len(packed)) == (381, 207)
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    assert sum(sizes[name] for name in packed) == 3_822_452_736
    assert 4 * sum(size for name, size in sizes.items() if name not in packed) == 719_585_280
    *kept, first, up2, up4, up6, out = shapes
    assert kept == sorted(kept)
    blocks = "audio_tokenizer.decoder_blocks."
    assert [first, up2, up4, up6] == [f"{blocks}{i}.conv.weight" for i in (0, 2, 4, 6)]
    assert out == "audio_tokenizer.output_proj.conv.weight"


@pytest.mark.parametrize("format", FORMATS)
def test_the_script_makes_a_model_that_opens(home: Path, tmp_path: Path, format: str) -> None:
    done, cut, again = scripts_preloaded(
        "make-random-model",
        ("tts", "--size", "tiny", "--format", format, "--seed", "3", tmp_path / "a"),
        ("tts", "--format", format, "--seed", "3", "--shard-bytes", "500000", tmp_path / "b"),
        ("tts", "--format", format, tmp_path / "a"),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    made = files_of(tmp_path / "a")
    assert made == files_of(home / format)
    assert sum(map(len, made.values())) < 4_000_000
    assert cut.returncode == 0
    assert any(name.startswith("shard-") for name in files_of(tmp_path / "b"))
    one, two = (TtsCheckpoint(files_at(tmp_path / name)) for name in "ab")
    assert one.config == two.config == tiny_tts_config()
    assert one.fingerprint == two.fingerprint == TtsCheckpoint(files_at(home / "safetensors")).fingerprint
    assert again.returncode == 1
    assert "holds" in again.stderr and again.stderr.count("\n") == 1


def test_there_is_no_layout_of_transformers(tmp_path: Path) -> None:
    done = script_preloaded("make-random-model", "tts", "--format", "hf", tmp_path / "a")
    assert done.returncode == 1
    assert "hf is for asr" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_safetensors_hold_bf16_alone(home: Path) -> None:
    tensors = dense(home)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == tts_shapes(tiny_tts_config())
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def folded(tensors: dict[str, torch.Tensor], name: str) -> np.ndarray[Any, Any]:
    """Fold in float64 what float32 must come near to."""
    conv = name.removesuffix(".weight")
    gain, direction = (tensors[f"{conv}{NORMED}{half}"].double().numpy() for half in (0, 1))
    return gain * direction / np.sqrt((direction**2).sum(axis=(1, 2), keepdims=True))


@pytest.mark.parametrize("packing", ["q4", "q8"])
def test_gguf_holds_the_same_model(home: Path, packing: str) -> None:
    tensors, shapes = dense(home), gguf_shapes(tiny_tts_config())
    reader = gguf.GGUFReader(home / f"gguf-{packing}" / f"voxtral-tts-{packing}.gguf")
    assert reader.fields["general.architecture"].contents() == "voxtral-tts"
    assert [key for key in reader.fields if not key.startswith("GGUF.")] == ["general.architecture"]
    assert [tensor.name for tensor in reader.tensors] == list(shapes)
    kind = gguf.GGMLQuantizationType[f"{packing.upper()}_0"]
    packed = packed_names(shapes)
    for tensor in reader.tensors:
        assert tuple(tensor.shape.tolist()) == shapes[tensor.name][::-1]
        if tensor.name in packed:
            assert tensor.tensor_type == kind
            expected = gguf.quantize(tensors[tensor.name].float().numpy(), kind)
            np.testing.assert_array_equal(tensor.data, expected, tensor.name)
            continue
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        if tensor.name in tensors:
            np.testing.assert_array_equal(tensor.data, tensors[tensor.name].float().numpy(), tensor.name)
        else:
            np.testing.assert_allclose(tensor.data, folded(tensors, tensor.name), rtol=1e-6)
    ends = [(tensor.data_offset, tensor.data_offset + tensor.n_bytes) for tensor in reader.tensors]
    assert all(-(-end // 32) * 32 == start for (_, end), (start, _) in pairwise(ends))


def test_voices(home: Path) -> None:
    assert len(SHORT_VOICES) == 20
    assert set(SHORT_VOICES.values()) == set(range(3, 13))
    for name, rows in SHORT_VOICES.items():
        pt = torch.load(home / "safetensors" / "voice_embedding" / f"{name}.pt", weights_only=True)
        assert (tuple(pt.shape), pt.dtype) == ((rows, 128), torch.bfloat16)
        for packing in ("q4", "q8"):
            stored = load_file(home / f"gguf-{packing}" / "voice_embedding" / f"{name}.safetensors")
            assert stored.keys() == {"embedding"}
            assert torch.equal(stored["embedding"], pt)


def test_params_have_the_published_form(home: Path) -> None:
    """tts.md section 2: every field that it lists, and no other."""
    settings = json.loads((home / "safetensors" / "params.json").read_text())
    assert settings.keys() == {
        "dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "rope_theta", "norm_eps", "vocab_size",
        "max_seq_len", "max_position_embeddings", "model_type", "multimodal",
    }  # fmt: skip
    assert settings["model_type"] == "voxtral_tts"
    assert settings["multimodal"].keys() == {"bos_token_id", "audio_model_args", "audio_tokenizer_args"}
    model, codec = (settings["multimodal"][name] for name in ("audio_model_args", "audio_tokenizer_args"))
    assert model.keys() == {
        "semantic_codebook_size", "acoustic_codebook_size", "n_acoustic_codebook", "audio_encoding_args",
        "audio_token_id", "begin_audio_token_id", "input_embedding_concat_type", "acoustic_transformer_args",
        "p_uncond", "text_feature_bugged", "condition_dropped_token_id",
    }  # fmt: skip
    assert model["audio_encoding_args"] == {
        "codebook_pattern": "parallel", "interleave_audio_tokens_per_segment": 8192,
        "interleave_text_tokens_per_segment": 8192, "single_trailing_segment": False, "num_codebooks": 37,
        "sampling_rate": 24000, "frame_rate": 12.5,
    }  # fmt: skip
    assert model["acoustic_transformer_args"].keys() == {
        "input_dim", "dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "use_biases", "rope_theta",
        "sigma", "sigma_max",
    }  # fmt: skip
    assert codec.keys() == {
        "channels", "sampling_rate", "pretransform_patch_size", "patch_proj_kernel_size", "semantic_codebook_size",
        "semantic_dim", "acoustic_codebook_size", "acoustic_dim", "conv_weight_norm", "causal",
        "attn_sliding_window_size", "half_attn_window_upon_downsampling", "dim", "hidden_dim", "head_dim", "n_heads",
        "n_kv_heads", "qk_norm", "qk_norm_eps", "use_biases", "norm_eps", "layer_scale", "layer_scale_init",
        "decoder_transformer_lengths_str", "decoder_convs_kernels_str", "decoder_convs_strides_str", "voice",
    }  # fmt: skip
    assert codec["decoder_transformer_lengths_str"] == "2,2,2,2"
    assert codec["decoder_convs_kernels_str"] == "3,4,4,4"
    assert codec["decoder_convs_strides_str"] == "1,2,2,2"
    assert codec["attn_sliding_window_size"] == 16
    assert codec["voice"] == {name: index for index, name in enumerate(SHORT_VOICES)}


def test_steps_that_are_not_the_published_ones_are_written(tmp_path: Path) -> None:
    config = tiny_tts_config()
    config = replace(config, flow=replace(config.flow, steps=3, norm_eps=1e-6))
    assert TtsCheckpoint(files_at(make_tts_model(tmp_path, config))).config == config


def test_tekken_tells_the_rows_of_voices(home: Path) -> None:
    held = json.loads((home / "gguf-q4" / "tekken.json").read_text())
    assert held["config"]["default_vocab_size"] == 1600
    audio = held["audio"]
    assert (audio["sampling_rate"], audio["frame_rate"]) == (24000, 12.5)
    assert audio["voice_num_audio_tokens"] == SHORT_VOICES
    assert held["special_tokens"][36]["token_str"] == "[NEXT_AUDIO_TEXT]"


def test_refusals(tmp_path: Path) -> None:
    config = tiny_tts_config()
    with pytest.raises(ValueError, match="unknown format"):
        make_tts_model(tmp_path / "a", config, "hf")  # type: ignore[arg-type]
    odd = replace(config, flow=replace(config.flow, hidden_dim=100))
    with pytest.raises(
        ValueError, match=r"feed_forward.w2.weight has rows of 100; Q4_0 needs multiples of 32"
    ):
        make_tts_model(tmp_path / "b", odd, "gguf-q4")
    make_tts_model(tmp_path / "b", odd)
    apart = replace(config, codec=replace(config.codec, semantic_size=100))
    with pytest.raises(ValueError, match="differ in their codes"):
        make_tts_model(tmp_path / "c", apart)


def test_the_end_gain_scales_one_row(home: Path, tmp_path: Path) -> None:
    name = "acoustic_transformer.semantic_codebook_output.weight"
    make_tts_model(tmp_path, tiny_tts_config(), seed=3, end_gain=NEVER)
    often, never = dense(home), load_file(tmp_path / "consolidated.safetensors")
    assert [key for key in often if not torch.equal(often[key], never[key])] == [name]
    rows = (often[name] != never[name]).any(dim=1).nonzero().flatten().tolist()
    assert rows == [END_AUDIO]
    assert 10 < often[name][END_AUDIO].norm() / never[name][END_AUDIO].norm() < 20


TEXTS = (
    "Paris is a beautiful city!", "Hello world.", "Good morning, how are you?", "One two three.", "Yes.",
    "Guten Tag, wie geht es Ihnen?", "The water is cold.", "Never say never.",
)  # fmt: skip


def test_utterances_end_by_themselves(tmp_path: Path) -> None:
    """The default model: lengths depend on the text, codes vary, and the waveform stays within its range."""
    config = tiny_tts_config()
    make_tts_model(tmp_path, config)
    tensors = {name: t.float() for name, t in load_file(tmp_path / "consolidated.safetensors").items()}
    backbone, flow, codec = (
        Backbone.of(dict(tensors), config.backbone),
        Flow.of(dict(tensors), config.flow),
        Codec.of(dict(tensors), config.codec),
    )
    voice = torch.load(tmp_path / "voice_embedding" / "casual_male.pt", weights_only=True)
    tekken = Tekken.read(tmp_path / "tekken.json")
    lengths, semantic = [], set()
    for text in TEXTS:
        ids = torch.tensor([1, 25, *[24] * len(voice), 36, *tekken.encode(text), 35, 25])
        state = backbone.new_state(len(ids) + 300)
        hidden, state = backbone.step(state, backbone.embed_prompt(ids, voice, 24))
        rows: list[torch.Tensor] = []
        while len(rows) < 300:
            noise = np.random.default_rng(len(rows)).standard_normal((1, 36), dtype=np.float32)
            row = flow.step(hidden, torch.from_numpy(noise), 7, 1.2)
            if row[0, 0] == END_AUDIO:
                break
            rows.append(row)
            hidden, state = backbone.step(state, backbone.embed_codes(row[:, None]))
        lengths.append(len(rows))
        codes = torch.cat(rows)
        semantic.update(codes[:, 0].tolist())
        samples, _ = codec.step(codec.new_state(), codes[None])
        assert samples.shape == (1, 1920 * len(rows))
        assert 0.1 < samples.abs().max() < 0.9
        assert codes[:, 1:].unique().numel() > 15
    assert min(lengths) > 0 and max(lengths) < 300
    assert len(set(lengths)) > len(TEXTS) // 2
    assert len(semantic) > 50
