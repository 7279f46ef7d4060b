"""vx-encode as a process.  One that imports torch takes over a second, so it is asked many things at once."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from asr_models import joined, pipe_of, rows_as_frames, settings
from preloaded import run_preloaded, shell_preloaded
from processes import CLIPS, WAIT_S, command, environment, frames

from voxtral_pipes.formats.frame import Frame, encode
from voxtral_pipes.formats.safetensors import SafetensorsFile

TOKENS = 50
UNKNOWN = Frame(
    "probe", stream=1, raw=b"\x83\xa1k\xa5probe\xa1s\x01\xa1q\x93\x01\xc0\xcb\x3f\xf0\0\0\0\0\0\0"
)


@cache
def mel(seed: int = 0, tokens: int = TOKENS) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((8 * tokens, 128)).astype(np.float32)


def mel_stream(
    cuts: Iterable[int] = (), stream: int = 0, rows: np.ndarray | None = None, live: bool = False
) -> list[Frame]:
    rows = mel() if rows is None else rows
    return rows_as_frames("mel", rows, cuts, settings(live=live), row_ticks=160, stream=stream)


def wire(sent: Iterable[Frame]) -> bytes:
    return b"".join(map(encode, sent))


def vx_encode(
    *arguments: str | Path, data: bytes, model: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    done = run_preloaded("vx-encode", arguments, environment(model, **variables), data)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


@pytest.fixture(scope="module")
def everything(tiny_model: Path) -> subprocess.CompletedProcess[bytes]:
    """One process, eight streams: good ones, one without audio, and every kind of bad one, interleaved."""
    nan = mel().copy()
    nan[100, 5] = np.nan
    narrow = mel()[:, :80].copy()
    good = mel_stream(range(0, 400, 64), stream=1)
    good[2:2] = [UNKNOWN, Frame("mark", stream=1, tick=7, meta={"flush": [1, {"deep": None}]})]
    bodies = [
        good,
        [Frame("open", stream=2, meta=settings(left_pad=0)), Frame("end", stream=2, seq=0)],
        mel_stream(range(0, 400, 40), stream=3, rows=nan),
        mel_stream(stream=4, rows=narrow),
        [Frame("data", stream=5, seq=0, ids=[1]), Frame("end", stream=5)],
        [Frame("open", stream=6, meta={"delay_tokens": -1}), Frame("end", stream=6, seq=0)],
        mel_stream(stream=7, live=True),
        [*mel_stream(stream=8, rows=mel(2, 3)), *mel_stream(stream=8, rows=mel(3, 5))],  # one id, used twice
    ]
    mixed = [body[i] for i in range(max(map(len, bodies))) for body in bodies if i < len(body)]
    return command("vx-encode", "-m", tiny_model, data=wire(pipe_of("mel", mixed)))


def of(done: subprocess.CompletedProcess[bytes], stream: int) -> list[Frame]:
    return [frame for frame in frames(done.stdout) if frame.stream == stream]


def test_bad_streams_close_alone_with_one_line_each(everything: subprocess.CompletedProcess[bytes]) -> None:
    assert everything.returncode == 1
    told = sorted(everything.stderr.decode().splitlines())
    assert [line[:20] for line in told] == [f"vx-encode: stream {s}:" for s in (3, 4, 5, 6)]
    for line, said in zip(told, ("NaN", "[400, 80], not [n, 128]", "'mel'", "delay_tokens"), strict=True):
        assert said in line
    for stream in (3, 4, 5, 6):
        last = of(everything, stream)[-1]
        assert (last.kind, last.fields["by"], last.fields["fatal"]) == ("error", "vx-encode", False)
    sent = frames(everything.stdout)
    assert sent[0].kind == "hello" and (sent[-1].kind, sent[-1].stream) == ("end", None)


def test_good_streams_go_on(everything: subprocess.CompletedProcess[bytes]) -> None:
    for stream, step in ((1, 32), (7, 1)):
        data = [frame for frame in of(everything, stream) if frame.kind == "data"]
        sizes = [frame.tensors["embeds"].shape for frame in data]
        # A live stream takes its left padding, which is there at once, in one step.
        assert sizes == ([(32, 128), (18, 128)] if step == 32 else [(32, 128), *[(1, 128)] * 18])
        ends = np.cumsum([rows for rows, _ in sizes])
        assert [frame.tick for frame in data] == [1280 * (n - 32) for n in (0, *ends[:-1])]
        assert [frame.ticks for frame in data] == [1280 * rows for rows, _ in sizes]
        assert [frame.seq for frame in data] == list(range(len(data)))
        last = of(everything, stream)[-1]
        assert (last.kind, last.seq) == ("end", len(data))
    live, whole = (joined(frames(everything.stdout), "embeds", stream) for stream in (7, 1))
    np.testing.assert_allclose(live, whole, atol=1e-5)


def test_a_stream_without_audio_is_opened_and_ended(everything: subprocess.CompletedProcess[bytes]) -> None:
    sent = of(everything, 2)
    assert [(frame.kind, frame.seq) for frame in sent] == [("open", None), ("end", 0)]
    assert sent[0].meta["left_pad_tokens"] == 0


def test_an_id_may_be_used_again(everything: subprocess.CompletedProcess[bytes]) -> None:
    sent = of(everything, 8)
    assert [frame.kind for frame in sent] == ["open", "data", "end"] * 2
    assert [frame.tensors["embeds"].shape[0] for frame in sent if frame.kind == "data"] == [3, 5]
    assert [frame.seq for frame in sent if frame.kind == "data"] == [0, 0]


def test_marks_and_unknown_kinds_are_forwarded_in_their_place(
    everything: subprocess.CompletedProcess[bytes],
) -> None:
    sent = of(everything, 1)
    assert [frame.kind for frame in sent] == ["open", "probe", "mark", "data", "data", "end"]
    assert encode(sent[1]) == encode(UNKNOWN)
    assert sent[2] == Frame("mark", stream=1, tick=7, meta={"flush": [1, {"deep": None}]})


def test_another_cutting_gives_the_same_bytes(
    everything: subprocess.CompletedProcess[bytes], tiny_model: Path
) -> None:
    """Frames of 1, 2, 8, 13, ... rows, written in pieces that end inside headers and bodies."""
    data = wire(pipe_of("mel", mel_stream((1, 3, 3, 11, 24, 25, 64, 200, 399), stream=1)))
    with subprocess.Popen(
        ["vx-encode"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(tiny_model), bufsize=0
    ) as process:
        assert process.stdin and process.stdout
        for start in range(0, len(data), 4093):
            process.stdin.write(data[start : start + 4093])
        process.stdin.close()
        got = frames(process.stdout.read())
    assert process.returncode == 0
    expected = [frame for frame in of(everything, 1) if frame.kind not in ("probe", "mark")]
    assert wire(frame for frame in got if frame.stream == 1) == wire(expected)


def test_bf16_travels_as_bf16_and_is_decoded(tiny_model: Path, tmp_path: Path) -> None:
    line = (
        f"vx-mel {CLIPS / 'tt-weasels.wav'} | vx-encode --dtype bf16 --chunk-ms 160 | tee emb.vx "
        "| vx-decode --dtype bf16 --logprobs"
    )
    done = shell_preloaded(line, tiny_model, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    embeds = frames((tmp_path / "emb.vx").read_bytes())
    assert embeds[0].fields["out"]["embeds"] == {"d": "bf16", "h": [-1, 128]}
    shapes = [(f.tensors["embeds"].dtype, *f.tensors["embeds"].shape) for f in embeds if f.kind == "data"]
    assert set(shapes) == {("bf16", 2, 128)}
    ids = frames(done.stdout)
    assert ids[0].fields["out"] == {"i": {"d": "u32", "h": [-1]}, "logprob": {"d": "f32", "h": [-1]}}
    assert len([f for f in ids if f.kind == "data"]) >= 30


@pytest.mark.parametrize(
    ("arguments", "variables", "status", "said"),
    [
        (["--chunk-ms", "100"], {}, 2, "--chunk-ms 100 is not a multiple of 80"),
        (["--chunk-ms", "0"], {}, 2, "--chunk-ms"),
        (["--chunk-ms", "8000000000"], {}, 2, "60000 is the most"),
        (["--dtype", "f16"], {}, 2, "--dtype"),
        (["--device", "bogus"], {}, 2, "--device 'bogus'"),
        ([], {"VX_DTYPE": "f16"}, 2, "f16"),
        ([], {"VX_KERNELS": "fast"}, 2, "VX_KERNELS"),
        (["--device", "cuda"], {"CUDA_VISIBLE_DEVICES": ""}, 1, "--device cpu"),
        (["--device", "cpu"], {"VX_KERNELS": "triton", "CUDA_VISIBLE_DEVICES": ""}, 1, "VX_KERNELS=triton"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_followed(
    arguments: list[str], variables: dict[str, str], status: int, said: str, tiny_model: Path
) -> None:
    done = vx_encode(
        *arguments, data=wire(pipe_of("mel", mel_stream())), model=tiny_model, **variables
    )  # fmt: skip
    assert done.returncode == status
    assert done.stderr.count(b"\n") == 1 and said in done.stderr.decode()
    # What options alone cannot tell travels as an error.
    assert not done.stdout or [frame.kind for frame in frames(done.stdout)] == ["hello", "error"]


def damaged(model: Path, folder: Path, damage: str) -> Path:
    """Copy a model and damage the copy."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights, params = folder / "consolidated.safetensors", folder / "params.json"
    content = weights.read_bytes()
    if damage == "truncated":
        weights.write_bytes(content[:-1000])
    elif damage == "missing":
        size = int.from_bytes(content[:8], "little")
        name = b"whisper_encoder.transformer.layers.1.attention.wo.bias"
        assert name in content[:size]
        weights.write_bytes(content.replace(name, name[:-4] + b"sabi"))
    else:
        settings = json.loads(params.read_text())
        settings["multimodal"]["whisper_model_args"]["encoder_args"]["hidden_dim"] += 2
        params.write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("truncated", "consolidated.safetensors"),
        ("missing", "layers.1.attention.wo.bias is missing"),
        ("other settings", "the hyperparameters ask for"),
    ],
)
def test_a_damaged_model_is_one_line_and_travels(
    damage: str, said: str, tiny_model: Path, tmp_path: Path
) -> None:
    done = vx_encode("-m", damaged(tiny_model, tmp_path / "model", damage), data=wire(pipe_of("mel", [])))
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1 and said in done.stderr.decode()
    sent = frames(done.stdout)
    assert [frame.kind for frame in sent] == ["hello", "error"]
    assert sent[1].fields["code"] == "bad-model" and sent[1].fields["fatal"] is True
    assert sent[0].fields["out"] == {"embeds": {"d": "f32", "h": [-1, 3072]}}


