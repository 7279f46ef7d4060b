"""scripts/quantize: ggml's values in the published layouts, runs that are interrupted, files that are compared."""

from __future__ import annotations

import fcntl
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from asr_models import SMALL
from safetensors.torch import load_file, save_file
from tts_checkpoints import ODD, PACKABLE, VOICES, make, values

from voxtral_pipes.config import AsrConfig, TtsConfig
from voxtral_pipes.errors import BadModelError, OutputError
from voxtral_pipes.formats.gguf_writer import aligned, codes, encode, header, scales
from voxtral_pipes.formats.locate import ModelFiles, files_at
from voxtral_pipes.models import quantize as module
from voxtral_pipes.models.checkpoint import AsrCheckpoint, TtsCheckpoint
from voxtral_pipes.models.companions import write_companions
from voxtral_pipes.models.dense_rows import DenseRows
from voxtral_pipes.models.gguf_layout import GgufLayout, Packing, asr_layout, tts_layout
from voxtral_pipes.models.quantize import pieces, quantize
from voxtral_pipes.models.quantize_errors import TensorError, tensor_errors
from voxtral_pipes.models.random_model import cut_raw, make_asr_model

TESTS = str(Path(__file__).parents[1])
SCRIPT = Path(__file__).parents[2] / "scripts" / "quantize"
KINDS: tuple[Packing, ...] = ("q4_0", "q8_0")
WEIGHTS = 3000
"""In a piece, so that even tensors of small models come in several."""


def run(*args: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *args], capture_output=True, text=True, timeout=60, **options
    )


def opened(source: Path, kind: Packing = "q4_0") -> tuple[ModelFiles, DenseRows, GgufLayout]:
    files = files_at(source)
    if (source.parent / "is-tts").exists():
        speech = TtsCheckpoint(files)
        layout = tts_layout(speech.config, kind)
        return files, DenseRows(speech, layout), layout
    hearing = AsrCheckpoint(files)
    layout = asr_layout(hearing.config, kind)
    return files, DenseRows(hearing, layout), layout


def packed(source: Path, out: Path, kind: Packing = "q4_0", **options: Any) -> Path:
    files, rows, layout = opened(source, kind)
    quantize(files, rows, layout, out, piece_weights=options.pop("piece_weights", WEIGHTS), **options)
    return out


def errors(source: Path, out: Path) -> dict[str, TensorError]:
    _, rows, layout = opened(source)
    return {error.name: error for error in tensor_errors(out, rows, layout)}


@pytest.fixture(scope="module")
def asr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in four layouts."""
    home = tmp_path_factory.mktemp("asr")
    for format in ("safetensors", "hf"):
        make_asr_model(home / format, SMALL, format, seed=7)
    shutil.copytree(home / "safetensors", home / "raw")
    cut_raw(home / "raw", 100_003)
    (home / "index").mkdir()
    tensors = load_file(home / "hf" / "model.safetensors")
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        name = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, home / "index" / name)
        weight_map |= dict.fromkeys(part, name)
    (home / "index" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in ("config.json", "tekken.json"):
        shutil.copy(home / "hf" / name, home / "index")
    return home


@pytest.fixture(scope="module")
def tts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("tts")
    (home / "is-tts").touch()
    return make(home / "safetensors", PACKABLE, seed=7)


@pytest.fixture(scope="module")
def whole(asr: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return packed(asr / "safetensors", tmp_path_factory.mktemp("whole") / "a.gguf").read_bytes()


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
def test_recognition(asr: Path, tmp_path: Path, layout: str, kind: Packing) -> None:
    source = asr / layout
    out = packed(source, tmp_path / "a.gguf", kind)
    tensors = load_file(asr / "safetensors" / "consolidated.safetensors")
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
def test_synthesis(tts: Path, tmp_path: Path, kind: Packing) -> None:
    out = packed(tts, tmp_path / "a.gguf", kind)
    tensors = values(tts)

    def expected(name: str) -> torch.Tensor:
        if name in tensors:
            return tensors[name]
        gain, direction = (
            tensors[f"{name.removesuffix('weight')}parametrizations.weight.original{i}"] for i in (0, 1)
        )
        return gain * direction / direction.norm(dim=(1, 2), keepdim=True)

    check_file(out, tts_layout(PACKABLE, kind), expected)
    theirs = TtsCheckpoint(files_at(tts))
    write_companions(files_at(tts), theirs, tmp_path)
    ours = TtsCheckpoint(files_at(tmp_path))
    assert (ours.config, ours.fingerprint) == (theirs.config, theirs.fingerprint)
    held = {path.name: load_file(path) for path in (tmp_path / "voice_embedding").iterdir()}
    assert held.keys() == {f"{name.lower()}.safetensors" for name in VOICES}
    for name in VOICES:
        rows = torch.load(tts / "voice_embedding" / f"{name}.pt", weights_only=True)
        assert held[f"{name.lower()}.safetensors"].keys() == {"embedding"}
        got = held[f"{name.lower()}.safetensors"]["embedding"]
        assert got.dtype == torch.bfloat16 and torch.equal(got, rows)


def test_weights_that_are_folded_already_and_of_other_types(tts: Path, tmp_path: Path) -> None:
    """A dense checkpoint of float32 with plain convolutions gives the same file."""
    first = packed(tts, tmp_path / "a.gguf")
    (tmp_path / "is-tts").touch()
    _, rows, layout = opened(tts)
    tensors = {n: torch.from_numpy(rows.read(n, 0, i.shape[0]).copy()) for n, i in layout.tensors.items()}
    (tmp_path / "plain").mkdir()
    shutil.copy(tts / "params.json", tmp_path / "plain")
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


# --- interruptions

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from unit.test_quantize import packed
count = 0
def progress(done, total):
    global count
    count += 1
    if count == {after}:
        os.kill(os.getpid(), signal.SIGKILL)
packed(Path(sys.argv[1]), Path(sys.argv[2]), progress=progress)
"""


