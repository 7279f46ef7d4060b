"""vx-detok: token ids on stdin, text on stdout.  Latency: none."""

from __future__ import annotations

import argparse

from voxtral_pipes.cli import edge
from voxtral_pipes.cli.options import Parser, add_general, add_model
from voxtral_pipes.formats.family import ASR
from voxtral_pipes.models.transcript import FORMATS

DESCRIPTION = """\
Turn the token ids of vx-decode into text.

input   frames with token ids 'i', and 'logprob' if vx-decode was given --logprobs
output  UTF-8; each token is written at once, as far as its characters are complete

formats
  text   the words alone; a newline after each stream
  jsonl  one object a token, pads and other specials included:
         stream   number of the stream
         token    token id; null for what an unfinished character leaves at the end
         special  true if the token stands for no text; then "name" is its string
         text     the text that became complete with this token
         start    ms from the start of the audio, end 80 ms later; null without a clock
         logprob  natural logarithm of the token's probability, where the input has it
  srt vtt  subtitles: at most 2 lines of 42 columns and 6 s, cut at the ends of sentences and
         at pauses of 0.8 s; each is written as soon as it is complete
  tsv    the same cues as rows: start and end in ms, text

Several streams are written one after the other, in the order in which they were opened, and
later ones are held in memory; in srt, vtt and tsv the times of each begin at 0.  jsonl writes
all streams at once.  Control characters in the text of the model are written as they are by
text, escaped by jsonl, and left out of subtitles."""


def parser() -> Parser:
    """Describe the command line."""
    result = Parser(
        "vx-detok", DESCRIPTION, "arecord | vx-mel | vx-encode | vx-decode | vx-detok --format vtt"
    )  # fmt: skip
    add_model(result, ASR, what="where tekken.json is", tokenizer=True)
    group = result.add_argument_group("output options")
    group.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="what to write (text)")
    add_general(result, binary_output=False)
    return result


def main() -> int:
    """Run the command; return its exit status."""
    return edge.run(parser(), _work)


def _work(args: argparse.Namespace, log: edge.Log) -> int:
    from voxtral_pipes.cli.model import read_vocabulary
    from voxtral_pipes.formats.frame import FrameReader
    from voxtral_pipes.stages.detok import Detok

    source = edge.open_stdin()
    output = edge.Output(binary=False)
    stage = Detok(read_vocabulary(args, log, ASR), args.format, report=log.error, warn=log.warn)
    for text in stage.run(edge.passing_errors(FrameReader(source), log)):
        output.write(text.encode(errors="replace"))
    if not stage.failed:
        edge.refuse_more(source)
    return 1 if stage.failed else 0
