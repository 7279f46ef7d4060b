"""Token id streams as vx-decode sends them, over a vocabulary small enough to read."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from voxtral_pipes.formats.frame import Frame, Tensor
from voxtral_pipes.formats.tekken import Tekken
from voxtral_pipes.stages.base import Hello, Outgoing, Output

N_SPECIAL = 64
PAD, WORD, EOS = 32, 33, 2
PIECES = [*(bytes([value]) for value in range(256)), b" Hello", b" world", b" the", b"\xf0\x9f", b"\x98\x80"]
PATTERN = r" ?\w+|[^\w]"
POSITION = 1280
RATE_HZ = 16000


def tekken_json(**changes: Any) -> dict[str, Any]:
    """Make a tekken.json with two entries too many; `changes` replace keys of `config` or the top."""
    pieces = [*PIECES, b"beyond", b"it"]
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
        for rank, piece in enumerate(pieces)
    ]
    config = {
        "pattern": PATTERN,
        "num_vocab_tokens": len(vocab),
        "default_vocab_size": N_SPECIAL + len(vocab) - 2,
        "default_num_special_tokens": N_SPECIAL,
        "version": "v7",
    }
    top: dict[str, Any] = {"config": config, "vocab": vocab}
    for key, value in changes.items():
        (config if key in config else top)[key] = value
    return top


def vocabulary() -> Tekken:
    return Tekken.parse(json.dumps(tekken_json()).encode())


def spell(text: str) -> list[int]:
    """Return the ids of a text, a byte each but for the words of `PIECES`."""
    tekken = vocabulary()
    longer = {tekken.token_bytes(i): i for i in range(N_SPECIAL + 256, tekken.vocab_size)}
    data, ids = text.encode(), []
    while data:
        piece = next((p for p in longer if data.startswith(p) and p.startswith(b" ")), data[:1])
        ids.append(longer.get(piece, N_SPECIAL + piece[0]))
        data = data[len(piece) :]
    return ids


def spoken(text: str) -> list[int]:
    """Return ids as the model writes them, WORD before each word; "|" is ten positions of PAD."""
    ids = []
    for word in text.split():
        if word == "|":
            ids += [PAD] * 10
        else:
            ids += [WORD, *spell(f" {word}"), PAD]
    return ids


def hello(out: Sequence[str] = ("i",), rate_hz: int = RATE_HZ) -> Frame:
    described = {name: {"d": "u32" if name == "i" else "f32", "h": [-1]} for name in out}
    return Outgoing("vx-test").hello(Hello(described), rate_hz)


def cut(
    ids: Sequence[int], sizes: Iterable[int] = (), *, first: int = 6, logprobs: bool = False
) -> Iterator[Output]:
    """Cut ids into data frames of `sizes`, the last holding the rest; `first` is the position of ids[0]."""
    at = 0
    for size in [*sizes, len(ids)]:
        piece = list(ids[at : at + size])
        values = np.arange(at, at + len(piece), dtype=np.float32) / -8
        tensors = {"logprob": Tensor.of(values)} if logprobs else {}
        yield Output(POSITION * (first + at), POSITION * len(piece), tensors, piece)
        at += len(piece)


def pipe(
    streams: Mapping[int, Iterable[Output]], *, interleaved: bool = True, ended: bool = True
) -> Iterator[Frame]:
    """Send streams over one pipe, opened in order, frames taking turns or each stream whole."""
    outgoing = Outgoing("vx-test")
    yield hello()
    left = {stream: list(outputs) for stream, outputs in streams.items()}
    if interleaved:
        for stream in left:
            yield outgoing.open(stream, {"delay_tokens": 6})
    while left:
        for stream in list(left):
            if not interleaved:
                yield outgoing.open(stream, {"delay_tokens": 6})
            while left[stream]:
                yield outgoing.data(stream, left[stream].pop(0))
                if interleaved:
                    break
            if not left[stream]:
                del left[stream]
                if ended:
                    yield outgoing.end(stream)
    if ended:
        yield Frame("end")
