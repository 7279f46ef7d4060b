"""vx-decode(1): audio embeddings to token ids."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from voxtral_pipes.cli import edge
from voxtral_pipes.cli.options import Parser, add_device, add_general, add_model, positive
from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.family import ASR

if TYPE_CHECKING:
    from voxtral_pipes.stages.decode import DecodeStage

NAME = "vx-decode"


def parser() -> Parser:
    """Declare the options of vx-decode."""
    result = Parser(
        NAME,
        "Decode audio embeddings (stdin: tensor embeds [n,3072]) into token ids (stdout: one id per 80 ms from the "
        "end of the prompt on).",
        "vx-mel talk.wav | vx-encode -m DIR | vx-decode -m DIR | vx-detok -m DIR",
    )
    result.add_argument(
        "--stop-at-eos",
        action="store_true",
        help="end a stream at its first end-of-sequence token, even inside the audio",
    )
    result.add_argument(
        "--blank-guard",
        type=positive,
        metavar="N",
        help="after N blanks in a row over input louder than silence, penalise the blank more and more "
        "(capped); off by default",
    )
    result.add_argument(
        "--logprobs", action="store_true", help="send the log-probability of each id as the tensor logprob"
    )
    add_model(result, ASR, what="where the weights are", tokenizer=True)
    add_device(result)
    add_general(result)
    return result


def work(args: argparse.Namespace, log: edge.Log) -> int:
    """Run the command."""
    source, output = edge.open_stdin(), edge.Output(binary=True, force=args.force)
    from voxtral_pipes.stages.base import Hello

    hello = Hello({"i": {"d": "u32", "h": [-1]}})
    return edge.filter_frames(NAME, hello, lambda: make(args, log), source, output, log)


def make(args: argparse.Namespace, log: edge.Log) -> DecodeStage:
    """Load the decoder; the model is looked for before torch is imported, which takes a second."""
    from voxtral_pipes.formats.locate import locate_model

    files = locate_model(args.model, ASR, log.warn)
    from voxtral_pipes.cli.model import load_stage, read_tekken
    from voxtral_pipes.models.checkpoint import AsrCheckpoint
    from voxtral_pipes.models.decode import Decoder
    from voxtral_pipes.models.shapes import decoder_shapes
    from voxtral_pipes.stages.decode import DecodeOptions, DecodeStage, SpecialIds

    without = "the published ids of <s>, </s> and [STREAMING_PAD] are used"
    tekken = read_tekken(args, files, log, ASR, without=without)
    ids = SpecialIds() if tekken is None else SpecialIds.of(tekken)
    checkpoint = AsrCheckpoint(files)
    config = checkpoint.config
    highest, known = max(ids.bos, ids.eos, ids.pad), config.decoder.vocab_size
    if highest >= known:
        raise BadModelError(
            f"{args.tokenizer or 'tekken.json'}: a special token has the id {highest}, the model knows {known} ids"
        )
    tensors = load_stage(checkpoint, decoder_shapes(config), args, log)
    options = DecodeOptions(args.stop_at_eos, args.blank_guard, args.logprobs)
    return DecodeStage(Decoder.of(tensors, config.decoder), config, ids, options, checkpoint.identity)


def main() -> int:
    """Run vx-decode and return its exit status."""
    return edge.run(parser(), work)
