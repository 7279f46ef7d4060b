"""The command line of vx-shard: four subcommands, each with its own help.

No import of numpy or torch: `--help` must start at once.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping

from voxtral_pipes import __version__
from voxtral_pipes.cli.options import Parser, add_general, given, given_path

NAME = "vx-shard"
SIZE = "512M"
UNITS: Mapping[str, int] = {
    "": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30,
    "kb": 10**3, "mb": 10**6, "gb": 10**9,
}  # fmt: skip

DESCRIPTION = """\
Cut a model file into pieces and join them again to the same bytes; say what it holds, and whether
all of it is there.

  split   a file to pieces: shard-aa, shard-ab, ... of 512 MiB, or GGUF parts
  join    pieces to the file they were
  verify  is everything there, and what it should be?
  info    what is in it: family, tensors, types, sizes

All commands take pieces as they are; nothing needs to be joined to be used."""


class _Command(Parser):
    """The parser of one subcommand; its errors point to its own help, and its manual is that of the whole."""

    def __init__(self, prog: str, description: str, example: str, **_: object) -> None:
        super().__init__(prog, description, example)
        self.epilog = f"example:\n  {example}\n\nman {NAME} says more."


def describe() -> Parser:
    """Describe the command line."""
    result = Parser(NAME, DESCRIPTION, "vx-shard split voxtral-tts-q4.gguf shards/")
    _add_help(result)
    commands = result.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True, parser_class=_Command
    )
    _split_parser(commands)
    _join_parser(commands)
    _verify_parser(commands)
    _info_parser(commands)
    return result


def _add_help(result: Parser) -> None:
    group = result.add_argument_group("general options")
    group.add_argument("-h", "--help", action="help", help="show this help and exit")
    group.add_argument("--version", action="version", version=f"{NAME} {__version__}")


def _split_parser(commands: argparse._SubParsersAction[_Command]) -> None:
    result = commands.add_parser(
        "split",
        help="cut a file into pieces",
        description="Cut a file into pieces. Existing files are never overwritten, and a failure leaves none.",
        example="vx-shard split --manifest voxtral-tts-q4.gguf shards/",
    )
    result.add_argument(
        "source", type=given, metavar="IN", help="the file to cut; - is standard input (--style raw only)"
    )
    result.add_argument(
        "out", type=given, metavar="OUT",
        help="raw: the directory for the pieces, which is made; gguf-split: what the names of the parts begin with, or "
        "a directory",
    )  # fmt: skip
    group = result.add_argument_group("split options")
    group.add_argument(
        "--style", choices=("raw", "gguf-split"), default="raw",
        help="raw: pieces of any file, shard-aa and so on, as split(1) makes them; gguf-split: a GGUF to parts "
        "PREFIX-00001-of-0000N.gguf, each a GGUF of its own, no tensor cut (raw)",
    )  # fmt: skip
    group.add_argument(
        "--size", type=byte_count, metavar="SIZE", default=SIZE,
        help="bytes of a piece, at most; K, M and G (or KiB, MiB, GiB) count by 1024, KB, MB and GB by 1000 "
        f"({SIZE})",
    )  # fmt: skip
    group.add_argument(
        "--manifest", action="store_true",
        help="write manifest.json beside the pieces: their sizes and SHA-256, by which join and verify tell every "
        "change",
    )  # fmt: skip
    group.add_argument(
        "--allow-oversize", action="store_true",
        help="gguf-split: let a tensor that is larger than --size be a part by itself",
    )  # fmt: skip
    add_general(result, binary_output=False)


def _join_parser(commands: argparse._SubParsersAction[_Command]) -> None:
    result = commands.add_parser(
        "join",
        help="make the file that was cut",
        description="Join pieces to the file they were cut from.",
        example="vx-shard join shards/ voxtral-tts-q4.gguf",
    )
    _add_pieces(result, "the pieces: their directory, any one of them, or their manifest")
    result.add_argument("out", type=given, metavar="OUT", help="the file to make; - is standard output")
    add_general(result, what="data")


def _verify_parser(commands: argparse._SubParsersAction[_Command]) -> None:
    result = commands.add_parser(
        "verify",
        help="check that everything is there",
        description="Check names, sizes, headers and tables; with --deep every byte.",
        example="vx-shard verify --deep shards/",
    )
    _add_pieces(result, "a model file, a directory, any piece, or a manifest")
    group = result.add_argument_group("verify options")
    group.add_argument(
        "--deep", action="store_true",
        help="read everything: print the SHA-256 of each file, as sha256sum(1) does, compare them with the manifest, "
        "and check that floats and the scales of blocks are finite",
    )  # fmt: skip
    add_general(result, binary_output=False)


def _info_parser(commands: argparse._SubParsersAction[_Command]) -> None:
    result = commands.add_parser(
        "info",
        help="say what is in it",
        description="Print family, form, sizes, types and metadata of a model.",
        example="vx-shard info --tensors shards/",
    )
    _add_pieces(result, "a model file, a directory, any piece, or a manifest")
    group = result.add_argument_group("info options")
    group.add_argument("--tensors", action="store_true", help="list every tensor: name, type, shape, bytes")
    group.add_argument("--json", action="store_true", help="print one JSON object")
    add_general(result, binary_output=False)


def _add_pieces(result: Parser, what: str) -> None:
    result.add_argument("source", type=given_path, metavar="IN", help=what)


def byte_count(text: str) -> int:
    """Parse a number of bytes with a unit; 512M is split(1)'s, and so by 1024."""
    match = re.fullmatch(r"(\d{1,19})([a-z]*)", text.lower(), re.ASCII)
    count = int(match[1]) * UNITS.get(match[2], 0) if match else 0
    if not 1 <= count < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, as 512M, 512MiB, 500MB or 1G is")
    return count
