from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from id_streams import cut, hello, pipe, spoken, tekken_json
from processes import command

from voxtral_pipes.errors import BadInputError
from voxtral_pipes.formats.frame import Frame, encode
from voxtral_pipes.stages.base import Outgoing

ROOT = Path(__file__).resolve().parents[2]
DETOK = [sys.executable, str(ROOT / "bin" / "vx-detok")]
HELLO = b"".join(map(encode, pipe({0: cut(spoken("Hello the world"), [2])})))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("model")
    (home / "tekken.json").write_text(json.dumps(tekken_json()))
    return home


def run(*options: str | Path, data: bytes = HELLO, **environment: str) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [*DETOK, *map(str, options)],
        input=data,
        capture_output=True,
        timeout=60,
        env={**os.environ, "VX_ASR_MODEL": "", **environment},
        check=False,
    )
    assert b"Traceback" not in done.stderr
    return done


def test_ids_become_text(model: Path) -> None:
    for where in (("-m", model), ("-m", model / "tekken.json"), ("--tokenizer", model / "tekken.json")):
        done = run(*where)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"Hello the world\n", b"")
    assert run(VX_ASR_MODEL=str(model)).stdout == b"Hello the world\n"


def test_formats(model: Path) -> None:
    assert (
        run("-m", model, "--format", "vtt").stdout
        == b"WEBVTT\n\n00:00:00.080 --> 00:00:01.080\nHello the world\n\n"
    )
    lines = run("-m", model, "--format", "jsonl").stdout.splitlines()
    assert "".join(json.loads(line)["text"] for line in lines) == " Hello the world"
    done = run("-m", model, "--format", "ass")
    assert done.returncode == 2 and done.stdout == b""


def test_output_is_utf8_whatever_the_locale(model: Path) -> None:
    data = b"".join(map(encode, pipe({0: cut(spoken("é\ufffd😀"))})))
    assert run("-m", model, data=data, LC_ALL="C", PYTHONUTF8="0").stdout == "é\ufffd😀\n".encode()


@pytest.mark.parametrize("options", [(), ("-m", "/nowhere"), ("--tokenizer", "/nowhere/tekken.json")])
def test_no_tokenizer_is_one_line(options: tuple[str, ...], tmp_path: Path, without_nano: str) -> None:
    done = command("vx-detok", *options, data=HELLO, XDG_CACHE_HOME=str(tmp_path), PATH=without_nano)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert done.stderr.startswith(b"vx-detok: ")


def test_a_hostile_tokenizer_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text('{"config": {}, "vocab": 1}\x1b')
    done = run("-m", tmp_path)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"\x1b" not in done.stderr


def test_truncated_input_prints_what_came_and_one_line(model: Path) -> None:
    done = run("-m", model, data=HELLO[:-20])
    assert done.returncode == 1
    assert done.stdout == b"Hello the world\n"
    assert done.stderr.count(b"\n") == 1 and b"died" in done.stderr


@pytest.mark.parametrize("data", [b"", b"RIFF....WAVE", b"hello\n", HELLO[:3]])
def test_what_are_no_frames_is_one_line(model: Path, data: bytes) -> None:
    done = run("-m", model, data=data)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)


def test_errors_from_before_are_printed_under_v_only(model: Path) -> None:
    data = encode(hello()) + encode(Outgoing("vx-encode").error(BadInputError("it broke")))
    assert (run("-m", model, data=data).returncode, run("-m", model, data=data).stderr) == (1, b"")
    assert b"vx-detok: vx-encode: it broke\n" in run("-m", model, "-v", data=data).stderr


def test_a_full_disk_is_one_line(model: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*DETOK, "-m", model], input=HELLO, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert done.returncode == 1
    assert done.stderr == b"vx-detok: cannot write to stdout: No space left on device\n"


def test_a_closed_pipe_is_quiet(model: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*DETOK, "-m", model], input=HELLO, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (-13, b"")


def test_text_may_go_to_a_terminal(model: Path) -> None:
    parent, child = pty.openpty()
    with subprocess.Popen(
        [*DETOK, "-m", model], stdin=subprocess.PIPE, stdout=child, stderr=child
    ) as process:
        os.close(child)
        process.communicate(HELLO, timeout=60)
        assert os.read(parent, 1000) == b"Hello the world\r\n"
    os.close(parent)


def test_text_comes_before_the_input_ends(model: Path) -> None:
    frames = [encode(frame) for frame in pipe({0: cut(spoken("Hello the"), [2])})]
    with subprocess.Popen(
        [*DETOK, "-m", model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"".join(frames[:3]))
        assert process.stdout.read(5) == b"Hello"
        process.stdin.write(b"".join(frames[3:]))
        assert process.communicate(timeout=60)[0] == b" the\n"
    assert process.returncode == 0


LIGHT = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print(sorted({"numpy", "torch", "tiktoken", "gguf"} & set(sys.modules)), end.code, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "options", [["--help"], ["--version"], ["-m", "MODEL"], ["-m", "MODEL", "--format", "jsonl"]]
)
def test_nothing_heavy_is_imported(model: Path, options: list[str]) -> None:
    command = [sys.executable, "-c", LIGHT, DETOK[1], *(str(model) if o == "MODEL" else o for o in options)]
    data = b"".join(map(encode, [*pipe({0: cut(spoken("Hello"), logprobs=True)})]))
    done = subprocess.run(command, input=data, capture_output=True, timeout=60, check=False)
    assert done.stderr == b"[] 0\n"
    assert done.stdout


def test_an_end_without_streams_prints_nothing(model: Path) -> None:
    done = run("-m", model, data=encode(hello()) + encode(Frame("end")))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_an_interrupt_of_the_whole_pipe_ends_by_the_signal(model: Path) -> None:
    """Ctrl-C that also ends the command before this one, in the middle of a stream, is no error."""
    frames = [encode(frame) for frame in pipe({0: cut(spoken("Hello the"), [2])})]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*DETOK, "-m", model], bufsize=0, **streams) as process:  # type: ignore[call-overload]
        process.stdin.write(b"".join(frames[:3]))
        assert process.stdout.read(5) == b"Hello"
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert process.communicate(timeout=60) == (b"\n", b"")
    assert process.returncode == -signal.SIGINT