def partials(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.endswith(".partial")]


def test_a_killed_run_goes_on(asr: Path, tmp_path: Path, whole: bytes) -> None:
    source, out = asr / "safetensors", tmp_path / "a.gguf"
    code = KILLED.format(tests=TESTS, after=40)
    done = subprocess.run([sys.executable, "-c", code, source, out], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".partial"
    assert 0 < left.stat().st_size < len(whole)
    seen: list[int] = []
    packed(source, out, progress=lambda at, total: seen.append(at))
    assert out.read_bytes() == whole
    assert seen[0] > len(whole) // 20 and seen == sorted(seen) and seen[-1] == len(whole)
    assert list(tmp_path.iterdir()) == [out]


class StoppedError(Exception):
    pass


def stopping(after: int) -> Callable[[int, int], None]:
    left = [after]

    def progress(done: int, total: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise StoppedError

    return progress


@pytest.mark.parametrize("size", [0, 7, 3000, 9001, 50_000, 100_000, -1])
def test_whatever_was_written_is_gone_on_with(asr: Path, tmp_path: Path, whole: bytes, size: int) -> None:
    """Also half a header, half a piece, and all but the last byte."""
    source, out = asr / "safetensors", tmp_path / "a.gguf"
    with pytest.raises(StoppedError):
        packed(source, out, progress=stopping(2))
    (left,) = partials(tmp_path)
    left.write_bytes(whole[:size])
    packed(source, out, piece_weights=WEIGHTS + 1000 * (size % 2))
    assert out.read_bytes() == whole


def test_other_sources_and_types_begin_anew(asr: Path, tmp_path: Path, whole: bytes) -> None:
    out = tmp_path / "a.gguf"
    other = make_asr_model(tmp_path / "other", SMALL, seed=8)
    for source, kind in ((other, "q4_0"), (asr / "safetensors", "q8_0")):
        with pytest.raises(StoppedError):
            packed(source, out, kind, progress=stopping(30))  # type: ignore[arg-type]
        assert len(partials(tmp_path)) == 1
    packed(asr / "safetensors", out)
    assert out.read_bytes() == whole
    assert partials(tmp_path) == []


def test_two_runs_do_not_write_one_file(asr: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    with pytest.raises(StoppedError):
        packed(asr / "safetensors", out, progress=stopping(3))
    (left,) = partials(tmp_path)
    with left.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="being written by another run"):
            packed(asr / "safetensors", out)
        with pytest.raises(StoppedError):
            packed(asr / "safetensors", out, "q8_0", progress=stopping(3))
        assert left.exists()


def test_a_full_disk_leaves_no_file(asr: Path, tmp_path: Path, whole: bytes) -> None:
    out = tmp_path / "new" / "a.gguf"
    args = ("asr", asr / "hf", "-o", out)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    done = run(*args, preexec_fn=limit)
    assert done.returncode == 1
    assert re.fullmatch(r"quantize: .*a.gguf cannot be written: File too large\n", done.stderr)
    assert not out.exists()
    done = run(*args)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert out.read_bytes() == whole
    assert partials(out.parent) == []


def test_room_is_asked_for_first(asr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match=r"\d+ more bytes are needed, and the disk has 1000 left"):
        packed(asr / "safetensors", tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


MEASURED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from unit.test_quantize import errors, packed
small, large, out = map(Path, sys.argv[1:])
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
packed(small, out / "small.gguf")
errors(small, out / "small.gguf")
before = peak()
packed(large, out / "large.gguf", piece_weights=1 << 20)
errors(large, out / "large.gguf")
print(peak() - before)
"""


def test_memory_is_bounded(tmp_path: Path) -> None:
    """One tensor of 36 million weights: 72 MB as BF16, 144 MB as float32."""
    config = replace(SMALL, decoder=replace(SMALL.decoder, dim=960, vocab_size=38_000, n_layers=1))
    source = make_asr_model(tmp_path / "large", config)
    code = MEASURED.format(tests=TESTS)
    small = make_asr_model(tmp_path / "small", SMALL)
    done = subprocess.run(
        [sys.executable, "-c", code, small, source, tmp_path], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64 << 10


# --- comparing


def test_the_table(tts: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    first = run("tts", tts, "-o", out, "--verify")
    assert (first.returncode, first.stderr) == (0, "")
    n = len(tts_layout(PACKABLE, "q4_0").tensors)
    lines = first.stdout.splitlines()
    assert len(lines) == n + 2
    assert lines[-1] == f"{n} tensors, all as near as their types allow"
    assert run("tts", tts, "-o", out, "--verify").stdout == first.stdout
    again = run("tts", tts, "-o", out)
    assert again.returncode == 1
    assert "is there already" in again.stderr and again.stderr.count("\n") == 1
    data = bytearray(out.read_bytes())
    data[-2] ^= 0x40  # of a folded convolution
    out.write_bytes(data)
    broken = run("tts", tts, "-o", out, "--verify")
    assert broken.returncode == 1
    assert re.search(
        r"^audio_tokenizer.output_proj.conv.weight .* OFF: 1 weights$", broken.stdout, re.MULTILINE
    )
    assert broken.stderr == f"quantize: {out}: 1 tensors are off by more than their type allows\n"


def test_errors_are_those_of_the_values(asr: Path, tmp_path: Path) -> None:
    out = packed(asr / "hf", tmp_path / "a.gguf")
    tensors = load_file(asr / "safetensors" / "consolidated.safetensors")
    found = errors(asr / "hf", out)
    for tensor in gguf.GGUFReader(out).tensors:
        source = tensors[tensor.name].double().numpy()
        held = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        error = found[tensor.name]
        assert error.max_abs == pytest.approx(np.abs(held - source).max(), rel=1e-5)
        rms = np.sqrt(np.square(held - source).sum() / np.square(source).sum())
        assert error.rms == pytest.approx(rms, rel=1e-4)
        assert error.off == 0
        assert error.rms == 0 if error.type == "F32" else 0.05 < error.rms < 0.12


@pytest.mark.parametrize("kind", KINDS)
def test_a_code_that_is_one_off_is_found(asr: Path, tmp_path: Path, kind: Packing) -> None:
    source = asr / "safetensors"
    out = packed(source, tmp_path / "a.gguf", kind)
    _, rows, layout = opened(source, kind)
    name = "layers.1.attention.wk.weight"
    (held,) = (tensor for tensor in gguf.GGUFReader(out).tensors if tensor.name == name)
    values, block = rows.read(name, 0, 1), 34 if kind == "q8_0" else 18
    byte = bytearray(out.read_bytes())
    half = np.argsort(np.abs(values[0, :16]))[8]  # of middle size, so neither cut nor nearly half a step
    for offset, change in ((2 + int(half), 1), (1, 4), (1, 0x80)):  # a code; exponent and sign of the scale
        broken = bytearray(byte)
        at = int(held.data_offset) + 3 * block + offset
        broken[at] = broken[at] ^ change
        (tmp_path / "b.gguf").write_bytes(broken)
        off = [error.name for error in tensor_errors(tmp_path / "b.gguf", rows, layout) if error.off]
        assert off == [name]


def test_the_other_rule_is_allowed(asr: Path, tmp_path: Path) -> None:
    """d = max / 7, never negative (formats.md section 0)."""
    source = asr / "safetensors"
    out = packed(source, tmp_path / "a.gguf")
    _, rows, layout = opened(source)
    data = bytearray(out.read_bytes())
    for tensor in gguf.GGUFReader(out).tensors:
        if tensor.tensor_type.name == "Q4_0":
            wide = rows.read(tensor.name, 0, layout.tensors[tensor.name].shape[0]).reshape(-1, 32)
            scale = np.abs(wide).max(axis=1, keepdims=True) / 7
            held = np.clip(np.floor(wide / scale + 8.5), 0, 15).astype(np.uint8)
            blocks = np.concatenate(
                [scale.astype("<f2").view(np.uint8), held[:, :16] | held[:, 16:] << 4], axis=1
            )
            data[tensor.data_offset : tensor.data_offset + blocks.size] = blocks.tobytes()
    out.write_bytes(data)
    found = errors(source, out)
    assert [name for name, error in found.items() if error.off] == []
    assert found["layers.0.feed_forward.w1.weight"].rms > 0.09


def test_other_tensors_are_no_error_table(asr: Path, tmp_path: Path) -> None:
    source = asr / "safetensors"
    out = packed(source, tmp_path / "a.gguf", "q8_0")
    with pytest.raises(BadModelError, match=r"of Q8_0 where .* of Q4_0 is expected"):
        errors(source, out)
    shorter = replace(SMALL, decoder=replace(SMALL.decoder, n_layers=2))
    make_asr_model(tmp_path / "shorter", shorter)
    packed(tmp_path / "shorter", tmp_path / "b.gguf")
    with pytest.raises(BadModelError, match=r"is expected"):
        errors(source, tmp_path / "b.gguf")


# --- beside it


def test_what_is_there_stays(tts: Path, tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text("{}")
    (tmp_path / "voice_embedding").mkdir()
    (tmp_path / "voice_embedding" / "ann.safetensors").write_bytes(b"x")
    write_companions(files_at(tts), TtsCheckpoint(files_at(tts)), tmp_path)
    assert (tmp_path / "params.json").read_text() == "{}"
    assert (tmp_path / "voice_embedding" / "ann.safetensors").read_bytes() == b"x"
    assert (tmp_path / "voice_embedding" / "casual_male.safetensors").exists()
    assert (tmp_path / "tekken.json").read_bytes() == (tts / "tekken.json").read_bytes()
    before = sorted(path.name for path in tts.rglob("*"))
    bare = tmp_path / "bare"
    shutil.copytree(tts, bare)
    shutil.rmtree(bare / "voice_embedding")
    (bare / "tekken.json").unlink()
    target = tmp_path / "target"
    target.mkdir()
    write_companions(files_at(bare), TtsCheckpoint(files_at(bare)), target)
    assert [path.name for path in target.iterdir()] == ["params.json"]
    assert sorted(path.name for path in tts.rglob("*")) == before


# --- refusals


def test_refusals(asr: Path, tts: Path, tmp_path: Path) -> None:
    source = asr / "safetensors"
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
def test_values_that_are_no_numbers(asr: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(asr / "safetensors", tmp_path / "nan")
    tensors = load_file(tmp_path / "nan" / "consolidated.safetensors")
    tensors[name].view(-1)[5] = float("nan")
    save_file(tensors, tmp_path / "nan" / "consolidated.safetensors")
    with pytest.raises(BadModelError, match=rf"{name}, rows 0 to \d+: .* not finite"):
        packed(tmp_path / "nan", tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_missing_and_unknown_tensors(asr: Path, tmp_path: Path) -> None:
    shutil.copytree(asr / "safetensors", tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "consolidated.safetensors")
    tensors["more.weight"] = torch.zeros(3)
    save_file(tensors, tmp_path / "a" / "consolidated.safetensors")
    done = run("asr", tmp_path / "a", "-o", tmp_path / "a.gguf")
    assert (done.returncode, done.stderr) == (0, "quantize: 1 tensors are left out, more.weight being one\n")
    del tensors["layers.0.attention_norm.weight"]
    save_file(tensors, tmp_path / "a" / "consolidated.safetensors")
    with pytest.raises(BadModelError, match=r"layers.0.attention_norm.weight is missing"):
        opened(tmp_path / "a")
