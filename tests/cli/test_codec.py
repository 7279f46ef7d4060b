"""vx-codec as a process: what it writes, and what goes wrong."""

from __future__ import annotations

import io
import os
import pty
import signal
import struct
import subprocess
import threading
import wave
from pathlib import Path

import numpy as np
import pytest
from code_streams import end_row, hello, many, one_by_one, pipe, sound, spoken, wire
from codec_runs import FRAME_BYTES, HEADER, decoded, refused, run, sizes, to_file
from preloaded import path_preloaded
from processes import WAIT_S, environment

from voxtral_pipes.errors import BadInputError
from voxtral_pipes.formats.frame import Frame, encode
from voxtral_pipes.formats.wav import WavReader
from voxtral_pipes.formats.wav_writer import UNKNOWN
from voxtral_pipes.stages.base import Outgoing


@pytest.fixture(scope="module")
def model(tiny_tts_model: Path) -> Path:
    return tiny_tts_model


# --- formats


def test_codes_become_a_wav_that_everyone_reads(model: Path) -> None:
    status, out, err = run(model=model, data=spoken(sound(10)))
    assert (status, err) == (0, b"")
    assert sizes(out) == (UNKNOWN, UNKNOWN) and out[HEADER:] == decoded(model)
    reader = WavReader(None, pytest.fail)
    samples = reader.push(out)[:, 0]
    reader.finish()
    assert reader.rate_hz == 24000 and len(samples) == 10 * 1920
    assert 0.01 < np.abs(samples).max() <= 1
    with wave.open(io.BytesIO(out)) as theirs:
        assert theirs.getparams()[:3] == (1, 2, 24000)
        assert theirs.readframes(10 * 1920) == out[HEADER:]


def test_floats_are_the_same_sound(model: Path) -> None:
    status, out, err = run("--format", "f32", model=model, data=spoken(sound(10)))
    assert (status, err) == (0, b"")
    assert out[12:38] == b"fmt " + struct.pack("<IHHIIHHH", 18, 3, 1, 24000, 96000, 4, 32, 0)
    assert out[38:58] == b"fact" + struct.pack("<II", 4, UNKNOWN) + b"data" + struct.pack("<I", UNKNOWN)
    samples = np.frombuffer(out[58:], "<f4")
    clipped = np.rint(np.clip(samples, -1, 1) * np.float32(32767)).astype("<i2")
    assert clipped.tobytes() == decoded(model)


