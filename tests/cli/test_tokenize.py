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
from id_streams import spell, tekken_json
from processes import command, environment, frames, shell

from voxtral_pipes.formats.frame import Frame

ROOT = Path(__file__).resolve().parents[2]
TOKENIZE = [sys.executable, str(ROOT / "bin" / "vx-tokenize")]
WAIT_S = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("model")
    (home / "tekken.json").write_text(json.dumps(tekken_json()))
    return home


def run(*options: str | Path, data: bytes = b"hi\n", **more: str) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [*TOKENIZE, *map(str, options)],
        input=data, capture_output=True, timeout=WAIT_S, env=environment(None, **more), check=False,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr
    return done


def decimal(text: str) -> bytes:
    return " ".join(map(str, spell(text))).encode() + b"\n"


def test_lines_become_streams(model: Path) -> None:
    done = run("-m", model, data=b"hi\n\nthere\r\nyou")
    assert (done.returncode, done.stderr) == (0, b"")
    hello, *sent = frames(done.stdout)
    assert hello.kind == "hello" and not hello.meta
    assert {key: hello.fields[key] for key in ("chain", "out", "tb")} == {
        "chain": ["vx-tokenize"], "out": {"i": {"d": "u32", "h": [-1]}}, "tb": 24000,
    }  # fmt: skip
    expected = []
    for stream, (line, text) in enumerate([(1, "hi"), (3, "there"), (4, "you")]):
        expected.append(Frame("open", stream, meta={"source": "stdin", "line": line, "part": 0}))
        expected += [Frame("data", stream, 0, ids=spell(text)), Frame("end", stream, 1)]
    assert sent == [*expected, Frame("end")]


def test_where_the_tokenizer_is_found(model: Path, tmp_path: Path, without_nano: str) -> None:
    for where in (("-m", model), ("-m", model / "tekken.json"), ("--tokenizer", model / "tekken.json")):
        assert run("--ids", *where).stdout == decimal("hi")
    assert run("--ids", VX_TTS_MODEL=str(model)).stdout == decimal("hi")
    variables = {"VX_ASR_MODEL": str(model), "XDG_CACHE_HOME": str(tmp_path), "PATH": without_nano}
    done = command("vx-tokenize", "--ids", data=b"hi\n", **variables)
    assert done.returncode == 1 and b"VX_TTS_MODEL" in done.stderr


def test_options_about_text(model: Path) -> None:
    data = b"one two. three\nfour.\n"
    assert run("-m", model, "--ids", data=data).stdout == decimal("one two. three") + decimal("four.")
    assert run("-m", model, "--ids", "--whole", data=data).stdout == decimal("one two. three\nfour.")
    cut = decimal("one two.") + decimal("three\nfour.")
    assert run("-m", model, "--ids", "--whole", "--max-chars", "12", data=data).stdout == cut
    assert run("-m", model, "--ids", "--normalize", data=b"**$2**\n").stdout == decimal("two dollars.")
    long = b"word " * 150 + b"\n"
    assert run("-m", model, "--ids", data=long).stdout.count(b"\n") == 2
    assert run("-m", model, "--ids", "--max-chars", "0", data=long).stdout == decimal("word " * 150)


def test_special_strings_and_control_characters_are_text(model: Path) -> None:
    data = b"<s>[AUDIO]\x00\x1b[0m\x7f"
    assert run("-m", model, "--ids", data=data + b"\n").stdout == decimal(data.decode())


def test_output_is_the_same_whatever_the_locale(model: Path) -> None:
    done = run("-m", model, "--ids", data="é日\n".encode(), LC_ALL="C", PYTHONUTF8="0")
    assert done.stdout == decimal("é日")


def test_empty_lines_are_told_under_v(model: Path) -> None:
    done = run("-m", model, "--ids", "-v", data=b"a\n  \nb\n")
    assert done.stdout == decimal("a") + decimal("b")
    assert b"vx-tokenize: line 2: empty, skipped\n" in done.stderr
    done = run("-m", model, data=b"\n\n")
    assert done.returncode == 0 and [frame.kind for frame in frames(done.stdout)] == ["hello", "end"]
    assert done.stderr == b"vx-tokenize: warning: every line is empty: there is no text to speak\n"


