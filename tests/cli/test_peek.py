from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from itertools import pairwise
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
SPEECH = (ROOT / "tests" / "data" / "tt-weasels.wav").read_bytes()
STREAMED = SPEECH.replace(b"data" + SPEECH[40:44], b"data\xff\xff\xff\xff", 1)


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
        (b"RIFFxxxxWAVE", b"ends inside the WAV header"),
        (b"RIFFxxxxAVI LIST", b"| vx-peek"),
        (b"RIF", b"not a frame stream"),
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


# --- a WAV, as vx-codec writes it


def test_a_wav_line_by_line() -> None:
    done = run(data=SPEECH)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == (
        "wav    s16  16000 Hz  1 channel  2.891 s declared\n"
        "audio  t=0 (0.000 s)  u=16000  peak -13.6 dBFS  rms -25.3 dBFS\n"
        "audio  t=16000 (1.000 s)  u=16000  peak -11.8 dBFS  rms -22.9 dBFS\n"
        "audio  t=32000 (2.000 s)  u=14256  peak -13.1 dBFS  rms -28.0 dBFS\n"
        "end    u=46256 (2.891 s)  peak -11.8 dBFS  rms -24.8 dBFS\n"
    )


def test_a_wav_of_unknown_length_is_normal() -> None:
    done = run("--jsonl", data=STREAMED)
    assert (done.returncode, done.stderr) == (0, b"")
    header, *seconds, end = map(json.loads, done.stdout.splitlines())
    assert header == {
        "kind": "wav", "encoding": "s16", "rate_hz": 16000, "channels": 1, "declared_seconds": None,
    }  # fmt: skip
    assert [second["u"] for second in seconds] == [16000, 16000, 14256] and end["u"] == 46256


@pytest.mark.parametrize("data", [SPEECH, STREAMED, SPEECH + SPEECH, SPEECH[:30000]])
def test_pass_copies_a_wav(data: bytes) -> None:
    done = run("--pass", data=data)
    assert (done.returncode, done.stdout) == (0, data)
    assert done.stderr.startswith(b"wav    s16")


def test_a_wav_is_passed_on_at_once() -> None:
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*PEEK, "--pass"], bufsize=0, **streams) as process:  # type: ignore[call-overload]
        for start, end in pairwise((0, 4, 13, 44, 45, 46)):
            process.stdin.write(STREAMED[start:end])
            assert process.stdout.read(end - start) == STREAMED[start:end]
        process.stdin.close()
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (SPEECH[:30000], b"ends early"),
        (SPEECH + SPEECH, b"another WAV follows"),
        (STREAMED + b"x", b"no whole sample"),
    ],
)
def test_a_wav_that_ends_oddly_is_a_warning(data: bytes, said: bytes) -> None:
    done = run(data=data)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith(b"end")
    assert done.stderr.count(b"\n") == 1 and b"warning" in done.stderr and said in done.stderr
    assert b"vx-mel" not in done.stderr and b"argument" not in done.stderr


def test_files_of_a_wav(tmp_path: Path) -> None:
    done = run("--npz", tmp_path / "x.npz", "--png", tmp_path / "x.png", data=STREAMED[:30001])
    assert done.returncode == 0
    with np.load(tmp_path / "x.npz") as arrays:
        expected = np.frombuffer(STREAMED[44:30000], "<i2") / np.float32(32768)
        np.testing.assert_array_equal(arrays["samples"], expected[:, None])
        assert arrays["rate_hz"] == 16000
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_a_wav_without_samples(tmp_path: Path) -> None:
    done = run("--npz", tmp_path / "x.npz", data=STREAMED[:44])
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (
        b"wav    s16  16000 Hz  1 channel  length unknown\nend    u=0 (0.000 s)  peak silent  rms silent\n"
    )
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["samples"].shape == (0, 1)
    done = run("--png", tmp_path / "x.png", data=STREAMED[:44])
    assert done.returncode == 1 and b"nothing to draw" in done.stderr and not (tmp_path / "x.png").exists()


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
    [
        (["--help"], b"", b"[]"),
        (["--version"], b"", b"[]"),
        ([], IDS, b"[]"),
        ([], MEL, b"['numpy']"),
        ([], SPEECH, b"['numpy']"),
    ],
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
