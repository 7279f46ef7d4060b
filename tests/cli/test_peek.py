from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from id_streams import POSITION, cut, hello, pipe, spoken

from voxtral_pipes.errors import BadInputError
from voxtral_pipes.formats.frame import Tensor, encode
from voxtral_pipes.stages.base import Outgoing, Output

ROOT = Path(__file__).resolve().parents[2]
PEEK = [sys.executable, str(ROOT / "bin" / "vx-peek")]
IDS = b"".join(map(encode, pipe({0: cut(spoken("Hello the world"), [2])})))
MEL_FRAME = Output(0, POSITION, {"mel": Tensor.of(np.arange(1024, dtype=np.float32).reshape(8, 128))})
MEL = b"".join(map(encode, pipe({0: [MEL_FRAME] * 3})))


def run(*options: str | Path, data: bytes = MEL, **environment: str) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [*PEEK, *map(str, options)],
        input=data,
        capture_output=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )
    assert b"Traceback" not in done.stderr
    return done


def test_a_line_for_each_frame() -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, b"")
    assert [line.split()[0] for line in done.stdout.decode().splitlines()] == [
        "hello", "open", "data", "data", "data", "end", "end",
    ]  # fmt: skip
    assert b"mel f32[8,128] min 0 mean 511.5 max 1023\n" in done.stdout


def test_jsonl() -> None:
    lines = [json.loads(line) for line in run("--jsonl", data=IDS).stdout.splitlines()]
    assert [line["kind"] for line in lines] == ["hello", "open", "data", "data", "end", "end"]
    assert [token for line in lines for token in line.get("ids", [])] == spoken("Hello the world")


@pytest.mark.parametrize("options", [(), ("--jsonl",)])
def test_pass_copies_every_byte_and_reports_on_stderr(options: tuple[str, ...]) -> None:
    done = run("--pass", *options)
    assert (done.returncode, done.stdout) == (0, MEL)
    assert done.stderr == run(*options).stdout


@pytest.mark.parametrize(
    "data", [MEL[:-20], MEL[:9000] + b"\0" * 3000000, b"RIFF" + b"x" * 100, b"", IDS + IDS]
)
def test_pass_copies_what_it_cannot_read_as_well(data: bytes) -> None:
    done = run("--pass", data=data)
    assert (done.returncode, done.stdout) == (1, data)


def test_frames_are_passed_on_before_the_next_one_comes() -> None:
    frames = [encode(frame) for frame in pipe({0: cut(spoken("Hello"))})]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*PEEK, "--pass"], bufsize=0, **streams) as process:  # type: ignore[call-overload]
        for frame in frames:
            process.stdin.write(frame)
            assert process.stdout.read(len(frame)) == frame
        process.stdin.close()
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", b"empty"),
        (MEL[:-20], b"ends inside frame"),
        (MEL[:-15], b"died"),
        (b"RIFFxxxxWAVE", b"vx-mel"),
        (MEL + MEL, b"follow"),
    ],
)
def test_what_is_wrong_is_one_line(data: bytes, said: bytes) -> None:
    done = run(data=data)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1 and done.stderr.startswith(b"vx-peek: ") and said in done.stderr


def test_an_error_frame_is_shown_and_fails() -> None:
    done = run(data=encode(hello()) + encode(Outgoing("vx-mel").error(BadInputError("it\x1bbroke"))))
    assert (done.returncode, done.stderr) == (1, b"")
    assert b'msg="it\\u001bbroke"' in done.stdout


def test_npz(tmp_path: Path) -> None:
    assert run("--npz", tmp_path / "x.npz").returncode == 0
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert arrays["s0.mel"].shape == (24, 128)
        assert arrays["s0.frames.t"].tolist() == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_files_of_a_truncated_stream_hold_what_came(tmp_path: Path) -> None:
    done = run("--npz", tmp_path / "x.npz", "--png", tmp_path / "x.png", data=MEL[:-20])
    assert done.returncode == 1
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["s0.mel"].shape == (24, 128)
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_a_picture_of_nothing_leaves_no_file(tmp_path: Path) -> None:
    done = run("--png", tmp_path / "x.png", data=IDS)
    assert done.returncode == 1 and b"nothing to draw" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    done = run("--npz", tmp_path / "no" / "x.npz")
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1
    assert run("--npz", "/dev/full").returncode == 1
    assert Path("/dev/full").is_char_device()


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('gone')")
    done = run("--png", tmp_path / "x.png", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == (
        b"vx-peek: --png needs matplotlib, which is not installed: pip install 'voxtral-pipes[plot]'\n"
    )
    assert run(PYTHONPATH=str(tmp_path)).returncode == 0


def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(PEEK, input=MEL, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)


def test_a_closed_pipe_is_quiet_and_the_file_is_kept(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [*PEEK, "--npz", str(tmp_path / "x.npz")]
    done = subprocess.run(command, input=MEL, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (-13, b"")
    assert (tmp_path / "x.npz").exists()


def test_pass_refuses_a_terminal() -> None:
    parent, child = pty.openpty()
    done = subprocess.run(
        [*PEEK, "--pass"], input=MEL, stdout=child, stderr=subprocess.PIPE, timeout=60, check=False
    )
    assert done.returncode == 2
    assert (
        subprocess.run(
            PEEK, input=IDS, stdout=child, stderr=subprocess.PIPE, timeout=60, check=False
        ).returncode
        == 0
    )
    os.close(child)
    os.close(parent)


LIGHT = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print(sorted({"numpy", "torch", "matplotlib"} & set(sys.modules)), end.code, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("options", "data", "heavy"),
    [(["--help"], b"", b"[]"), (["--version"], b"", b"[]"), ([], IDS, b"[]"), ([], MEL, b"['numpy']")],
)
def test_nothing_heavier_than_needed_is_imported(options: list[str], data: bytes, heavy: bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, PEEK[1], *options],
        input=data,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == heavy + b" 0\n"