@pytest.mark.parametrize(
    ("data", "options", "before", "message"),
    [
        (b"", [], 0, b"the input is empty: there is no text to speak"),
        (b" \n", ["--whole"], 0, b"the input is blank: there is no text to speak"),
        (b"good\nb\xe9te\n", [], 3,
         b"line 2, byte 2 (0xe9): this is not UTF-8; convert the text with iconv(1)"),
        (b"good\nb\xe9te\n", ["--whole"], 0,
         b"line 2, byte 2 (0xe9): this is not UTF-8; convert the text with iconv(1)"),
        (b"good\n" + b"x" * 1_100_000, [], 3,
         b"line 2 is longer than 1000000 bytes: break it into lines, or give --whole"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_travels(
    model: Path, data: bytes, options: list[str], before: int, message: bytes
) -> None:
    done = run("-m", model, *options, data=data)
    assert (done.returncode, done.stderr) == (1, b"vx-tokenize: " + message + b"\n")
    sent = frames(done.stdout)
    kinds = ["hello", "open", "data", "end"][: before + 1]
    assert [frame.kind for frame in sent] == [*kinds, "error"]
    assert sent[-1].fields["code"] == "bad-input" and sent[-1].fields["msg"] == message.decode()
    done = run("-m", model, "--ids", *options, data=data)
    assert (done.returncode, done.stderr) == (1, b"vx-tokenize: " + message + b"\n")
    assert done.stdout == (decimal("good") if before else b"")


@pytest.mark.parametrize("options", [(), ("-m", "/nowhere"), ("--tokenizer", "/nowhere/tekken.json")])
def test_no_tokenizer_is_one_line_and_travels(
    options: tuple[str, ...], tmp_path: Path, without_nano: str
) -> None:
    done = command("vx-tokenize", *options, data=b"hi\n", XDG_CACHE_HOME=str(tmp_path), PATH=without_nano)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert done.stderr.startswith(b"vx-tokenize: ")
    hello, error = frames(done.stdout)
    assert (hello.kind, error.kind, error.fields["code"]) == ("hello", "error", "no-model")


def test_an_endless_line_ends_in_flat_memory(model: Path) -> None:
    limited = f"ulimit -v 400000; tr '\\0' x < /dev/zero | {' '.join(TOKENIZE)} -m {model}"
    done = shell(limited + " > /dev/null; exit ${PIPESTATUS[1]}")
    assert done.returncode == 1 and b"line 1 is longer than" in done.stderr


@pytest.mark.parametrize("option", ["--max-chars=-1", "--max-chars=x", "--max", "file.txt"])
def test_wrong_options_are_a_usage_error(model: Path, option: str) -> None:
    done = run("-m", model, option)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)


@pytest.mark.parametrize("options", [[], ["--ids"]])
def test_a_full_disk_is_one_line(model: Path, options: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*TOKENIZE, "-m", model, *options],
            input=b"hi\n", stdout=full, stderr=subprocess.PIPE, timeout=WAIT_S, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == b"vx-tokenize: cannot write to stdout: No space left on device\n"


@pytest.mark.parametrize("options", ["", "--ids"])
def test_a_closed_pipe_is_quiet(model: Path, options: str) -> None:
    done = shell(f"yes | vx-tokenize -m {model} {options} | head -c 1; exit ${{PIPESTATUS[1]}}")
    assert (done.returncode, done.stderr) == (141, b"")


def test_binary_to_a_terminal_is_refused_and_ids_are_not(model: Path) -> None:
    for options, status, shown in (([], 2, b""), (["--ids"], 0, decimal("hi").replace(b"\n", b"\r\n"))):
        parent, child = pty.openpty()
        done = subprocess.run(
            [*TOKENIZE, "-m", model, *options],
            input=b"hi\n", stdout=child, stderr=subprocess.PIPE, timeout=WAIT_S, check=False,
        )  # fmt: skip
        os.close(child)
        assert done.returncode == status
        if shown:
            assert os.read(parent, 1000) == shown
        os.close(parent)


def test_each_line_goes_on_when_it_has_come(model: Path) -> None:
    """And after an interrupt, which is for whoever writes the text, the last words still come out."""
    with subprocess.Popen(
        [*TOKENIZE, "-m", model, "--ids"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        for text in ("one", "two"):
            process.stdin.write(text.encode() + b"\nlef")
            assert process.stdout.readline() == decimal(text if text == "one" else "leftwo")
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.stdin.write(b"t")
        assert process.communicate(timeout=WAIT_S) == (decimal("left"), b"")
    assert process.returncode == 0


LIGHT = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print(sorted({"numpy", "torch", "gguf", "requests"} & set(sys.modules)), end.code, file=sys.stderr)
"""


@pytest.mark.parametrize("options", [[], ["--ids", "--whole", "--normalize"]])
def test_nothing_heavy_is_imported(model: Path, options: list[str]) -> None:
    command = [sys.executable, "-c", LIGHT, TOKENIZE[1], "-m", str(model), *options]
    done = subprocess.run(command, input=b"hi\n", capture_output=True, timeout=WAIT_S, check=False)
    assert done.stderr == b"[] 0\n"
    assert done.stdout


def test_ids_become_text_again(model: Path) -> None:
    done = shell(f"vx-tokenize -m {model} | vx-detok -m {model}", data="Hello the wörld\nand 日本\n".encode())
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == "Hello the wörld\nand 日本\n"


def test_an_error_ends_the_commands_behind(model: Path) -> None:
    done = shell(f"vx-tokenize -m {model} | vx-detok -m {model}", data=b"good\n\xff\n")
    assert (done.returncode, done.stdout) == (1, b"good\n")
    assert done.stderr.startswith(b"vx-tokenize: line 2, byte 1") and done.stderr.count(b"\n") == 1
