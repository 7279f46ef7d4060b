"""vx-mel as a process: its inputs, its options, its exit status, and what it does not import."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxtral_pipes.formats.frame import Frame, FrameReader

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = [sys.executable, str(ROOT / "bin" / "vx-mel")]
CLIP = ROOT / "tests" / "data" / "tt-weasels.wav"
N_SAMPLES = 46256


def vx_mel(*arguments: str | Path, stdin: bytes | Path = b"") -> subprocess.CompletedProcess[bytes]:
    command = [*COMMAND, *map(str, arguments)]
    if isinstance(stdin, Path):
        with stdin.open("rb") as file:
            return subprocess.run(command, stdin=file, capture_output=True, timeout=60, check=False)
    return subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False)


def frames(result: subprocess.CompletedProcess[bytes], status: int = 0, lines: int = 0) -> list[Frame]:
    told = result.stderr.decode().splitlines()
    assert result.returncode == status and len(told) == lines, told
    assert all(line.startswith("vx-mel: ") for line in told)
    return list(FrameReader(io.BytesIO(result.stdout)))


def kinds(found: list[Frame]) -> list[str]:
    return [frame.kind for frame in found]


def mel(found: list[Frame], stream: int = 0) -> Any:
    chosen = [frame for frame in found if frame.kind == "data" and frame.stream == stream]
    return np.concatenate([frame.tensors["mel"].float32() for frame in chosen])


def error(found: list[Frame]) -> str:
    return str(next(frame for frame in found if frame.kind == "error").fields["msg"])


def header(rate_hz: int = 16000, channels: int = 1, bits: int = 16, size: int = 0x80000000) -> bytes:
    align = channels * bits // 8
    body = struct.pack("<HHIIHH", 1, channels, rate_hz, rate_hz * align, align, bits)
    return b"RIFF\x24\0\0\x80WAVEfmt \x10\0\0\0" + body + b"data" + struct.pack("<I", size)


@pytest.fixture(scope="module")
def whole() -> list[Frame]:
    return frames(vx_mel(CLIP))


def test_a_file(whole: list[Frame]) -> None:
    assert kinds(whole) == ["hello", "open", "data", "data", "mark", "data", "end", "end"]
    hello, opened = whole[0], whole[1]
    assert hello.fields["out"] == {"mel": {"d": "f32", "h": [-1, 128]}, "level": {"d": "f32", "h": [-1]}}
    assert hello.fields["tb"] == 16000 and hello.fields["chain"] == ["vx-mel"] and "model" not in hello.meta
    assert opened.meta == {
        "delay_tokens": 6, "left_pad_tokens": 32, "prompt_tokens": 39, "live": False, "source": str(CLIP),
    }  # fmt: skip
    assert whole[4].meta == {"audio_end": N_SAMPLES}
    assert mel(whole).shape == (8 * (32 + 37 + 17), 128)
    assert whole[-1].stream is None and whole[-2].stream == 0 and whole[-2].seq == 3


def test_stdin_as_a_file_is_not_live_and_as_a_pipe_is(whole: list[Frame]) -> None:
    file, pipe = frames(vx_mel(stdin=CLIP)), frames(vx_mel("-", stdin=CLIP.read_bytes()))
    assert (file[1].meta["live"], pipe[1].meta["live"]) == (False, True)
    assert file[1].meta["source"] == pipe[1].meta["source"] == "stdin"
    assert kinds(pipe).count("data") == 86
    np.testing.assert_array_equal(mel(file), mel(whole))
    np.testing.assert_allclose(mel(pipe), mel(whole), atol=1e-6)


def test_bare_samples(whole: list[Frame]) -> None:
    found = frames(vx_mel("--raw", "s16le:16000:1", stdin=CLIP.read_bytes()[44:]))
    np.testing.assert_allclose(mel(found), mel(whole), atol=1e-6)


def test_several_files_are_several_streams(whole: list[Frame]) -> None:
    other = CLIP.with_name("vm-advopts.wav")
    found = frames(vx_mel(CLIP, "-", other, stdin=CLIP.read_bytes()))
    opens = [frame.stream for frame in found if frame.kind == "open"]
    ends = [frame.stream for frame in found if frame.kind == "end"]
    assert opens == [0, 1, 2] and ends == [0, 1, 2, None]
    np.testing.assert_array_equal(mel(found, 0), mel(whole))
    np.testing.assert_allclose(mel(found, 1), mel(whole), atol=1e-6)
    assert len(mel(found, 2)) == 8 * (32 + 30 + 17)


def test_a_bad_file_does_not_stop_the_others(tmp_path: Path, whole: list[Frame]) -> None:
    bad = tmp_path / "text.wav"
    bad.write_text("this is not audio")
    found = frames(vx_mel(bad, tmp_path / "absent.wav", tmp_path, CLIP), status=1, lines=3)
    failed = [
        (frame.stream, frame.fields["code"], frame.fields["fatal"])
        for frame in found
        if frame.kind == "error"
    ]
    assert failed == [(0, "bad-input", False), (1, "bad-input", False), (2, "bad-input", False)]
    assert "text.wav: the input is not a WAV" in error(found)
    np.testing.assert_array_equal(mel(found, 3), mel(whole))
    assert found[-1].kind == "end" and found[-1].stream is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no audio"),
        (header()[:30], "inside the WAV header"),
        (b"OggS" + bytes(50), "ffmpeg"),
        (b"x", "--raw"),
    ],
)
def test_bad_input_on_stdin(content: bytes, said: str) -> None:
    found = frames(vx_mel(stdin=content), status=1, lines=1)
    assert kinds(found) == ["hello", "error"]
    assert said in error(found) and found[1].fields["fatal"] is True


def test_an_error_inside_a_stream_of_one_ends_the_pipe() -> None:
    found = frames(vx_mel("--channel", "2", stdin=header(channels=2) + bytes(4000)), status=1, lines=1)
    assert kinds(found) == ["hello", "error"] and "channel 2" in error(found)


def test_a_header_without_samples() -> None:
    assert kinds(frames(vx_mel(stdin=header()))) == ["hello", "open", "end", "end"]


def test_a_wav_shorter_than_declared_is_a_warning() -> None:
    content = header(size=64000) + bytes(32000)
    result = vx_mel(stdin=content)
    assert b"warning: the input ends early" in result.stderr
    assert len(mel(frames(result, lines=1))) == 8 * (32 + 13 + 17)
    frames(vx_mel("-q", stdin=content))


def test_plain_arecord() -> None:
    result = vx_mel(stdin=header(8000, 1, 8) + bytes([128]) * 8000)
    assert b"telephone" in result.stderr
    found = frames(result, lines=1)
    assert len(mel(found)) == 8 * (32 + 13 + 17) and (mel(found) == np.float32(-0.625)).all()


def test_padding_options() -> None:
    found = frames(vx_mel("--delay-ms", "2400", "--left-pad", "5", CLIP))
    assert found[1].meta["delay_tokens"] == 30 and found[1].meta["prompt_tokens"] == 36
    assert len(mel(found)) == 8 * (5 + 37 + 41) and found[2].tick == -5 * 1280
    found = frames(vx_mel("--no-right-pad", CLIP))
    assert "mark" not in kinds(found) and len(mel(found)) == 8 * (32 + 36)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--delay-ms", "100"], ["--delay-ms", "0"], ["--delay-ms", "1280"], ["--delay-ms", "x"],
        ["--left-pad", "-1"], ["--left-pad", "9000"], ["--raw", "mp3"],
        ["--channel", "-1"], ["-", "-"], ["--bogus"], ["--delay", "480"],
    ],
)  # fmt: skip
def test_usage_errors(arguments: list[str]) -> None:
    result = vx_mel(*arguments, stdin=header())
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1


def write_tekken(folder: Path, **changes: Any) -> Path:
    audio = {
        "sampling_rate": 16000, "frame_rate": 12.5, "transcription_delay_ms": 960,
        "streaming_n_left_pad_tokens": 8,
        "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400}, **changes,
    }  # fmt: skip
    vocab = [
        {"rank": r, "token_bytes": base64.b64encode(bytes([r])).decode(), "token_str": None}
        for r in range(256)
    ]
    config = {"pattern": ".", "default_vocab_size": 266, "default_num_special_tokens": 10}
    path = folder / "tekken.json"
    path.write_text(json.dumps({"config": config, "vocab": vocab, "audio": audio}))
    return path


def test_audio_settings_of_another_model(tmp_path: Path) -> None:
    path = write_tekken(tmp_path)
    for model in (path, tmp_path):
        found = frames(vx_mel("-m", model, CLIP))
        assert (found[1].meta["delay_tokens"], found[1].meta["left_pad_tokens"]) == (12, 8)
    assert frames(vx_mel("-m", path, "--delay-ms", "80", CLIP))[1].meta["delay_tokens"] == 1


def test_the_floor_of_another_model(tmp_path: Path) -> None:
    """`global_log_mel_max` stands in params.json, beside the tekken.json that -m names."""
    path = write_tekken(tmp_path)
    args = {"audio_encoding_args": {"global_log_mel_max": 2.5}}
    params = {"multimodal": {"whisper_model_args": {"encoder_args": args}}}
    (tmp_path / "params.json").write_text(json.dumps(params))
    for model in (path, tmp_path):
        found = mel(frames(vx_mel("-m", model, CLIP)))
        assert found.min() == np.float32((2.5 - 8 + 4) / 4)
    args["audio_encoding_args"].clear()
    (tmp_path / "params.json").write_text(json.dumps(params))
    found = frames(vx_mel("-m", tmp_path, CLIP), status=1, lines=1)
    assert "global_log_mel_max" in error(found)


def test_a_model_that_does_not_fit_is_told_to_all(tmp_path: Path) -> None:
    write_tekken(tmp_path, sampling_rate=24000)
    found = frames(vx_mel("-m", tmp_path, CLIP), status=1, lines=1)
    assert kinds(found) == ["hello", "error"] and "24000" in error(found)
    found = frames(vx_mel("-m", tmp_path / "absent", CLIP), status=1, lines=1)
    assert kinds(found) == ["hello", "error"] and "absent" in error(found)


def imported(arguments: list[str]) -> set[str]:
    code = (
        "import sys; from voxtral_pipes.cli.mel import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd="/", capture_output=True, check=True, timeout=60
    )
    assert result.stdout
    return set(result.stderr.decode().split())


def test_what_is_imported(tmp_path: Path) -> None:
    unwanted = {"torch", "tiktoken", "transformers", "triton", "voxtral_pipes.formats.tekken"}
    at_16_khz = imported([str(CLIP)])
    assert "numpy" in at_16_khz and not at_16_khz & (unwanted | {"soxr"})
    at_48_khz = tmp_path / "48.wav"
    at_48_khz.write_bytes(header(48000) + bytes(9600))
    off = imported([str(at_48_khz)])
    assert "soxr" in off and not off & unwanted
    assert not imported(["--help"]) & (unwanted | {"soxr", "numpy", "msgpack"})


class Live:
    """vx-mel on a pipe that stays open; killed if it has not answered within 30 s."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.stdin, self.stdout, self.stderr = self.process.stdin, self.process.stdout, self.process.stderr
        self.reader = FrameReader(self.stdout)
        self.timer = threading.Timer(30, self.process.kill)

    def __enter__(self) -> Live:
        self.timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()
        self.process.kill()
        for pipe in (self.stdin, self.stdout, self.stderr):
            pipe.close()
        self.process.wait()

    def send(self, content: bytes) -> None:
        self.stdin.write(content)
        self.stdin.flush()


