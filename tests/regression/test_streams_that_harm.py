"""Streams that were taken without a word: more behind the end, other clocks, numbers that are none."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from preloaded import run_preloaded
from processes import ROOT, environment, frames

from voxtral_pipes.formats.frame import Frame, Tensor, encode

NANO = ROOT / "voxtral_pipes" / "nano"
END = Frame("end")


def wire(*sent: Frame) -> bytes:
    return b"".join(map(encode, sent))


def hello(name: str, dtype: str, width: int, clock: int) -> Frame:
    return Frame(
        "hello", fields={"v": [1, 0], "by": "t", "out": {name: {"d": dtype, "h": [-1, width]}}, "tb": clock}
    )


def stream(name: str, rows: np.ndarray, clock: int, **more: Tensor) -> list[Frame]:
    tensors = {name: Tensor.of(rows), **more}
    first = hello(name, "f32", rows.shape[1], clock)
    return [first, Frame("open", 0), Frame("data", 0, 0, tensors=tensors), Frame("end", 0, 1), END]


def one_line(command: str, data: bytes, told: str, *arguments: str | Path, status: int = 1) -> list[Frame]:
    done = run_preloaded(command, ["-m", "nano", *arguments], environment(), data)
    assert (done.returncode, done.stderr.count(b"\n")) == (status, 1), done.stderr
    assert told in done.stderr.decode(), done.stderr
    return frames(done.stdout) if done.stdout else []


def mel(value: float, n: int = 8) -> np.ndarray:
    return np.full((n, 128), value, np.float32)


def test_more_behind_the_end_is_not_silently_dropped() -> None:
    """Two recordings by `(vx-mel a; vx-mel b) | vx-encode` were one; what came before is whole all the same."""
    whole = wire(*stream("mel", mel(0), 16000))
    found = one_line("vx-encode", 2 * whole, "more follows the end of the pipe")
    assert [frame.kind for frame in found] == ["hello", "open", "data", "end", "end", "error"]
    ids = wire(
        Frame("hello", fields={"v": [1, 0], "by": "t", "out": {"i": {"d": "u32", "h": [-1]}}, "tb": 16000}),
        END,
    )
    done = run_preloaded("vx-detok", ["-m", "nano"], environment(), 2 * ids)
    assert (done.returncode, done.stdout) == (1, b"") and b"more follows" in done.stderr


@pytest.mark.parametrize(("command", "name", "width", "clock"), [
    ("vx-encode", "mel", 128, 8000), ("vx-decode", "embeds", 192, 24000), ("vx-flow", "hidden", 192, 16000),
])  # fmt: skip
def test_another_clock_is_refused(command: str, name: str, width: int, clock: int) -> None:
    rows = np.zeros((8, width), np.float32)
    one_line(command, wire(*stream(name, rows, clock)), f"hello declares {clock} ticks per second")


def test_embeddings_that_are_not_finite_are_an_error_of_vx_encode() -> None:
    found = one_line("vx-encode", wire(*stream("mel", mel(1e38), 16000)), "the embeddings are not finite")
    assert [frame.kind for frame in found] == ["hello", "open", "error", "end"]


def test_codes_of_no_codebook_are_an_error_of_vx_flow() -> None:
    """They were an internal error, or went out."""
    rows = np.full((1, 192), 3e38, np.float32)
    found = one_line("vx-flow", wire(*stream("hidden", rows, 24000)), "frame 0 gives no codes", "--seed", "1")
    assert [frame.kind for frame in found] == ["hello", "open", "error", "end"]


def test_levels_without_sound_are_not_even_read() -> None:
    level = Tensor.of(np.zeros(1000, np.float32))
    one_line("vx-encode", wire(*stream("mel", mel(0), 16000, level=level)), "brings 1000 of 'level'")


def test_noise_and_a_seed_contradict_each_other(tmp_path: Path) -> None:
    np.save(tmp_path / "noise.npy", np.zeros((3, 36), np.float32))
    rows = np.zeros((1, 192), np.float32)
    options = ("--noise", tmp_path / "noise.npy", "--seed", "1")
    one_line("vx-flow", wire(*stream("hidden", rows, 24000)), "--seed draws", *options, status=2)


def changed(source: Path, folder: Path, name: str, change: dict[str, object], *section: str) -> Path:
    """Copy a model, and change some settings of a file of it."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = inner = json.loads((folder / name).read_text())
    for part in section:
        inner = inner[part]
    inner |= change
    (folder / name).write_text(json.dumps(settings))
    return folder


def refused(command: str, model: Path, told: str, data: bytes = b"", more: Iterable[str] = ()) -> None:
    done = run_preloaded(
        command, ["-m", model, *more], environment(), data or wire(*stream("mel", mel(0), 16000))
    )
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1), done.stderr
    assert told in done.stderr.decode(), done.stderr


def test_settings_must_not_ask_for_fewer_layers_than_there_are(tmp_path: Path) -> None:
    """The rest was left out, and what came was no speech."""
    encoder = ("multimodal", "whisper_model_args", "encoder_args")
    fewer = changed(NANO / "asr", tmp_path / "a", "params.json", {"n_layers": 2}, *encoder)
    refused("vx-encode", fewer, "ask for no more than")
    fewer = changed(NANO / "asr", tmp_path / "b", "params.json", {"n_layers": 1})
    refused(
        "vx-decode",
        fewer,
        "ask for no more than layers.0",
        wire(*stream("embeds", np.zeros((1, 192), np.float32), 16000)),
    )


def test_frames_and_embeddings_must_fit_to_each_other(tmp_path: Path) -> None:
    path = ("multimodal", "whisper_model_args", "downsample_args")
    other = changed(NANO / "asr", tmp_path / "a", "params.json", {"downsample_factor": 2}, *path)
    refused("vx-encode", other, "one embedding of 4 mel frames")
    other = changed(NANO / "asr", tmp_path / "b", "tekken.json", {"frame_rate": 6.25}, "audio")
    done = run_preloaded("vx-mel", ["-m", other], environment(), b"")
    assert done.returncode == 1 and b"frame_rate is 6.25; only 12.5" in done.stderr


def test_special_tokens_must_be_in_the_vocabulary_of_the_model(tmp_path: Path) -> None:
    held = json.loads((NANO / "asr" / "tekken.json").read_text())
    next(one for one in held["special_tokens"] if one["token_str"] == "[STREAMING_PAD]")["rank"] = 900
    held["config"] |= {"default_num_special_tokens": 1000, "default_vocab_size": 1367}
    held["special_tokens"].sort(key=lambda one: one["rank"])
    (tmp_path / "tekken.json").write_text(json.dumps(held))
    rows = wire(*stream("embeds", np.zeros((1, 192), np.float32), 16000))
    one_line("vx-decode", rows, "a special token has the id 900", "--tokenizer", tmp_path / "tekken.json")


@pytest.mark.parametrize(("command", "option"), [
    ("vx-detok", "--tokenizer"), ("vx-decode", "--tokenizer"), ("vx-backbone", "--codes"), ("vx-backbone", "--voices"),
    ("vx-flow", "--noise"),
])  # fmt: skip
def test_an_empty_name_names_nothing(command: str, option: str) -> None:
    one_line(command, b"x", "an empty name names nothing", option, "", status=2)


def test_nobody_has_a_home_here() -> None:
    """`~nobody` and a machine without a home directory were internal errors."""
    done = run_preloaded("vx-detok", ["-m", "~nobody-of-that-name/x"], environment(), b"x")
    assert (done.returncode, done.stderr) == (1, b"vx-detok: there is no model at ~nobody-of-that-name/x\n")
