"""scripts/quantize: ggml's values in the published layouts, what lies beside them, and what is refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from asr_models import SMALL
from quantized import KINDS, opened, packed, run
from safetensors.torch import load_file, save_file
from tts_checkpoints import ODD, PACKABLE, VOICES, make, values

from voxtral_pipes.config import AsrConfig, TtsConfig
from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.gguf_writer import aligned, codes, encode, header, scales
from voxtral_pipes.formats.locate import files_at
from voxtral_pipes.models.checkpoint import AsrCheckpoint, TtsCheckpoint
from voxtral_pipes.models.companions import write_companions
from voxtral_pipes.models.dense_rows import DenseRows
from voxtral_pipes.models.gguf_layout import GgufLayout, Packing, asr_layout, tts_layout
from voxtral_pipes.models.quantize import pieces


def check_file(path: Path, layout: GgufLayout, expected: Callable[[str], torch.Tensor]) -> None:
    """Compare with what the gguf package reads and computes."""
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.architecture"].contents() == layout.architecture
    assert [key for key in reader.fields if not key.startswith("GGUF.")] == ["general.architecture"]
    assert [tensor.name for tensor in reader.tensors] == list(layout.tensors)
    for tensor in reader.tensors:
        info = layout.tensors[tensor.name]
        assert tuple(tensor.shape.tolist()) == info.shape[::-1]
        assert tensor.tensor_type.name == info.type
        source = gguf.quantize(expected(tensor.name).numpy(), tensor.tensor_type)
        np.testing.assert_array_equal(tensor.data, source, tensor.name)
    spans = [(tensor.data_offset, tensor.data_offset + tensor.n_bytes) for tensor in reader.tensors]
    assert spans[0][0] == reader.data_offset and reader.data_offset % 32 == 0
    assert all(aligned(end) == start for (_, end), (start, _) in pairwise(spans))
    assert spans[-1][1] == path.stat().st_size


# --- what is written


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["safetensors", "hf", "index", "raw"])
def test_recognition(dense_asr: Path, tmp_path: Path, layout: str, kind: Packing) -> None:
    source = dense_asr / layout
    out = packed(source, tmp_path / "a.gguf", kind)
    tensors = load_file(dense_asr / "safetensors" / "consolidated.safetensors")
    expected = asr_layout(SMALL, kind)
    assert expected.tensors.keys() == tensors.keys()
    for info in expected.tensors.values():
        assert info.type == (kind.upper() if len(info.shape) == 2 else "F32")
    check_file(out, expected, lambda name: tensors[name].float())
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]
    theirs = AsrCheckpoint(files_at(source))
    write_companions(files_at(source), theirs, tmp_path)
    ours = AsrCheckpoint(files_at(tmp_path))
    assert (ours.config, ours.fingerprint, ours.identity) == (SMALL, theirs.fingerprint, theirs.identity)
    assert {path.name for path in tmp_path.iterdir()} == {"a.gguf", "params.json", "tekken.json"}


@pytest.mark.parametrize("kind", KINDS)
def test_synthesis(dense_tts: Path, tmp_path: Path, kind: Packing) -> None:
    out = packed(dense_tts, tmp_path / "a.gguf", kind)
    tensors = values(dense_tts)

    def expected(name: str) -> torch.Tensor:
        if name in tensors:
            return tensors[name]
        gain, direction = (
            tensors[f"{name.removesuffix('weight')}parametrizations.weight.original{i}"] for i in (0, 1)
        )
        return gain * direction / direction.norm(dim=(1, 2), keepdim=True)

    check_file(out, tts_layout(PACKABLE, kind), expected)
    theirs = TtsCheckpoint(files_at(dense_tts))
    write_companions(files_at(dense_tts), theirs, tmp_path)
    ours = TtsCheckpoint(files_at(tmp_path))
    assert (ours.config, ours.fingerprint) == (theirs.config, theirs.fingerprint)
    held = {path.name: load_file(path) for path in (tmp_path / "voice_embedding").iterdir()}
    assert held.keys() == {f"{name.lower()}.safetensors" for name in VOICES}
    for name in VOICES:
        rows = torch.load(dense_tts / "voice_embedding" / f"{name}.pt", weights_only=True)
        assert held[f"{name.lower()}.safetensors"].keys() == {"embedding"}
        got = held[f"{name.lower()}.safetensors"]["embedding"]
        assert got.dtype == torch.bfloat16 and torch.equal(got, rows)


def test_weights_that_are_folded_already_and_of_other_types(dense_tts: Path, tmp_path: Path) -> None:
    """A dense checkpoint of float32 with plain convolutions gives the same file."""
    first = packed(dense_tts, tmp_path / "a.gguf")
    (tmp_path / "is-tts").touch()
    _, rows, layout = opened(dense_tts)
    tensors = {n: torch.from_numpy(rows.read(n, 0, i.shape[0]).copy()) for n, i in layout.tensors.items()}
    (tmp_path / "plain").mkdir()
    shutil.copy(dense_tts / "params.json", tmp_path / "plain")
    save_file(tensors, tmp_path / "plain" / "consolidated.safetensors")
    second = packed(tmp_path / "plain", tmp_path / "b.gguf")
    assert first.read_bytes() == second.read_bytes()


def test_the_published_files() -> None:
    """formats.md sections 1 and 2: counts and sizes."""
    for layout, n_packed, n_dense, n_bytes in (
        (asr_layout(AsrConfig(), "q4_0"), 461, 250, 2_488_393_728),
        (tts_layout(TtsConfig(), "q4_0"), 207, 174, 2_150_129_664),
    ):
        infos = list(layout.tensors.values())
        assert sum(info.type == "Q4_0" for info in infos) == n_packed
        assert sum(info.type == "F32" for info in infos) == n_dense
        assert sum(info.nbytes for info in infos if info.type == "Q4_0") == n_bytes
    head = header(layout.architecture, layout.tensors)
    assert len(head) == 29_792
    assert len(head) + sum(info.nbytes for info in infos) == 2_869_744_736


def test_pieces_of_the_largest_tensor_are_small() -> None:
    class Plain(DenseRows):
        def __init__(self) -> None:
            pass

        def grain(self, name: str) -> int:
            return 128 if name.endswith("wq.weight") else 1

    layout = tts_layout(TtsConfig(), "q4_0")
    cut = list(pieces(Plain(), layout))
    assert max((p.end - p.begin) * np.prod(layout.tensors[p.name].shape[1:]) for p in cut) <= 1 << 20
    assert all(p.begin % 128 == 0 for p in cut if p.name.endswith("wq.weight"))
    assert len(cut) < 6000


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_blocks(kind: str) -> None:
    """Ties, zeros, denormals, the largest floats: bytes as gguf gives them, and read back as it reads them."""
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((41, 96)).astype(np.float32)
    rows[1] = 0
    rows[2] = -rows[2].max()
    rows[3, ::2], rows[3, 1::2] = 1, -1
    rows[4] *= 1e-30
    rows[5] *= 1e-6
    rows[6] *= 1e5
    got = encode(rows, kind)
    with np.errstate(all="ignore"):
        expected = gguf.quantize(rows, gguf.GGMLQuantizationType[kind])
    assert got.dtype == np.uint8 and got.tobytes() == expected.tobytes()
    ours = (codes(got, kind) * scales(got, kind).astype(np.float32)).reshape(rows.shape)
    np.testing.assert_array_equal(ours, gguf.dequantize(expected, gguf.GGMLQuantizationType[kind]))
    for value in (np.nan, np.inf, 3e38):
        rows[7, 40] = value
        with pytest.raises(ValueError, match="not finite, or too large"):
            encode(rows, kind)
    rows[7, 40] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        encode(rows, "F32")


# --- beside it


def test_what_is_there_stays(dense_tts: Path, tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text("{}")
    (tmp_path / "voice_embedding").mkdir()
    (tmp_path / "voice_embedding" / "ann.safetensors").write_bytes(b"x")
    write_companions(files_at(dense_tts), TtsCheckpoint(files_at(dense_tts)), tmp_path)
    assert (tmp_path / "params.json").read_text() == "{}"
    assert (tmp_path / "voice_embedding" / "ann.safetensors").read_bytes() == b"x"
    assert (tmp_path / "voice_embedding" / "casual_male.safetensors").exists()
    assert (tmp_path / "tekken.json").read_bytes() == (dense_tts / "tekken.json").read_bytes()
    before = sorted(path.name for path in dense_tts.rglob("*"))
    bare = tmp_path / "bare"
    shutil.copytree(dense_tts, bare)
    shutil.rmtree(bare / "voice_embedding")
    (bare / "tekken.json").unlink()
    target = tmp_path / "target"
    target.mkdir()
    write_companions(files_at(bare), TtsCheckpoint(files_at(bare)), target)
    assert [path.name for path in target.iterdir()] == ["params.json"]
    assert sorted(path.name for path in dense_tts.rglob("*")) == before


# --- refusals


def test_refusals(dense_asr: Path, dense_tts: Path, tmp_path: Path) -> None:
    source = dense_asr / "safetensors"
    out = tmp_path / "a.gguf"
    (tmp_path / "made").mkdir()
    made = packed(source, tmp_path / "made" / "a.gguf")
    shutil.copy(source / "params.json", made.parent)
    odd = make(tmp_path / "odd", ODD)
    for args, status, message in (
        (("asr", made, "-o", out), 1, r"is Q4_0; what is to be quantised must be BF16"),
        (("tts", source, "-o", out), 1, "is a speech recognition model"),
        (("asr", source, "-o", tmp_path / "a.bin"), 2, "ends in .gguf"),
        (("tts", odd, "-o", out), 2, "multiples of 32"),
        (("asr", tmp_path / "none", "-o", out), 1, "no model at"),
        (("asr", source, "-o", tmp_path / "x" / "y" / "a.gguf"), 1, "cannot be made: No such file"),
    ):
        done = run(*args)
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert re.search(message, done.stderr) and done.stderr.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("name", ["layers.0.feed_forward.w2.weight", "norm.weight"])
def test_values_that_are_no_numbers(dense_asr: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(dense_asr / "safetensors", tmp_path / "nan")
    tensors = load_file(tmp_path / "nan" / "consolidated.safetensors")
    tensors[name].view(-1)[5] = float("nan")
    save_file(tensors, tmp_path / "nan" / "consolidated.safetensors")
    with pytest.raises(BadModelError, match=rf"{name}, rows 0 to \d+: .* not finite"):
        packed(tmp_path / "nan", tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_missing_and_unknown_tensors(dense_asr: Path, tmp_path: Path) -> None:
    shutil.copytree(dense_asr / "safetensors", tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "consolidated.safetensors")
    tensors["more.weight"] = torch.zeros(3)
    save_file(tensors, tmp_path / "a" / "consolidated.safetensors")
    done = run("asr", tmp_path / "a", "-o", tmp_path / "a.gguf")
    assert (done.returncode, done.stderr) == (0, "quantize: 1 tensors are left out, more.weight being one\n")
    del tensors["layers.0.attention_norm.weight"]
    save_file(tensors, tmp_path / "a" / "consolidated.safetensors")
    with pytest.raises(BadModelError, match=r"layers.0.attention_norm.weight is missing"):
        opened(tmp_path / "a")