def test_sizes_are_set_in_a_file_and_only_what_is_ours_is_touched(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    assert to_file(path, "--format", "f32", model=model, data=spoken(sound(3))) == (0, b"")
    data = path.read_bytes()
    assert len(data) == 58 + 3 * 7680
    assert [struct.unpack_from("<I", data, at)[0] for at in (4, 46, 54)] == [
        50 + 3 * 7680,
        3 * 1920,
        3 * 7680,
    ]
    path.write_bytes(b"before")
    descriptor = os.open(path, os.O_WRONLY)
    os.lseek(descriptor, 6, os.SEEK_SET)
    status, _, err = run(model=model, data=spoken(sound(10)), stdout=descriptor)
    os.write(descriptor, b"behind")
    os.close(descriptor)
    assert (status, err) == (0, b"")
    data = path.read_bytes()
    assert data.startswith(b"beforeRIFF") and data.endswith(b"behind")
    assert sizes(data[6:]) == (36 + 10 * FRAME_BYTES, 10 * FRAME_BYTES)
    assert data[6 + HEADER : -6] == decoded(model)


def test_a_file_that_is_appended_to_keeps_its_header(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    path.write_bytes(b"RIFF1234")
    assert to_file(path, model=model, data=spoken(sound(10)), flags=os.O_APPEND) == (0, b"")
    data = path.read_bytes()
    assert data.startswith(b"RIFF1234RIFF") and sizes(data[8:]) == (UNKNOWN, UNKNOWN)


@pytest.mark.parametrize("data", [wire([hello(), Frame("end")]), spoken(sound(0))])
def test_no_sound_is_a_valid_wav(data: bytes, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    assert to_file(path, model=model, data=data) == (0, b"")
    with wave.open(str(path)) as theirs:
        assert theirs.getnframes() == 0 and theirs.getframerate() == 24000


# --- several streams


def test_streams_follow_one_another_with_a_gap(model: Path) -> None:
    streams = [sound(10), sound(0), sound(10, 2), end_row(), sound(10, 3)]
    for interleaved in (True, False):
        status, out, err = run(
            "--format", "raw", "--gap-ms", "1250", model=model, data=many(streams, interleaved=interleaved)
        )
        assert (status, err) == (0, b"")
        silence = bytes(30000 * 2)
        assert out == decoded(model) + silence + decoded(model, 2) + silence + decoded(model, 3)


GROUPING = """
import sys
from voxtral_pipes.models.codec import Codec
Codec.together = {together}
from voxtral_pipes.cli.codec import main
sys.exit(main())
"""
"""The command with so many rows a step at most, as on CUDA."""


@pytest.mark.parametrize("together", [1, 4])
@pytest.mark.parametrize("ended", [True, False], ids=["by the model", "by --max-frames"])
def test_the_last_sound_of_an_utterance_leaves_while_the_pipe_stays_open(
    together: int, ended: bool, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "vx-codec").write_text(GROUPING.format(together=together))
    variables = environment(VX_TTS_MODEL=str(model), VX_DEVICE="cpu", PATH=path_preloaded(tmp_path))
    process = subprocess.Popen(
        ["vx-codec", "--format", "raw"],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=variables,
    )
    impatient = threading.Timer(WAIT_S, process.kill)
    impatient.start()
    outgoing = Outgoing("vx-flow")
    with process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(encode(hello()))
        for stream, n in enumerate([7, 1, 11, 0, 6]):
            rows = np.concatenate([sound(n), end_row()]) if ended else sound(n)
            sent = [outgoing.open(stream, {}), *(outgoing.data(stream, out) for out in one_by_one(rows))]
            process.stdin.write(wire([*sent, outgoing.end(stream)]))
            heard = b""
            while len(heard) < n * FRAME_BYTES:
                heard += (piece := process.stdout.read(1 << 16))
                assert piece, f"no more came behind {len(heard) // FRAME_BYTES} of {n} rows"
            assert len(heard) == n * FRAME_BYTES
        process.stdin.write(encode(Frame("end")))
        process.stdin.close()
        assert process.stdout.read() == b""
    impatient.cancel()
    assert process.returncode == 0


def test_a_file_for_each_stream_and_no_descriptor_for_each(model: Path, tmp_path: Path) -> None:
    codes = {stream: sound(10 if stream in (3, 70000) else 1, stream % 97) for stream in [*range(150), 70000]}
    data = wire(pipe({stream: one_by_one(rows) for stream, rows in codes.items()}))
    home = tmp_path / "new" / "spoken"
    limited = ["bash", "-c", 'ulimit -n 40; exec "$@"', "bash", "vx-codec", "-v", "--out-dir", str(home)]
    done = subprocess.run(
        limited, input=data, capture_output=True, timeout=WAIT_S, check=False,
        env=environment(VX_TTS_MODEL=str(model), VX_DEVICE="cpu"),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"")
    assert f"{home}/70000.wav: 0.80 s" in done.stderr.decode()
    names = sorted(path.name for path in home.iterdir())
    assert names == sorted(f"{stream:05d}.wav" for stream in codes)
    for stream in (3, 70000):
        made = (home / f"{stream:05d}.wav").read_bytes()
        assert sizes(made) == (36 + 10 * FRAME_BYTES, 10 * FRAME_BYTES)
        assert made[HEADER:] == decoded(model, stream % 97)


def test_a_stream_that_fails_leaves_no_file_and_the_others_go_on(model: Path, tmp_path: Path) -> None:
    bad = sound(10)[:3].copy()
    bad[2, 5] = 0
    outgoing = Outgoing("vx-flow")
    good = one_by_one(sound(10, 2))
    data = wire(
        [hello(), *(outgoing.open(stream, {}) for stream in range(4)), outgoing.error(BadInputError("theirs"), 2)]
        + [outgoing.data(1, output) for output in one_by_one(bad)]
        + [outgoing.data(0, output) for output in good]
        + [outgoing.end(stream) for stream in (0, 1, 3)] + [Frame("end")]
    )  # fmt: skip
    (tmp_path / "00001.raw").write_bytes(b"of an earlier run")
    status, out, err = run("--out-dir", tmp_path, "--format", "raw", model=model, data=data)
    assert (status, out) == (1, b"")
    told = err.decode().splitlines()
    assert told[0] == "vx-codec: warning: not finished and not kept: 00002.raw"
    assert told[1].startswith("vx-codec: stream 1: audio frame 2: ")
    assert told[2:] == ["vx-codec: warning: not finished and not kept: 00001.raw"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "00000.raw": decoded(model, 2), "00001.raw": b"of an earlier run", "00003.raw": b"",
    }  # fmt: skip
    # The same on stdout: what came before an error is heard.
    status, out, err = run("--format", "raw", model=model, data=data)
    assert status == 1 and err.decode().splitlines() == [told[1]]
    assert out == decoded(model, 2) + decoded(model)[: 2 * FRAME_BYTES]


# --- what goes wrong


def test_truncated_input_keeps_what_came(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    data = wire(pipe({0: one_by_one(sound(10))}, ended=False))
    status, err = to_file(path, model=model, data=data)
    assert (status, err.count(b"\n")) == (1, 1) and b"died" in err
    assert path.read_bytes()[HEADER:] == decoded(model)
    assert sizes(path.read_bytes()) == (36 + 10 * FRAME_BYTES, 10 * FRAME_BYTES)
    status, out, err = run("--out-dir", tmp_path / "files", model=model, data=data)
    assert (status, out, err.count(b"\n")) == (1, b"", 2) and b"not kept: 00000.wav" in err
    assert list((tmp_path / "files").iterdir()) == []


def test_errors_from_before_are_printed_under_v_only(model: Path) -> None:
    broken = encode(Outgoing("vx-flow").error(BadInputError("it broke")))
    begun = wire(list(pipe({0: one_by_one(sound(10))}, ended=False)))
    assert run(model=model, data=encode(hello()) + broken) == (1, b"", b"")
    status, out, err = run("-v", "--format", "raw", model=model, data=begun + broken)
    assert (status, out) == (1, decoded(model))
    assert b"vx-codec: vx-flow: it broke\n" in err


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "empty"),
        (b"RIFF....WAVE", "WAV file"),
        (spoken(sound(1)).replace(b"codes", b"hidde"), "reads the tensor 'codes'"),
        (spoken(sound(1))[:30], "died"),
        (wire([hello({"family": "voxtral-tts", "fp": "0" * 16}), Frame("end")]), "made with another model"),
    ],
)
def test_what_is_not_for_it_is_one_line_and_no_header(data: bytes, told: str, model: Path) -> None:
    status, out, err = refused(model=model, data=data)
    assert (status, out, err.count(b"\n")) == (1, b"", 1)
    assert told in err.decode()


def test_the_model_must_be_there_and_speak(model: Path, tiny_model: Path, tmp_path: Path) -> None:
    for where, told in ((tmp_path / "none", "there is no model"), (tiny_model, "recognition model")):
        status, out, err = refused("-m", where, model=model, data=spoken(sound(1)))
        assert (status, out, err.count(b"\n")) == (1, b"", 1) and told in err.decode()


def test_wrong_options_and_places(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for options, status in (
        (("--gap-ms", "5", "--out-dir", tmp_path), 2),
        (("--gap-ms", "-5"), 2),
        (("--gap-ms", "3600001"), 2),
        (("--out-dir", ""), 2),
        (("--format", "mp3"), 2),
        (("--out-dir", tmp_path / "file"), 1),
        (("--out-dir", tmp_path / "file" / "below"), 1),
    ):
        done = refused(*options, model=model)
        assert (done[0], done[1], done[2].count(b"\n")) == (status, b"", 1)


def test_sound_is_not_written_to_a_terminal_but_files_are(model: Path, tmp_path: Path) -> None:
    outer, inner = pty.openpty()
    try:
        status, _, err = run(model=model, stdout=inner)
        assert (status, err.count(b"\n")) == (2, 1) and b"stdout is a terminal" in err
        assert run("--out-dir", tmp_path, model=model, data=spoken(sound(1)), stdout=inner)[0] == 0
        os.set_blocking(outer, False)
        assert run("-f", "--format", "raw", model=model, data=spoken(sound(1)), stdout=inner)[0] == 0
        assert os.read(outer, 100)
    finally:
        os.close(inner)
        os.close(outer)


def test_a_full_disk_and_a_closed_pipe(model: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        status, _, err = run(model=model, data=spoken(sound(2)), stdout=full.fileno())
    assert (status, err) == (1, b"vx-codec: cannot write to stdout: No space left on device\n")
    reading, writing = os.pipe()
    os.close(reading)
    try:
        status, _, err = run(model=model, data=spoken(sound(2)), stdout=writing)
    finally:
        os.close(writing)
    assert (status, err) == (-signal.SIGPIPE, b"")


def test_the_note_says_what_is_used(model: Path) -> None:
    status, _, err = run("-v", "--dtype", "bf16", model=model, data=spoken(sound(2)))
    told = err.decode().splitlines()
    assert status == 0 and "voxtral-tts, fingerprint" in told[0] and "bfloat16" in told[1]
    assert "about 3 frames" in told[2]