def test_frames_come_while_the_recorder_goes_on() -> None:
    with Live() as live:
        first = live.reader.read()
        assert first is not None and first.kind == "hello"  # before any input
        content = header() + bytes(2 * 1280) + bytes(2 * 40)
        for start in range(0, len(content), 640):  # 20 ms
            live.send(content[start : start + 640])
        got = [live.reader.read() for _ in range(34)]
        assert got[-1] is not None and got[-1].tick == 0
        live.send(bytes(2 * 1280))
        nxt = live.reader.read()
        assert nxt is not None and nxt.tick == 1280


def test_the_tail_comes_out_after_ctrl_c() -> None:
    with Live("--raw", "s16le:16000:1") as live:
        live.send(bytes(2 * 2000))
        live.reader.read()
        live.process.send_signal(signal.SIGINT)
        live.send(bytes(2 * 2000))
        live.stdin.close()
        rest = list(live.reader)
        assert live.process.wait(30) == 0
        assert [frame.meta["audio_end"] for frame in rest if frame.kind == "mark"] == [4000]
        assert rest[-1].kind == "end"


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    with Live() as live:
        live.reader.read()
        live.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # it may be gone before it has read everything
            live.send(header() + bytes(200000))
        assert live.process.wait(30) == -signal.SIGPIPE
        assert live.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [*COMMAND, str(CLIP)], stdout=full, stderr=subprocess.PIPE, check=False, timeout=60
        )
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1


def test_binary_output_to_a_terminal_is_refused() -> None:
    main, terminal = os.openpty()
    try:
        result = subprocess.run(
            [*COMMAND, str(CLIP)], stdout=terminal, stderr=subprocess.PIPE, check=False, timeout=60
        )
    finally:
        os.close(main)
        os.close(terminal)
    assert result.returncode == 2 and b"terminal" in result.stderr


def test_a_name_that_is_not_utf8_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9\n.wav")
    path.write_bytes(CLIP.read_bytes())
    opened = frames(vx_mel(path))[1]
    assert opened.meta["source"].endswith("caf\ufffd\n.wav")
    path.write_bytes(b"nothing of use")
    found = frames(vx_mel(path), status=1, lines=1)
    assert kinds(found) == ["hello", "error"] and "caf?" in error(found)
    found = frames(vx_mel("-m", path.with_suffix(".json"), CLIP), status=1, lines=1)
    assert kinds(found) == ["hello", "error"]
