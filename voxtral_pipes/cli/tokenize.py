"""vx-tokenize: text lines on stdin, token ids on stdout.  Latency: none."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from io import BufferedReader
from typing import TYPE_CHECKING

from voxtral_pipes.cli import edge
from voxtral_pipes.cli.options import Parser, add_general, add_model, natural
from voxtral_pipes.config import TTS_RATE_HZ
from voxtral_pipes.errors import OutputError
from voxtral_pipes.formats.family import TTS
from voxtral_pipes.models.text import MAX_CHARS

if TYPE_CHECKING:
    from voxtral_pipes.stages.tokenize import Tokenize, Utterance

NAME = "vx-tokenize"
READ_BYTES = 1 << 16

DESCRIPTION = """\
Turn text into the token ids that vx-backbone speaks: the first command of speech synthesis.

input   UTF-8; each line is an utterance, and goes on as soon as it has come.  Empty lines are
        skipped.  What looks like a special token is ordinary text.
output  frames with token ids 'i', a stream (0, 1, ...) for each utterance: the ids of the text
        alone, nothing added"""


def parser() -> Parser:
    """Describe the command line."""
    result = Parser(NAME, DESCRIPTION, "vx-tokenize --ids < book.txt")
    add_model(result, TTS, what="where tekken.json is", tokenizer=True)
    group = result.add_argument_group("text options")
    group.add_argument(
        "--whole", action="store_true", help="take all of the input as one text, line ends included"
    )
    group.add_argument(
        "--max-chars", type=natural, metavar="N", default=MAX_CHARS,
        help="cut a longer text into utterances of at most N characters: at the end of a sentence, else behind "
        f"a comma or a dash, else at a space, never inside a word; 0 cuts nothing ({MAX_CHARS})",
    )  # fmt: skip
    group.add_argument(
        "--normalize", action="store_true",
        help="remove Markdown and zero-width characters, write amounts of money and numbers from 1,000,000 on as "
        "English words, parentheses and -- as dashes, repeated ! and ? once, and end with a full stop",
    )  # fmt: skip
    group = result.add_argument_group("output options")
    group.add_argument(
        "--ids", action="store_true", help="print the ids as decimal numbers, a line for each utterance"
    )
    add_general(result)
    return result


def main() -> int:
    """Run the command; return its exit status."""
    return edge.run(parser(), _work)


def _work(args: argparse.Namespace, log: edge.Log) -> int:
    source = edge.open_stdin()
    output = edge.Output(binary=not args.ids, force=args.force)
    if args.ids:
        for utterance in _utterances(args, source, log):
            output.write(" ".join(map(str, utterance.ids)).encode() + b"\n")
        return 0
    return _send(args, source, output, log)


def _send(args: argparse.Namespace, source: BufferedReader, output: edge.Output, log: edge.Log) -> int:
    from voxtral_pipes.formats.frame import Frame
    from voxtral_pipes.stages.base import Outgoing
    from voxtral_pipes.stages.tokenize import frames, tokenize_hello

    outgoing = Outgoing(NAME)
    # Before the vocabulary is read: the commands behind can begin to load.
    edge.write_frames([outgoing.hello(tokenize_hello(), TTS_RATE_HZ)], output)
    try:
        edge.write_frames(frames(_utterances(args, source, log), "stdin"), output)
        edge.write_frames([Frame("end")], output)
        return 0
    except (BrokenPipeError, OutputError):
        raise
    except Exception as error:
        return edge.send_failure(error, outgoing, None, output, log)


def _utterances(args: argparse.Namespace, source: BufferedReader, log: edge.Log) -> Iterator[Utterance]:
    yield from _stage(args, log).utterances(_pieces(source))


def _stage(args: argparse.Namespace, log: edge.Log) -> Tokenize:
    from voxtral_pipes.cli.model import read_vocabulary
    from voxtral_pipes.stages.tokenize import Settings, Tokenize

    vocabulary = read_vocabulary(args, log, TTS)
    vocabulary.encode("")  # its tables are made while the first line is still being written
    settings = Settings(whole=args.whole, normalize=args.normalize, max_chars=args.max_chars)
    return Tokenize(vocabulary, settings, log.note, log.warn)


def _pieces(source: BufferedReader) -> Iterator[bytes]:
    """Read what is there, however little: a line is to be spoken when it has come."""
    while piece := source.read1(READ_BYTES):
        yield piece
