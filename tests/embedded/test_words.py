"""The embedded recogniser through the real pipe: words stay, however it is cut, packed, computed or delayed."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from preloaded import shell_preloaded
from processes import WAIT_S, environment, shell
from spoken import DIGITS, RATE_HZ, said, wav

from voxtral_pipes.formats.embedded import HOME

TEXT = "three one four one five nine"
OTHER = "two seven zero eight six"
PIPE = "vx-mel {mel} | vx-encode -q {heavy} | vx-decode -q {heavy} | vx-detok -q {light}"


def heard(sound: bytes, mel: str = "", heavy: str = "", light: str = "", kernels: str = "auto") -> list[str]:
    """Transcribe a WAV file; return the words."""
    done = shell_preloaded(PIPE.format(mel=mel, heavy=heavy, light=light), data=sound, VX_KERNELS=kernels)
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    return done.stdout.decode().split()


def timed(sound: bytes, delay_ms: int) -> tuple[list[str], list[int]]:
    """Return the words, and when each comes, in ms from the start of the audio."""
    done = shell_preloaded(
        PIPE.format(mel=f"--delay-ms {delay_ms}", heavy="", light="--format jsonl"), data=sound
    )
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    said = [row for row in rows if row["text"].strip()]
    return "".join(row["text"] for row in rows).split(), [row["start"] for row in said]


def test_every_digit_of_an_announcer() -> None:
    """As a user's first line: no model is named, and one line a command says which is taken."""
    done = shell("vx-mel | vx-encode | vx-decode | vx-detok", data=wav(said(" ".join(DIGITS))))
    assert done.stdout.decode().split() == list(DIGITS)
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 3 and all("no model is named" in line for line in lines)


def test_the_delay_decides_when_words_come_not_which() -> None:
    sound = wav(said(TEXT))
    words, starts = zip(*(timed(sound, delay) for delay in (240, 480, 960)), strict=True)
    assert [len(each) for each in starts] == [6] * 3
    # On the clock of the audio they are where they were; that clock is behind by the delay.
    assert np.abs(np.subtract(starts[0], starts[2])).max() <= 80
    assert list(words) == [TEXT.split()] * 3
    so_far = wav(np.append(said(TEXT), np.zeros(RATE_HZ // 5)))
    out = {delay: heard(so_far, f"--no-right-pad --delay-ms {delay}") for delay in (240, 960)}
    assert out[240] == TEXT.split() and out[960] == TEXT.split()[: len(out[960])]
    assert len(out[960]) < 6


RMS = (0.0, 0.0003, 0.03)


@pytest.fixture(scope="module")
def said_of_noise(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What is heard in 30 seconds of noise of each loudness, one stream after the other."""
    folder = tmp_path_factory.mktemp("noise")
    for number, rms in enumerate(RMS):
        noise = np.random.default_rng(1).normal(0, 1, 30 * RATE_HZ) * rms
        (folder / f"{number}.wav").write_bytes(wav(np.clip(noise, -1, 1)))
    files = " ".join(f"{number}.wav" for number in range(len(RMS)))
    done = shell_preloaded(PIPE.format(mel=files, heavy="", light="--format jsonl"), cwd=folder)
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return ["".join(row["text"] for row in rows if row["stream"] == number) for number in range(len(RMS))]


@pytest.mark.parametrize("rms", RMS)
def test_nothing_is_said_of_nothing(rms: float, said_of_noise: list[str]) -> None:
    """30 seconds of silence, of a quiet microphone's noise, of loud noise."""
    assert said_of_noise[RMS.index(rms)].split() == []


@pytest.mark.parametrize(
    "how",
    [
        {"heavy": "-m nano-q4", "light": "-m nano-q4"},
        {"heavy": "--dtype f32"},
        {"heavy": "--dtype bf16"},
        {"kernels": "torch"},
    ],
    ids=["q4_0", "f32", "bf16", "torch"],
)
def test_weights_and_kernels_keep_the_words(how: dict[str, str]) -> None:
    assert heard(wav(said(OTHER)), **how) == OTHER.split()


def test_sharded_weights_keep_the_words(tmp_path: Path) -> None:
    packed = next((HOME / "asr-q4").glob("*.gguf"))
    line = (
        f"vx-shard split -q --size 256K {packed} {tmp_path}/parts && cp {HOME}/asr-q4/*.json {tmp_path}/parts"
    )
    done = shell(line)
    assert done.returncode == 0, done.stderr.decode()
    assert len(list((tmp_path / "parts").iterdir())) > 8
    assert heard(wav(said(TEXT)), heavy=f"-m {tmp_path}/parts", light=f"-m {tmp_path}/parts") == TEXT.split()


def pieces(data: bytes, seed: int) -> Iterator[bytes]:
    """Cut bytes anywhere, many of them into single ones."""
    draw = random.Random(seed)
    at = 0
    while at < len(data):
        size = draw.choice((1, 2, 7, 1000, 40000))
        yield data[at : at + size]
        at += size


def test_cutting_the_pipe_keeps_the_words(tmp_path: Path) -> None:
    """Samples come in odd pieces; then each stage runs by itself over what the one before has kept in a file."""
    sound = wav(said(TEXT))
    with subprocess.Popen(
        ["bash", "-c", PIPE.format(mel="", heavy="", light="")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), bufsize=0,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        for piece in pieces(sound, 5):
            process.stdin.write(piece)
        assert process.communicate(timeout=WAIT_S)[0].decode().split() == TEXT.split()
    (tmp_path / "sound.wav").write_bytes(sound)
    line = "vx-mel sound.wav > mel && vx-encode -q < mel > embeds && vx-decode -q < embeds > ids && vx-detok -q < ids"
    assert shell_preloaded(line, cwd=tmp_path).stdout.decode().split() == TEXT.split()


def test_streams_do_not_touch(tmp_path: Path) -> None:
    for name, text in (("a", TEXT), ("b", OTHER)):
        (tmp_path / f"{name}.wav").write_bytes(wav(said(text)))
    line = PIPE.format(mel="a.wav b.wav a.wav", heavy="", light="")
    assert shell_preloaded(line, cwd=tmp_path).stdout.decode().splitlines() == [TEXT, OTHER, TEXT]


def test_the_padding_is_what_it_was_trained_with() -> None:
    """Without the right padding the last word cannot come out."""
    sound = wav(said(TEXT)[: -int(0.4 * RATE_HZ)])
    assert heard(sound) == TEXT.split()
    cut = heard(sound, "--no-right-pad")
    assert len(cut) < 6 and cut == TEXT.split()[: len(cut)]