def test_a_truncated_input_gives_what_it_can_and_fails(tiny_model: Path) -> None:
    data = wire(pipe_of("mel", mel_stream(range(0, 400, 40))))
    done = vx_encode(data=data[: len(data) - 5000], model=tiny_model)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1 and b"died" in done.stderr
    sent = frames(done.stdout)
    assert [frame.kind for frame in sent] == ["hello", "open", "data", "error"]
    assert sent[-1].fields["code"] == "truncated" and sent[-1].stream is None


def test_neither_a_terminal_nor_torch_for_what_is_refused_at_once(tiny_model: Path) -> None:
    outer, inner = os.openpty()
    try:
        done = subprocess.run(
            ["vx-encode"], input=b"", stdout=inner, stderr=subprocess.PIPE, env=environment(tiny_model),
            timeout=WAIT_S, check=False,
        )  # fmt: skip
    finally:
        os.close(outer)
        os.close(inner)
    assert done.returncode == 2 and b"terminal" in done.stderr and done.stderr.count(b"\n") == 1


def test_the_embeddings_are_those_of_the_weights_in_the_file(
    everything: subprocess.CompletedProcess[bytes], tiny_model: Path
) -> None:
    """The process does nothing but load and run: the model, made here from the same bytes, says the same."""
    from voxtral_pipes.models.encode import Encoder
    from voxtral_pipes.models.random_model import tiny_config
    from voxtral_pipes.models.shapes import encoder_shapes

    file = SafetensorsFile.open([tiny_model / "consolidated.safetensors"])
    config = tiny_config()
    tensors = {
        name: torch.frombuffer(bytearray(file.bytes(name)), dtype=torch.bfloat16).reshape(shape).float()
        for name, shape in encoder_shapes(config).items()
    }
    encoder = Encoder.of(tensors, config.encoder)
    rows, _ = encoder.step(encoder.new_state(TOKENS), torch.from_numpy(mel().copy())[None])
    got = joined(frames(everything.stdout), "embeds", 1)
    np.testing.assert_allclose(got, rows[0].numpy(), atol=1e-5)
