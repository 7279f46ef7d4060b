"""The speech pipe as a user types it: recordings, recorders, several streams, and every way it can end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import wave
from pathlib import Path

import numpy as np
import pytest
import soxr
from asr_models import ids_of, joined
from preloaded import run_preloaded, shell_preloaded
from processes import CLIPS, WAIT_S, environment, frames, shell

CLIP = CLIPS / "tt-weasels.wav"
PIPE = "vx-encode | vx-decode | vx-detok"


def samples_of(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


@pytest.fixture(scope="module")
def teed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Transcribe the clip; return a folder of what flowed between the commands and of what came out."""
    folder = tmp_path_factory.mktemp("teed")
    line = (
        f"vx-mel {CLIP} | tee mel.vx | vx-encode -m {tiny_model} | tee emb.vx | vx-decode -m {tiny_model} "
        f"| tee ids.vx | vx-detok -m {tiny_model} --format srt > out.srt"
    )
    done = shell(line, cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    return folder


@pytest.fixture(scope="module")
def text(tiny_model: Path, teed: Path) -> bytes:
    """What the pipe says of the clip; other tests compare with it."""
    done = shell_preloaded("vx-detok < ids.vx", tiny_model, cwd=teed)
    assert done.returncode == 0 and done.stderr == b""
    assert len(done.stdout.split()) > 2, "the random model says nothing, and the tests would prove nothing"
    return done.stdout


def test_a_recording_through_four_commands_and_tees(tiny_model: Path, teed: Path, text: bytes) -> None:
    srt = (teed / "out.srt").read_bytes()
    assert srt.startswith(b"1\n00:00:0") and b" --> " in srt
    mel, embeds, ids = (frames((teed / f"{name}.vx").read_bytes()) for name in ("mel", "emb", "ids"))
    n = -(-len(samples_of(CLIP)) // 1280)
    assert joined(mel, "mel").shape == (8 * (32 + n + 17), 128)
    assert joined(embeds, "embeds").shape[0] == 32 + n + 17
    assert joined(embeds, "level").shape[0] == 32 + n + 17
    assert 0 < len(ids_of(ids)) <= n + 11
    assert ids[0].fields["chain"] == ["vx-mel", "vx-encode", "vx-decode"]
    assert ids[0].meta["model"] == embeds[0].meta["model"]
    # Every saved stage can be replayed.
    for name, rest in (("mel", PIPE), ("emb", "vx-decode | vx-detok"), ("ids", "vx-detok")):
        assert shell_preloaded(f"cat {name}.vx | {rest}", tiny_model, cwd=teed).stdout == text


def test_the_same_speech_in_other_encodings(tiny_model: Path, text: bytes, tmp_path: Path) -> None:
    """Exact ones say exactly the same; lossy and resampled ones run to the end of the same length."""
    samples = samples_of(CLIP)
    raw = {
        "s16le:16000:1": samples.astype("<i2"),
        "s32le:16000:1": samples.astype("<i4") << 16,
        "f32le:16000:1": (samples / 32768).astype("<f4"),
        "f64le:16000:1": (samples / 32768).astype("<f8"),
        "s16le:16000:2": np.repeat(samples, 2).astype("<i2"),
    }
    first = None
    for form, data in raw.items():
        done = shell(f"vx-mel --raw {form}", data=data.tobytes())
        first = first or done.stdout
        assert (done.returncode, done.stdout) == (0, first), form
    spoken = shell_preloaded(PIPE, tiny_model, data=first)
    assert (spoken.returncode, spoken.stdout) == (0, text)
    names = []
    for rate in (8000, 44100, 48000):
        names.append(tmp_path / f"{rate}.wav")
        with wave.open(str(names[-1]), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(soxr.resample(samples.astype(np.float32), 16000, rate).astype("<i2").tobytes())
    done = shell_preloaded("vx-mel " + " ".join(map(str, names)) + " | vx-encode | vx-decode", tiny_model)
    assert done.returncode == 0
    for stream in range(3):
        assert 12 < len(ids_of(frames(done.stdout), stream)) <= -(-len(samples) // 1280) + 12


def test_several_files_are_several_streams(tiny_model: Path, text: bytes) -> None:
    """What each says alone, in their order; and one that cannot be read does not stop the others."""
    other = CLIPS / "vm-advopts.wav"
    alone = shell_preloaded(f"vx-mel {other} | {PIPE}", tiny_model).stdout
    done = shell_preloaded(f"vx-mel {CLIP} {other} /no/such.wav {CLIP} | {PIPE}", tiny_model)
    assert done.returncode == 1
    assert done.stdout == text + alone + text
    assert done.stderr.count(b"\n") == 1 and b"vx-mel: /no/such.wav" in done.stderr


def test_two_pipes_interleaved_give_what_they_give_alone(tiny_model: Path, tmp_path: Path) -> None:
    """Two frame streams are merged frame by frame, as a multiplexer would."""
    from dataclasses import replace

    from voxtral_pipes.formats.frame import encode

    names = [CLIP, CLIPS / "vm-advopts.wav"]
    mels = [frames(shell(f"vx-mel {name}").stdout) for name in names]
    after = frames(shell_preloaded("vx-mel {} {} | vx-encode | vx-decode".format(*names), tiny_model).stdout)
    bodies = [[replace(f, stream=s) for f in mel if f.stream is not None] for s, mel in enumerate(mels)]
    mixed = [queue[i] for i in range(max(map(len, bodies))) for queue in bodies if i < len(queue)]
    data = b"".join(map(encode, [mels[0][0], *mixed, mels[0][-1]]))
    both = frames(shell_preloaded("vx-encode | vx-decode", tiny_model, data=data).stdout)
    for s in range(2):
        assert ids_of(both, s) == ids_of(after, s) != []


RECORDER = """#!/usr/bin/env python3
import signal, struct, sys, time
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
data = sys.stdin.buffer.read() if sys.argv[1:] == ["-"] else open(sys.argv[1], "rb").read()
out = sys.stdout.buffer
out.write(b"RIFF" + struct.pack("<I", 0x80000024) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
          + b"data" + struct.pack("<I", 0x80000000))
for i in range(0, len(data), 160):
    out.write(data[i:i + 160]); out.flush(); time.sleep(0.002)
print("said", file=sys.stderr, flush=True)
while True:
    out.write(bytes([128]) * 160); out.flush(); time.sleep(0.02)
"""


def recorder(folder: Path) -> str:
    """Write an `arecord` as it is without options: an endless WAV of 8-bit samples at 8 kHz, its size a lie."""
    program = folder / "arecord"
    program.write_text(RECORDER)
    program.chmod(0o755)
    speech = soxr.resample(samples_of(CLIP).astype(np.float32) / 32768, 16000, 8000)
    (folder / "speech").write_bytes((speech * 127 + 128).clip(0, 255).astype(np.uint8).tobytes())
    return f"{program} {folder / 'speech'}"


def test_a_recorder_is_interrupted_and_the_tail_comes_out(tiny_model: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches the whole pipe: the recorder dies of it, the filters finish what they have heard."""
    line = f"{recorder(tmp_path)} | vx-mel | vx-encode | vx-decode | vx-detok --format jsonl"
    with subprocess.Popen(
        ["bash", "-c", f"trap : INT; {line}; exit ${{PIPESTATUS[4]}}"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment(tiny_model), start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout and process.stderr
        first = process.stdout.readline()  # text while one still speaks
        assert json.loads(first)
        os.killpg(process.pid, signal.SIGINT)
        rest, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, errors
    lines = [json.loads(line) for line in rest.splitlines()]
    assert len(lines) > 11  # the right padding at least was still to come
    assert b"Traceback" not in errors and b"vx-encode" not in errors


def test_text_appears_while_one_speaks(tiny_model: Path, tmp_path: Path) -> None:
    """The endless recording never ends; its words come all the same."""
    line = f"{recorder(tmp_path)} | vx-mel | {PIPE} --format jsonl"
    with subprocess.Popen(
        ["bash", "-c", line], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=environment(tiny_model), start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout
        try:
            got = [json.loads(process.stdout.readline()) for _ in range(30)]
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert [line["stream"] for line in got] == [0] * 30


@pytest.mark.parametrize("killed", ["vx-mel", "vx-encode", "vx-decode"])
def test_a_stage_that_is_killed_fails_the_pipe_behind_it(
    killed: str, tiny_model: Path, tmp_path: Path
) -> None:
    names = ["vx-mel", "vx-encode", "vx-decode", "vx-detok"]
    line = f"{recorder(tmp_path)} | " + " | ".join(f"(echo $BASHPID > {n}.pid; exec {n})" for n in names)
    with subprocess.Popen(
        ["bash", "-c", f"{line}; echo ${{PIPESTATUS[*]}} > status"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path,
        env=environment(tiny_model), start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stderr
        heard = b""
        while b"said" not in heard:
            heard += process.stderr.readline()
        time.sleep(1.0)
        os.kill(int((tmp_path / f"{killed}.pid").read_text()), signal.SIGKILL)
        _, errors = process.communicate(timeout=WAIT_S)
    status = [int(code) for code in (tmp_path / "status").read_text().split()]
    at = 1 + names.index(killed)
    assert status[at] == 137
    assert status[at + 1 :] == [1] * (4 - at)  # behind it: all fail
    assert set(status[1:at]) <= {141}  # before it: a closed pipe, quietly
    lines = (heard + errors).decode().splitlines()
    said = [line for line in lines if line.startswith("vx-") and "warning" not in line]
    assert len(said) == 1 and said[0].startswith(f"{names[at]}: "), lines


def test_a_reader_that_leaves_ends_everything_quietly(tiny_model: Path, tmp_path: Path) -> None:
    line = f"{recorder(tmp_path)} | vx-mel | vx-encode | vx-decode | head -c 900 > /dev/null; echo ${{PIPESTATUS[*]}}"
    done = shell(line, tiny_model, data=b"")
    assert done.stdout.split()[1:4] == [b"141"] * 3
    assert [
        line for line in done.stderr.splitlines() if not line.startswith((b"vx-mel: warning", b"said"))
    ] == []


@pytest.mark.parametrize("command", ["vx-mel", "vx-encode", "vx-decode", "vx-detok"])
def test_a_full_disk_is_an_error_of_one_line(command: str, tiny_model: Path, teed: Path) -> None:
    source = {"vx-mel": CLIP, "vx-encode": "mel.vx", "vx-decode": "emb.vx", "vx-detok": "ids.vx"}[command]
    done = shell_preloaded(f"{command} < {source} > /dev/full", tiny_model, cwd=teed)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert done.stderr.startswith(f"{command}: cannot write to stdout".encode())


@pytest.mark.parametrize(
    ("line", "behind", "said"),
    [
        ("vx-mel /no/such.wav", PIPE, "vx-mel: /no/such.wav: "),
        (": | vx-mel", "cat", "vx-mel: no audio"),
        ("echo hello, world, this is text | vx-mel", "cat", "vx-mel: "),
        (f"vx-mel {CLIP} | vx-encode -m /no/model", "vx-decode | vx-detok", "vx-encode: "),
        (f"vx-mel {CLIP} | vx-decode", "vx-detok", "vx-decode: vx-decode reads the tensor 'embeds'"),
        (f"cat {CLIP} | vx-encode", "cat", "vx-encode: the input is not a frame stream: it is a WAV file"),
    ],
)
def test_an_error_is_one_line_where_it_arises_and_travels(
    line: str, behind: str, said: str, tiny_model: Path, tmp_path: Path
) -> None:
    done = shell_preloaded(
        f"{line} | {behind} > out; status=(${{PIPESTATUS[*]}}); echo ${{status[*]}}", tiny_model, cwd=tmp_path
    )
    expected = [b"0" if part == "cat" else b"1" for part in behind.split(" | ")]
    assert done.stdout.split()[-1 - len(expected) :] == [b"1", *expected]
    assert done.stderr.count(b"\n") == 1 and done.stderr.decode().startswith(said), done.stderr


def test_an_error_from_before_is_shown_under_v(tiny_model: Path) -> None:
    done = shell_preloaded("vx-mel /no/such.wav | vx-encode -v", tiny_model)
    assert done.returncode == 1
    assert b"vx-encode: vx-mel: /no/such.wav" in done.stderr


def test_no_model_says_how_to_name_one(tmp_path: Path, without_nano: str) -> None:
    done = shell(f"vx-mel {CLIP} | vx-encode", XDG_CACHE_HOME=str(tmp_path), PATH=without_nano)
    assert done.returncode == 1
    assert b"-m PATH or $VX_ASR_MODEL" in done.stderr and done.stderr.count(b"\n") == 1


def test_delay_and_padding_travel_in_the_open_frame(tiny_model: Path) -> None:
    done = shell_preloaded(f"vx-mel --delay-ms 960 --left-pad 20 {CLIP} | vx-encode | vx-decode", tiny_model)
    got = frames(done.stdout)
    opened = next(f for f in got if f.kind == "open")
    assert (opened.meta["delay_tokens"], opened.meta["prompt_tokens"]) == (12, 33)
    first = next(f for f in got if f.kind == "data")
    assert first.tick == 1280 * 12


def test_a_gguf_and_its_shards_and_the_hf_layout_say_the_same(tmp_path: Path, teed: Path) -> None:
    """One seed, four sets of files, one that of `teed`: equal embeddings within rounding, and one fingerprint."""
    from voxtral_pipes.models.random_model import cut_raw, make_asr_model, tiny_config

    said = frames((teed / "emb.vx").read_bytes())
    results = {"mistral": (said[0].meta["model"], joined(said, "embeds"))}
    for name, form in (("hf", "hf"), ("gguf", "gguf-q4"), ("shards", "gguf-q4")):
        folder = make_asr_model(tmp_path / name, tiny_config(), form)  # type: ignore[arg-type]
        if name == "shards":
            cut_raw(folder, 100_000)
        done = run_preloaded("vx-encode", ("-m", folder), environment(), (teed / "mel.vx").read_bytes())
        got = frames(done.stdout)
        results[name] = got[0].meta["model"], joined(got, "embeds")
    assert len({json.dumps(model) for model, _ in results.values()}) == 1
    assert np.array_equal(results["gguf"][1], results["shards"][1])
    np.testing.assert_allclose(results["hf"][1], results["mistral"][1], atol=1e-5)
    assert not np.allclose(results["gguf"][1], results["mistral"][1], atol=1e-3)  # four bits do show


def test_two_models_in_one_pipe_are_refused(teed: Path, tmp_path: Path) -> None:
    from voxtral_pipes.models.random_model import make_asr_model, tiny_config

    other = make_asr_model(tmp_path / "other", tiny_config(), seed=7)
    done = shell_preloaded(f"vx-decode -m {other} < emb.vx", cwd=teed)
    assert done.returncode == 1
    assert b"another model" in done.stderr and done.stderr.count(b"\n") == 1
