"""scripts/quantize: runs that are interrupted go on, side by side they do not meet, and memory is bounded."""

from __future__ import annotations

import fcntl
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from asr_models import SMALL
from processes import ROOT
from quantized import TESTS, WEIGHTS, packed, run

from voxtral_pipes.errors import OutputError
from voxtral_pipes.models import quantize as module
from voxtral_pipes.models.random_model import make_asr_model


@pytest.fixture(scope="module")
def whole(dense_asr: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return packed(dense_asr / "safetensors", tmp_path_factory.mktemp("whole") / "a.gguf").read_bytes()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from quantized import packed
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


def test_a_killed_run_goes_on(dense_asr: Path, tmp_path: Path, whole: bytes) -> None:
    source, out = dense_asr / "safetensors", tmp_path / "a.gguf"
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
def test_whatever_was_written_is_gone_on_with(
    dense_asr: Path, tmp_path: Path, whole: bytes, size: int
) -> None:
    """Also half a header, half a piece, and all but the last byte."""
    source, out = dense_asr / "safetensors", tmp_path / "a.gguf"
    with pytest.raises(StoppedError):
        packed(source, out, progress=stopping(2))
    (left,) = partials(tmp_path)
    left.write_bytes(whole[:size])
    packed(source, out, piece_weights=WEIGHTS + 1000 * (size % 2))
    assert out.read_bytes() == whole


def test_other_sources_and_types_begin_anew(dense_asr: Path, tmp_path: Path, whole: bytes) -> None:
    out = tmp_path / "a.gguf"
    other = make_asr_model(tmp_path / "other", SMALL, seed=8)
    for source, kind in ((other, "q4_0"), (dense_asr / "safetensors", "q8_0")):
        with pytest.raises(StoppedError):
            packed(source, out, kind, progress=stopping(30))  # type: ignore[arg-type]
        assert len(partials(tmp_path)) == 1
    packed(dense_asr / "safetensors", out)
    assert out.read_bytes() == whole
    assert partials(tmp_path) == []


def test_two_runs_do_not_write_one_file(dense_asr: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    with pytest.raises(StoppedError):
        packed(dense_asr / "safetensors", out, progress=stopping(3))
    (left,) = partials(tmp_path)
    with left.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="being written by another run"):
            packed(dense_asr / "safetensors", out)
        with pytest.raises(StoppedError):
            packed(dense_asr / "safetensors", out, "q8_0", progress=stopping(3))
        assert left.exists()


def test_a_full_disk_leaves_no_file(dense_asr: Path, tmp_path: Path, whole: bytes) -> None:
    out = tmp_path / "new" / "a.gguf"
    args = ("asr", dense_asr / "hf", "-o", out)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "quantize", *args], capture_output=True, text=True, timeout=60,
        check=False, preexec_fn=limit,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(r"quantize: .*a.gguf cannot be written: File too large\n", done.stderr)
    assert not out.exists()
    done = run(*args)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert out.read_bytes() == whole
    assert partials(out.parent) == []


def test_room_is_asked_for_first(dense_asr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match=r"\d+ more bytes are needed, and the disk has 1000 left"):
        packed(dense_asr / "safetensors", tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


MEASURED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from quantized import errors, packed
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
