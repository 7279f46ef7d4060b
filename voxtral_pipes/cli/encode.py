"""vx-encode(1): log-mel frames to audio embeddings."""

from __future__ import annotations

import argparse

from voxtral_pipes.cli import edge
from voxtral_pipes.cli.options import Parser, add_device, add_general, add_model, positive

NAME = "vx-encode"


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
        help="audio per step, a multiple of 80 (else 80 for a live stream, 2560 for a file): longer steps are "
        "faster and later",
    )
    add_model(result, what="where the weights are", variable="VX_ASR_MODEL")
    add_device(result)
    add_general(result)
    return result


def work(args: argparse.Namespace, log: edge.Log) -> int:
    """Run the command."""
    source, output = edge.open_stdin(), edge.Output(binary=True, force=args.force)
    import torch

    from voxtral_pipes.cli.model import load_asr
    from voxtral_pipes.config import AsrConfig
    from voxtral_pipes.models.encode import Encoder
    from voxtral_pipes.models.weights import encoder_shapes
    from voxtral_pipes.stages.encode import EncodeStage, chunk_tokens, encode_hello

    nominal = AsrConfig()
    chunk = chunk_tokens(args.chunk_ms, nominal.audio)

    def make() -> EncodeStage:
        part = load_asr(args, encoder_shapes, log)
        encoder = Encoder.of(part.tensors, part.config.encoder)
        return EncodeStage(encoder, part.config, part.identity, chunk)

    hello = encode_hello(nominal, torch.float32, None)
    return edge.filter_frames(NAME, hello, make, source, output, log)


def main() -> int:
    """Run vx-encode and return its exit status."""
    return edge.run(parser(), work)
