"""Small random models and streams of frames for tests; imported by name, not collected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from voxtral_pipes.config import AsrConfig, DecoderConfig, EncoderConfig
from voxtral_pipes.formats.frame import Frame, Tensor
from voxtral_pipes.models.decode import Decoder
from voxtral_pipes.models.encode import Encoder
from voxtral_pipes.models.shapes import decoder_shapes, encoder_shapes
from voxtral_pipes.stages.base import Hello, Outgoing, Output

SMALL = AsrConfig(
    encoder=EncoderConfig(dim=96, n_layers=3, n_heads=3, head_dim=32, hidden_dim=160, window=45),
    decoder=DecoderConfig(
        dim=64,
        n_layers=3,
        n_heads=6,
        n_kv_heads=2,
        head_dim=16,
        hidden_dim=96,
        window=50,
        vocab_size=1300,
        ada_dim=32,
    ),
)
"""Odd on purpose: three heads, grouped queries, windows shorter than the prompts of long delays."""


def windows(encoder: int, decoder: int, config: AsrConfig = SMALL) -> AsrConfig:
    """Return the configuration with other windows."""
    return replace(
        config,
        encoder=replace(config.encoder, window=encoder),
        decoder=replace(config.decoder, window=decoder),
    )


def random_tensors(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, torch.Tensor]:
    """Draw tensors that keep activations near 1: norms about 1, matrices scaled by their input width.

    Queries and keys are larger, so that attention chooses and the output is not one token for ever.
    """
    tensors = {}
    for number, (name, shape) in enumerate(shapes.items()):
        draw = torch.randn(*shape, generator=torch.Generator().manual_seed(1000 * seed + number))
        if name.endswith("norm.weight"):
            tensors[name] = 1 + 0.2 * draw
        elif len(shape) == 1:
            tensors[name] = 0.1 * draw
        else:
            tensors[name] = draw / (draw[0].numel() ** 0.5)
        if name.endswith(("wq.weight", "wk.weight")):
            tensors[name] *= 3 if name.startswith("layers.") else 1.6
    return tensors


def random_encoder(config: AsrConfig = SMALL, seed: int = 1) -> Encoder:
    """Make an encoder with random weights."""
    return Encoder.of(random_tensors(encoder_shapes(config), seed), config.encoder)


def random_decoder(config: AsrConfig = SMALL, seed: int = 2) -> Decoder:
    """Make a decoder with random weights."""
    return Decoder.of(random_tensors(decoder_shapes(config), seed), config.decoder)


def settings(*, delay: int = 6, left_pad: int = 32, live: bool = False) -> dict[str, Any]:
    """Return the `m` of an open frame."""
    return {
        "delay_tokens": delay,
        "left_pad_tokens": left_pad,
        "prompt_tokens": 1 + left_pad + delay,
        "live": live,
        "source": "test",
    }


def rows_as_frames(
    name: str,
    rows: np.ndarray,
    cuts: Iterable[int],
    meta: Mapping[str, Any],
    *,
    row_ticks: int,
    stream: int = 0,
    mark: tuple[int, int] | None = None,
    levels: np.ndarray | None = None,
) -> list[Frame]:
    """Cut rows into data frames of a stream, from open to end; `mark` is (row, audio_end).

    `levels` has one value for each row (of embeds), and is cut with them.
    """
    outgoing = Outgoing("test")
    frames = [outgoing.open(stream, meta)]
    start = -meta["left_pad_tokens"] * 1280
    edges = sorted({0, len(rows), *(c for c in cuts if 0 < c < len(rows)), *((mark[0],) if mark else ())})
    for first, last in pairwise(edges):
        if mark and first == mark[0]:
            frames.append(Frame("mark", stream=stream, meta={"audio_end": mark[1]}))
        tensors = {name: Tensor.of(rows[first:last])}
        if levels is not None:
            tensors["level"] = Tensor.of(levels[first:last])
        output = Output(start + first * row_ticks, (last - first) * row_ticks, tensors)
        frames.append(outgoing.data(stream, output))
    return [*frames, outgoing.end(stream)]


def pipe_of(name: str, *streams: list[Frame]) -> list[Frame]:
    """Put streams one after another into a pipe, hello and end around them."""
    hello = Outgoing("test").hello(Hello({name: {"d": "f32", "h": [-1, -1]}}), 16000)
    return [hello, *(frame for stream in streams for frame in stream), Frame("end")]


def joined(frames: Iterable[Frame], name: str, stream: int = 0) -> np.ndarray:
    """Concatenate a tensor over the data frames of a stream."""
    pieces = [f.tensors[name].float32() for f in frames if f.kind == "data" and f.stream == stream]
    return np.concatenate(pieces) if pieces else np.empty((0, 0), np.float32)


def ids_of(frames: Iterable[Frame], stream: int = 0) -> list[int]:
    """Return the token ids of a stream."""
    return [i for f in frames if f.kind == "data" and f.stream == stream for i in f.ids or ()]
