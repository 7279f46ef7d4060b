"""scripts/wer through real pipes of a tiny random model: what it says is right, whatever the model says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from preloaded import run_preloaded, script_preloaded
from processes import command, environment


def wer(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return script_preloaded("wer", *arguments, "--device", "cpu")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sounds, one in another format, one of which nothing is said."""
    folder = tmp_path_factory.mktemp("recordings")
    draw = np.random.default_rng(0)
    rows = ["path\tkind\ttranscript"]
    for name, text in (("a.wav", "one two"), ("b.flac", "three"), ("c.wav", ""), ("d.wav", "four five six")):
        soundfile.write(folder / name, (draw.normal(0, 2000, 6000)).astype(np.int16), 16000)
        rows.append(f"{name}\t{'noise' if not text else 'words'}\t{text}")
    (folder / "table.tsv").write_text("\n".join(rows) + "\n")
    return folder


def test_each_file_has_its_own_text(tmp_path: Path, recordings: Path, tiny_model: Path) -> None:
    """Two pipes of two files give what a pipe of each gives, the delay with it."""
    done = wer(
        "-m",
        tiny_model,
        "--json",
        "--by",
        "kind",
        "--jobs",
        "2",
        "--delay-ms",
        "240",
        recordings / "table.tsv",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["delay_ms"] == 240 and "whisper_normalizer" in report["normalizer"]
    assert [file["name"] for file in report["files"]] == ["a.wav", "b.flac", "c.wav", "d.wav"]
    for file in report["files"]:
        samples, rate_hz = soundfile.read(recordings / file["name"], dtype="int16")
        soundfile.write(tmp_path / "alone.wav", samples, rate_hz)
        sent = command("vx-mel", "-q", "--delay-ms", 240, tmp_path / "alone.wav").stdout
        for name in ("vx-encode", "vx-decode"):
            sent = run_preloaded(name, ("-q", "--device", "cpu"), environment(tiny_model), sent).stdout
        alone = command("vx-detok", "-q", "-m", tiny_model, data=sent)
        assert file["heard"] == alone.stdout.decode().strip()
    assert report["sums"].keys() == {"all", "kind=noise", "kind=words"}
    assert report["sums"]["all"]["words"] == 6
    assert report["sums"]["kind=noise"]["word_errors"]["value"] is None
    assert report["sums"]["kind=noise"]["said_of_nothing"] == len(report["files"][2]["hypothesis"].split())
    words = report["sums"]["kind=words"]
    assert words["word_errors"]["value"] == pytest.approx(
        (words["substituted"] + words["deleted"] + words["inserted"]) / 6
    )


def test_a_bad_file_is_told_and_left_out(tmp_path: Path, recordings: Path, tiny_model: Path) -> None:
    (tmp_path / "a.wav").write_bytes((recordings / "a.wav").read_bytes())
    (tmp_path / "b.wav").write_text("no sound")
    (tmp_path / "c.flac").write_text("no sound")
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("one")
    done = wer("-m", tiny_model, "--jobs", "1", tmp_path)
    assert done.returncode == 1
    told = done.stderr.splitlines()
    assert [line[:12] for line in told] == ["wer: b.wav: ", "wer: c.flac:"], done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].startswith("a.wav\t1\t") and lines[2] == ""
    assert lines[4].startswith("all: 1 files, 1 words; word errors ")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("-m", "/none", "."), "no recording"),
        (("-m", "/none", "/none/table.tsv"), "does not exist"),
        (("-m", "/none", "TABLE", "--by", "size"), "no such column"),
        (("-m", "/none", "TABLE"), "/none"),
    ],
)
def test_what_cannot_be_done(tmp_path: Path, recordings: Path, arguments: tuple[str, ...], why: str) -> None:
    named = {".": tmp_path, "TABLE": recordings / "table.tsv"}
    done = wer(*(named.get(argument, argument) for argument in arguments))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("wer: ") and why in done.stderr
    assert len(done.stderr.splitlines()) == 1
