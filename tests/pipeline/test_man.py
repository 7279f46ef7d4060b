"""The man pages: current, complete, clean, and their examples run."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from code_streams import sound, spoken
from preloaded import path_preloaded

from voxtral_pipes.formats.frame import ITEM_BYTES, KINDS, Frame, FrameReader
from voxtral_pipes.models.random_model import make_tts_model, tiny_tts_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "man").glob("vx-*.[15]"))
WAIT_S = 120

# `.\" runnable` or `.\" bytes`, then the literal block.
BLOCK = re.compile(r'^\.\\" (runnable|bytes)\n\.EX\n(.*?)^\.EE\n', re.MULTILINE | re.DOTALL)
ESCAPES = {"\\-": "-", "\\e": "\\", "\\(aq": "'"}
SECTIONS = [
    "NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "ENVIRONMENT", "EXIT STATUS", "EXAMPLES", "SEE ALSO",
]  # fmt: skip

ARECORD = """#!/bin/bash
case " $* " in
    *" -t raw "*) exec tail -c +45 "$TALK" ;;
    *) exec cat "$TALK" ;;
esac
"""
APLAY = """#!/bin/sh
exec cat > /dev/null
"""


def blocks(page: Path, kind: str) -> list[str]:
    """Return the literal blocks of a page as a reader sees them."""
    found = [text for what, text in BLOCK.findall(page.read_text()) if what == kind]
    return [re.sub(r"\\(?:\(aq|-|e)", lambda match: ESCAPES[match.group()], text) for text in found]


def runnable() -> dict[str, str]:
    """Name every example that can run here; one that is on several pages runs once."""
    named = {
        text: f"{page.name}-{number}"
        for page in PAGES
        for number, text in enumerate(blocks(page, "runnable"))
    }
    return {name: text for text, name in named.items()}


RUNNABLE = runnable()
COMMANDS = [page for page in PAGES if page.suffix == ".1"]


@pytest.fixture(scope="module")
def world(tiny_model: Path, tiny_tts_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Make models, a recording, codes, a book, a recorder and a player; return the environment of the examples."""
    root = tmp_path_factory.mktemp("world")
    (root / "asr").symlink_to(tiny_model)
    (root / "tts").symlink_to(tiny_tts_model)
    make_tts_model(root / "q4", tiny_tts_config(), "gguf-q4")
    (root / "q4" / "voxtral-tts-q4.gguf").rename(root / "voxtral.gguf")
    (root / "codes.vx").write_bytes(spoken(sound(5)))
    (root / "book.txt").write_text("It was late.\n\nThe rain had stopped.\n")
    tone = np.sin(np.arange(16000) * (2 * np.pi * 440 / 16000)) * 8000
    with wave.open(str(root / "talk.wav"), "wb") as talk:
        talk.setparams((1, 2, 16000, 0, "NONE", ""))
        talk.writeframes(tone.astype("<i2").tobytes())
    (root / "bin").mkdir()
    for name, script in (("arecord", ARECORD), ("aplay", APLAY)):
        (root / "bin" / name).write_text(script)
        (root / "bin" / name).chmod(0o755)
    path = f"{root / 'bin'}:{path_preloaded()}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VX_")}
    return {
        **clean,
        "PATH": path,
        "VX_ASR_MODEL": str(root / "asr"),
        "VX_TTS_MODEL": str(root / "tts"),
        "TALK": str(root / "talk.wav"),
        "CODES": str(root / "codes.vx"),
        "BOOK": str(root / "book.txt"),
        "GGUF": str(root / "voxtral.gguf"),
    }


@pytest.mark.parametrize("name", RUNNABLE)
def test_examples_run(name: str, world: dict[str, str], tmp_path: Path) -> None:
    example = RUNNABLE[name]
    for given in ("TALK", "CODES", "BOOK", "GGUF"):
        shutil.copy(world[given], tmp_path)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", example],
        cwd=tmp_path, env=world, capture_output=True, timeout=WAIT_S, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    if "--pass" not in example:  # which reports on stderr
        told = [line for line in done.stderr.splitlines() if b"saved stream" not in line]
        assert told == []


@pytest.mark.parametrize("page", COMMANDS, ids=lambda page: str(page.name))
def test_pages_have_their_sections(page: Path) -> None:
    assert re.findall(r"^\.SH (.*)$", page.read_text(), re.MULTILINE) == SECTIONS
    assert blocks(page, "runnable")


def test_pages_refer_to_pages_that_exist() -> None:
    names = {page.name for page in PAGES}
    for page in PAGES:
        for name, section in re.findall(r"(vx\\-\w+) \((\d)\)", page.read_text()):
            assert f"{name.replace(chr(92), '')}.{section}" in names, page.name


@pytest.mark.parametrize("page", COMMANDS, ids=lambda page: str(page.name))
def test_variables_in_help_are_under_environment(page: Path) -> None:
    options, environment = page.read_text().split(".SH ENVIRONMENT")
    environment = environment.split(".SH EXIT STATUS")[0]
    for variable in set(re.findall(r"\bVX_[A-Z_]+", options)):
        assert variable in environment


def test_generated_parts_are_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/make-man", "--check"],
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_pages_are_clean(page: Path) -> None:
    done = subprocess.run(
        ["groff", "-t", "-man", "-ww", "-z", "-Tutf8", page], capture_output=True, timeout=WAIT_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


# --- vx-frame(5)

FRAME_PAGE = ROOT / "man" / "vx-frame.5"


def frames_of(text: str) -> list[Frame]:
    data = bytes.fromhex("".join(line.split(";")[0] for line in text.splitlines()))
    return list(FrameReader(io.BytesIO(data)))


def test_annotated_bytes_are_what_the_page_says() -> None:
    first, second = blocks(FRAME_PAGE, "bytes")
    [mel] = frames_of(first)
    assert (mel.kind, mel.stream, mel.seq, mel.tick) == ("data", 7, 3, 3840)
    np.testing.assert_array_equal(
        mel.tensors["mel"].numpy(), np.array([[0, 1, -1], [0.5, 2, -2]], np.float32)
    )
    assert frames_of(second) == [Frame("end", 7, 4)]


def test_the_page_names_every_kind_key_and_dtype() -> None:
    text = FRAME_PAGE.read_text()
    kinds = text.split(".SS Kinds")[1].split(".SS Tensors")[0]
    assert set(re.findall(r"^\.TP\n\.B (\w+)$", kinds, re.MULTILINE)) == KINDS
    keys = text.split(".SS Keys")[1].split(".SS Kinds")[0]
    assert set(re.findall(r"^\\fB(.)\\fR\|", keys, re.MULTILINE)) == set("knstuxicm!")
    tensors = text.split(".SS Tensors")[1].split(".SS Rules")[0]
    told = {
        dtype: int(size)
        for names, size in re.findall(r"^([a-z][\w ]+)\|(\d)$", tensors, re.MULTILINE)
        for dtype in names.split()
    }
    assert told == ITEM_BYTES
