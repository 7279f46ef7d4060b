"""The options every command shares, declared once: help, man pages and defaults come from here.

No import of numpy or torch: `--help` must start at once.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from voxtral_pipes import __version__
from voxtral_pipes.errors import UsageError
from voxtral_pipes.formats.family import MODEL_VARIABLE


class Parser(argparse.ArgumentParser):
    """argparse with exact option names only and one-line errors."""

    _write: Callable[[bytes], object]

    @classmethod
    def print_by(cls, write: Callable[[bytes], object]) -> None:
        """Say how help and version are printed, those of subcommands too; argparse would not notice a full disk."""
        cls._write = staticmethod(write)

    def __init__(self, prog: str, description: str, example: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"example:\n  {example}\n\nman {prog} says more.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.example = example

    def _print_message(self, message: str, file: object = None) -> None:
        """Print help or version."""
        self._write(message.encode())

    def parse(self) -> argparse.Namespace:
        """Parse the command line; argparse itself would take a `--` with nothing behind it for an operand."""
        known, rest = self.parse_known_args()
        if "--" in rest:
            rest.remove("--")
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return known

    def error(self, message: str) -> NoReturn:
        """Turn a parse error into the one line that the edge prints."""
        raise UsageError(f"{message} (try {self.prog} --help)")


def add_general(parser: Parser, *, binary_output: bool = True, what: str = "frames") -> None:
    """Add the options that every command has; `what` is written where the output is binary."""
    group = parser.add_argument_group("general options")
    if binary_output:
        group.add_argument(
            "-f", "--force", action="store_true", help=f"write binary {what} even if stdout is a terminal"
        )
    group.add_argument("-q", "--quiet", action="store_true", help="print errors only (VX_LOG=quiet)")
    group.add_argument(
        "-v", "--verbose", action="store_true", help="say what is chosen and done (VX_LOG=verbose)"
    )
    group.add_argument("-h", "--help", action="help", help="show this help and exit")
    group.add_argument("--version", action="version", version=f"{parser.prog} {__version__}")


def add_model(parser: Parser, family: str, *, what: str, tokenizer: bool = False) -> None:
    """Add -m, which names the model; `what` says what is taken from it."""
    group = parser.add_argument_group("model options")
    group.add_argument(
        "-m",
        "--model",
        type=given,
        metavar="PATH",
        help=f"{what}: a model directory, a .gguf file, a directory of shards, the name of a model in the cache, "
        f"or nano or nano-q4, the embedded ones (else ${MODEL_VARIABLE[family]}, else the one model in the "
        "cache, else nano)",
    )
    if tokenizer:
        group.add_argument(
            "--tokenizer",
            type=given,
            metavar="FILE",
            help="tekken.json to use instead of the one beside the weights",
        )


AUTO_DTYPE = (
    "f32 while the weights of the stage are small (up to 256 MiB, packed ones counted as bf16), else bf16"
)


def add_device(parser: Parser, *, auto_dtype: str = AUTO_DTYPE) -> None:
    """Add --device and --dtype; `auto_dtype` says what auto means for the latter."""
    group = parser.add_argument_group("device options")
    group.add_argument(
        "--device",
        metavar="DEVICE",
        default=os.environ.get("VX_DEVICE") or "auto",
        help="where to compute: auto, cpu, cuda or cuda:N; auto takes CUDA where it is found (VX_DEVICE)",
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "f32", "bf16"),
        default=os.environ.get("VX_DTYPE") or "auto",
        help=f"arithmetic; auto is {auto_dtype} (VX_DTYPE)",
    )


def given(text: str) -> str:
    """Parse a name that must not be empty: a variable that was never set is no wish for the default."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name names nothing")
    return text


def given_path(text: str) -> Path:
    """Parse a path that must not be empty: Path("") is the present directory."""
    return Path(given(text))


def positive(text: str) -> int:
    """Parse an option that counts something."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return value


MAX_GAP_MS = 3_600_000


def gap(text: str) -> int:
    """Parse milliseconds of silence, up to an hour."""
    value = natural(text)
    if value > MAX_GAP_MS:
        raise argparse.ArgumentTypeError(f"{text} ms are more than an hour ({MAX_GAP_MS})")
    return value


def folder(text: str) -> Path:
    """Parse the name of a directory."""
    return Path(given(text))


def natural(text: str) -> int:
    """Parse an option that may be zero."""
    if text.strip() == "0":
        return 0
    try:
        return positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more") from error
