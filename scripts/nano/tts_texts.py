"""What the nano synthesis model learns to say: sentences, counting words, letters, and words in no order."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from nano import tts_patterns
from nano.words import DIGITS, OTHERS, WORDS

SENTENCES, COMMON = (
    tuple((Path(__file__).parent / name).read_text(encoding="utf-8").splitlines())
    for name in ("tts_sentences.txt", "tts_words.txt")
)
"""Whole sentences; common words, the most frequent first (after the lists of wordfreq 3.1.1, then things of a day)."""
TEENS = (
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
LARGEST = 9999


@dataclass(frozen=True, slots=True)
class Text:
    """One thing to say."""

    text: str
    kind: str
    split: str


def number_words(number: int) -> str:
    """Spell a number from 0 to 9999: 1234 is `one thousand two hundred thirty four`.

    Raises:
        ValueError: it is outside of that.
    """
    if not 0 <= number <= LARGEST:
        raise ValueError(f"{number} is not from 0 to {LARGEST}")
    thousands, below = divmod(number, 1000)
    hundreds, rest = divmod(below, 100)
    words = [f"{DIGITS[thousands]} thousand"] if thousands else []
    words += [f"{DIGITS[hundreds]} hundred"] if hundreds else []
    if rest >= 20:
        words.append(TENS[rest // 10 - 2])
        rest %= 10
    if rest >= 10:
        words.append(TEENS[rest - 10])
    elif rest or not words:
        words.append(DIGITS[rest])
    return " ".join(words)


def texts(amount: int, seed: int) -> list[Text]:
    """Return everything that is fixed, and `amount` drawn texts; without repetition, in a fixed order.

    One drawn text in forty, and one sentence in twenty, are kept for measuring.
    """
    found = {text: Text(text, kind, "train") for text, kind in _fixed()}
    for i, sentence in enumerate(SENTENCES):
        found.setdefault(sentence, Text(sentence, "sentence", "dev" if i % 20 == 19 else "train"))
    draw = random.Random(f"texts {seed}")
    spoken = sorted({word for line in SENTENCES for word in re.findall(r"[A-Za-z']+", line)} - {"o'clock"})
    words = list(dict.fromkeys((*COMMON, *spoken, *WORDS, *OTHERS, *DAYS, *MONTHS)))
    # Frequent words come more often, but none so rarely that it could not be learnt.
    weights = list(accumulate((rank + 20) ** -0.5 for rank in range(len(words))))
    for i in range(amount):
        text, kind = _drawn(draw, words, weights)
        found.setdefault(text, Text(text, kind, "dev" if i % 40 == 39 else "train"))
    return list(found.values())


def _fixed() -> Iterator[tuple[str, str]]:
    for number in range(101):
        yield number_words(number), "number"
        yield str(number), "number"
    for number in (*range(200, 1000, 100), *range(1000, LARGEST, 1000)):
        yield number_words(number), "number"
    for kind, words in (("letter", LETTERS), ("day", DAYS), ("month", MONTHS), ("word", (*WORDS, *OTHERS))):
        for word in words:
            yield word, kind


def _drawn(draw: random.Random, words: list[str], weights: list[float]) -> tuple[str, str]:
    """Draw a number, a row of digits, a row of letters, a date, a sentence, or a few words (weights are summed up)."""
    choice = draw.random()
    if choice < 0.14:
        number = draw.randint(100, draw.choice((999, LARGEST)))
        return (number_words(number) if draw.random() < 0.7 else str(number)), "number"
    if choice < 0.26:
        return " ".join(draw.choices(DIGITS, k=draw.randint(2, 6))), "digits"
    if choice < 0.3:
        return " ".join(draw.choices(LETTERS, k=draw.randint(2, 5))), "letters"
    if choice < 0.33:
        return f"{draw.choice(DAYS)}, {draw.choice(MONTHS)} {number_words(draw.randint(1, 31))}", "date"
    if choice < 0.63:
        return tts_patterns.sentence(draw), "pattern"
    return " ".join(draw.choices(words, cum_weights=weights, k=draw.randint(2, 7))), "words"
