"""vx-encode(1): log-mel frames to audio embeddings."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from voxtral_pipes.cli import edge
from voxtral_pipes.cli.options import Parser, add_device, add_general, add_model, positive
from voxtral_pipes.errors import UsageError
from voxtral_pipes.formats.family import ASR

if TYPE_CHECKING:
    from voxtral_pipes.stages.encode import EncodeStage

NAME = "vx-encode"
MAX_CHUNK_MS = 60_000
"""Four times the encoder's window: longer steps take more memory and are no faster."""


def parser() -> Parser:
    """Declare the options of vx-encode."""
    result = Parser(
        NAME,
        "Encode log-mel frames (stdin: tensor mel [n,128]) into audio embeddings (stdout: tensor embeds [n,3072], "
        "one row per 80 ms).",
        "vx-mel talk.wav | vx-encode -m DIR | vx-decode -m DIR | vx-detok -m DIR",
    )
    result.add_argument(
        "--chunk-ms",
        type=positive,
        metavar="MS",
        help="audio per step, a multiple of 80 up to 60000 (else 80 for a live stream, 2560 for a file): longer "
        "steps are faster and later",
    )
    add_model(result, ASR, what="where the weights are")
    add_device(result)
    add_general(result)
    return result


def work(args: argparse.Namespace, log: edge.Log) -> int:
    """Run the command."""
    source, output = edge.open_stdin(), edge.Output(binary=True, force=args.force)
    from voxtral_pipes.config import AsrConfig
    from voxtral_pipes.stages.base import Hello

    nominal = AsrConfig()
    hello = Hello({"embeds": {"d": "f32", "h": [-1, nominal.decoder.dim]}})
    return edge.filter_frames(NAME, hello, lambda: make(args, log), source, output, log)


def make(args: argparse.Namespace, log: edge.Log) -> EncodeStage:
    """Load the encoder; the model is looked for before torch is imported, which takes a second."""
    from voxtral_pipes.models.tokens import TOKEN_MS

    if args.chunk_ms is not None and args.chunk_ms % TOKEN_MS:
        raise UsageError(f"--chunk-ms {args.chunk_ms} is not a multiple of {TOKEN_MS}")
    if args.chunk_ms is not None and args.chunk_ms > MAX_CHUNK_MS:
        raise UsageError(f"--chunk-ms {args.chunk_ms}: {MAX_CHUNK_MS} is the most")
    from voxtral_pipes.formats.locate import locate_model

    files = locate_model(args.model, ASR, log.warn)
    from voxtral_pipes.cli.model import load_stage
    from voxtral_pipes.models.checkpoint import AsrCheckpoint
    from voxtral_pipes.models.encode import Encoder
    from voxtral_pipes.models.shapes import encoder_shapes
    from voxtral_pipes.stages.encode import EncodeStage

    checkpoint = AsrCheckpoint(files)
    config = checkpoint.config
    tensors = load_stage(checkpoint, encoder_shapes(config), args, log)
    chunk = None if args.chunk_ms is None else args.chunk_ms // config.audio.token_ms
    return EncodeStage(Encoder.of(tensors, config.encoder), config, checkpoint.identity, chunk)


def main() -> int:
    """Run vx-encode and return its exit status."""
    return edge.run(parser(), work)
