"""What is said to be heard again: sentences of a file, and strings of digits."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from voxtral_pipes.errors import BadInputError

EVERYDAY = Path(__file__).parent / "everyday.txt"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MOST_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Text:
    """One thing to say, in one line."""

    kind: str
    """`sentences` or `numbers`."""
    text: str


def sentences(file: Path) -> list[Text]:
    """Read a file with a sentence in each line; blank lines, and those that begin with #, are no sentences.

    Raises:
        BadInputError: it cannot be read, is not UTF-8, or holds no sentence.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise BadInputError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInputError(f"{file}: not UTF-8") from error
    found = [Text("sentences", " ".join(line.split())) for line in lines if not line.startswith("#")]
    found = [one for one in found if one.text]
    if not found:
        raise BadInputError(f"{file}: there is no sentence in it")
    return found


def numbers(amount: int, seed: int) -> list[Text]:
    """Draw strings of one to six digits, written as words; the same seed gives the same ones."""
    draw = random.Random(f"numbers {seed}")
    return [
        Text("numbers", " ".join(draw.choices(DIGITS, k=draw.randint(1, MOST_DIGITS)))) for _ in range(amount)
    ]
