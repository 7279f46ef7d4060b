"""vx-decode as a process.  One that imports torch takes over a second, so it is asked many things at once."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from asr_models import ids_of, joined, pipe_of, rows_as_frames, settings
from preloaded import run_preloaded
from processes import command, environment, frames, shell

from voxtral_pipes.formats.frame import Frame, Tensor, encode
from voxtral_pipes.formats.safetensors import SafetensorsFile

TOKENS = 100
WIDTH = 128
WORD = 33
UNKNOWN = Frame(
    "probe", stream=1, raw=b"\x83\xa1k\xa5probe\xa1s\x01\xa1q\x93\x01\xc0\xcb\x3f\xf0\0\0\0\0\0\0"
)
PADDINGS = {1: (32, 6), 10: (32, 1), 11: (0, 1), 12: (60, 30)}
"""Stream -> left padding and delay: as published, shorter, nearly none, and longer than the window of 64."""


@cache
def embeds(seed: int = 0, tokens: int = TOKENS) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((tokens, WIDTH)).astype(np.float32)


def stream_of(cuts: Iterable[int] = (), stream: int = 0, rows: np.ndarray | None = None) -> list[Frame]:
    left_pad, delay = PADDINGS.get(stream, (32, 6))
    meta = settings(left_pad=left_pad, delay=delay)
    rows = embeds() if rows is None else rows
    return rows_as_frames("embeds", rows, cuts, meta, row_ticks=1280, stream=stream)


def wire(sent: Iterable[Frame]) -> bytes:
    return b"".join(map(encode, sent))


def vx_decode(
    *arguments: str | Path, data: bytes, model: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    done = run_preloaded("vx-decode", arguments, environment(model), data)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


def bf16(rows: np.ndarray) -> Tensor:
    words = torch.from_numpy(rows.copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)
    return Tensor.of(words, "bf16")


@pytest.fixture(scope="module")
def everything(tiny_model: Path) -> subprocess.CompletedProcess[bytes]:
    """One process: prompts of four lengths, a stream without audio, and every kind of bad one, interleaved."""
    infinite = embeds().copy()
    infinite[60, 5] = np.inf
    good = stream_of(range(0, TOKENS, 13), stream=1)
    good[1:1] = [UNKNOWN, Frame("mark", stream=1, tick=7, meta={"flush": [1, {"deep": None}]})]
    bodies = [
        good,
        [Frame("open", stream=2), Frame("end", stream=2, seq=0)],
        stream_of(range(0, TOKENS, 20), stream=3, rows=infinite),
        stream_of(stream=4, rows=embeds()[:, :64].copy()),
        [Frame("data", stream=5, seq=0, ids=[1]), Frame("end", stream=5)],
        [Frame("open", stream=6, meta=settings() | {"prompt_tokens": 7}), Frame("end", stream=6, seq=0)],
        [
            Frame("data", 7, 0, tensors={"embeds": bf16(embeds())}),
            Frame("end", 7, 1),
        ],  # no open: the defaults
        stream_of(stream=8, rows=embeds(1, 38)),  # shorter than its prompt
        [*stream_of(stream=9, rows=embeds(2, 40)), *stream_of(stream=9, rows=embeds(3, 42))],
        *(stream_of(range(0, TOKENS, 7), stream=s) for s in (10, 11, 12)),
    ]
    mixed = [body[i] for i in range(max(map(len, bodies))) for body in bodies if i < len(body)]
    return command("vx-decode", "-m", tiny_model, data=wire(pipe_of("embeds", mixed)))


def of(done: subprocess.CompletedProcess[bytes], stream: int) -> list[Frame]:
    return [frame for frame in frames(done.stdout) if frame.stream == stream]


def test_bad_streams_close_alone_with_one_line_each(everything: subprocess.CompletedProcess[bytes]) -> None:
    assert everything.returncode == 1
    told = sorted(everything.stderr.decode().splitlines())
    assert [line[:20] for line in told] == [f"vx-decode: stream {s}:" for s in (3, 4, 5, 6)]
    for line, said in zip(told, ("NaN", "[100, 64], not [n, 128]", "'embeds'", "prompt_tokens"), strict=True):
        assert said in line
    for stream in (3, 4, 5, 6):
        last = of(everything, stream)[-1]
        assert (last.kind, last.fields["by"], last.fields["fatal"]) == ("error", "vx-decode", False)
    sent = frames(everything.stdout)
    assert sent[0].kind == "hello" and (sent[-1].kind, sent[-1].stream) == ("end", None)
    assert sent[0].fields["out"] == {"i": {"d": "u32", "h": [-1]}}


@pytest.mark.parametrize("stream", PADDINGS)
def test_an_id_for_each_position_from_the_prompts_last(
    stream: int, everything: subprocess.CompletedProcess[bytes]
) -> None:
    left_pad, delay = PADDINGS[stream]
    data = [frame for frame in of(everything, stream) if frame.kind == "data"]
    prompt = 1 + left_pad + delay
    assert [frame.ids and len(frame.ids) for frame in data] == [1] * (TOKENS - prompt + 1)
    assert [frame.tick for frame in data] == [1280 * (p - left_pad) for p in range(prompt - 1, TOKENS)]
    assert {frame.ticks for frame in data} == {1280} and not any(frame.tensors for frame in data)
    assert [frame.seq for frame in data] == list(range(len(data)))
    last = of(everything, stream)[-1]
    assert (last.kind, last.seq) == ("end", len(data))
    assert len({i for frame in data for i in frame.ids or ()}) > 5, "too dull to prove anything"


def test_streams_without_output(everything: subprocess.CompletedProcess[bytes]) -> None:
    for stream in (2, 8):
        assert [(frame.kind, frame.seq) for frame in of(everything, stream)] == [("open", None), ("end", 0)]


def test_bf16_without_open_has_the_defaults(everything: subprocess.CompletedProcess[bytes]) -> None:
    sent = of(everything, 7)
    assert [frame.kind for frame in sent] == ["open", *["data"] * (TOKENS - 38), "end"]
    assert sent[1].tick == 1280 * (38 - 32)


def test_an_id_may_be_used_again(everything: subprocess.CompletedProcess[bytes]) -> None:
    kinds = [frame.kind for frame in of(everything, 9)]
    assert kinds == ["open", "data", "data", "end", "open", *["data"] * 4, "end"]


def test_marks_and_unknown_kinds_are_forwarded_in_their_place(
    everything: subprocess.CompletedProcess[bytes],
) -> None:
    sent = of(everything, 1)
    assert [frame.kind for frame in sent[:4]] == ["open", "probe", "mark", "data"]
    assert encode(sent[1]) == encode(UNKNOWN)
    assert sent[2] == Frame("mark", stream=1, tick=7, meta={"flush": [1, {"deep": None}]})


def reference(model: Path) -> np.ndarray:
    """Decode stream 1 with the weights read from the file here: log-probabilities of all ids, [62, vocabulary]."""
    from voxtral_pipes.models.decode import Decoder
    from voxtral_pipes.models.random_model import tiny_config
    from voxtral_pipes.models.shapes import decoder_shapes

    file = SafetensorsFile.open([model / "consolidated.safetensors"])
    config = tiny_config()
    tensors = {
        name: torch.frombuffer(bytearray(file.bytes(name)), dtype=torch.bfloat16).reshape(shape).float()
        for name, shape in decoder_shapes(config).items()
    }
    decoder = Decoder.of(tensors, config.decoder)
    rows = torch.from_numpy(embeds().copy())
    prompt = torch.tensor([[1] + [32] * 38])
    logits, state = decoder.prefill(decoder.new_state(6), rows[None, :39], prompt)
    found = [logits]
    for p in range(39, TOKENS):
        logits, state = decoder.step(state, rows[None, p : p + 1], found[-1].argmax(-1)[None])
        found.append(logits)
    return torch.cat(found).float().log_softmax(-1).detach().numpy()


def test_logprobs_cutting_and_stop_at_eos(
    everything: subprocess.CompletedProcess[bytes], tiny_model: Path, tmp_path: Path
) -> None:
    """The same ids however the input is cut, and with --stop-at-eos those up to the first EOS of each stream.

    This model never says EOS, so another tekken.json gives that name to the id it says most often.
    """
    expected = reference(tiny_model)
    best = expected.argmax(-1)
    assert ids_of(frames(everything.stdout), 1) == best.tolist()
    seeds = range(20, 26)
    bodies = [
        stream_of((1, 2, 38, 39, 40, 99), stream=1),
        *(stream_of(stream=s, rows=embeds(s)) for s in seeds),
    ]
    sent = wire(pipe_of("embeds", [frame for body in bodies for frame in body]))
    free = vx_decode(data=sent, model=tiny_model)
    tekken = json.loads((tiny_model / "tekken.json").read_text())
    for entry in tekken["special_tokens"]:
        entry["token_str"] = {"</s>": "[STREAMING_WORD]", "[STREAMING_WORD]": "</s>"}.get(
            entry["token_str"], entry["token_str"]
        )
    (tmp_path / "tekken.json").write_text(json.dumps(tekken))
    line = "dd bs=40093 status=none | vx-decode --logprobs --stop-at-eos --tokenizer"
    cut = shell(f"{line} {tmp_path}/tekken.json", tiny_model, data=sent)
    got = frames(cut.stdout)
    assert cut.returncode == free.returncode == 0
    assert got[0].fields["out"]["logprob"] == {"d": "f32", "h": [-1]}
    stopped = 0
    for stream in (1, *seeds):
        whole, until = ids_of(frames(free.stdout), stream), ids_of(got, stream)
        assert len(whole) == TOKENS - 38
        assert until == (whole[: whole.index(WORD) + 1] if WORD in whole else whole)
        assert joined(got, "logprob", stream).shape == (len(until),)
        stopped += len(until) < len(whole)
        end = [frame for frame in got if frame.stream == stream][-1]
        assert (end.kind, end.seq) == ("end", len(until))
    assert stopped
    logprobs = joined(got, "logprob", 1)
    np.testing.assert_allclose(logprobs, expected.max(-1)[: len(logprobs)], atol=1e-4)


@pytest.mark.parametrize(
    ("damage", "said"), [("truncated", "consolidated.safetensors"), ("missing", "norm.weight is missing")]
)
def test_a_damaged_model_is_one_line_and_travels(
    damage: str, said: str, tiny_model: Path, tmp_path: Path
) -> None:
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "consolidated.safetensors"
    content = weights.read_bytes()
    damaged = (
        content[:-1000] if damage == "truncated" else content.replace(b'"norm.weight"', b'"Norm.weight"')
    )
    assert damaged != content
    weights.write_bytes(damaged)
    done = vx_decode("-m", tmp_path, data=wire(pipe_of("embeds", [])))
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1 and said in done.stderr.decode()
    sent = frames(done.stdout)
    assert [frame.kind for frame in sent] == ["hello", "error"]
    assert sent[1].fields["code"] == "bad-model"


def test_what_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    for arguments, status, said in (
        (["--blank-guard", "0"], 2, "--blank-guard"),
        (["--dtype", "f16"], 2, "--dtype"),
        (["-m", str(tmp_path / "absent")], 1, "there is no model at"),
        (["-m", str(tmp_path)], 1, "holds no model"),
    ):
        done = command("vx-decode", *arguments, data=wire(pipe_of("embeds", [])))
        assert done.returncode == status
        assert done.stderr.count(b"\n") == 1 and said in done.stderr.decode()
