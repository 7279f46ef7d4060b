"""Text made easier to speak: what `vx-tokenize --normalize` does (tts.md section 3, the demo normaliser).

The model needs none of it and its serving path does none; it is for text that was written to be looked at.
Numbers become English words whatever the language of the text.
"""

from __future__ import annotations

import re

_ZERO_WIDTH = re.compile("[\u200b-\u200d\u2060\ufeff]")
# Every repeated class below stops at the character that begins the next match, so that no input is quadratic.
_MARKDOWN: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"^[ \t]*(?:```|~~~)[^\n]*$", re.MULTILINE), ""),
    (re.compile(r"^[ \t]*([-*_])(?:[ \t]*\1){2,}[ \t]*$", re.MULTILINE), ""),
    (re.compile(r"^[ \t]*(?:>[ \t]?)+", re.MULTILINE), ""),
    (re.compile(r"^[ \t]*#{1,6}[ \t]+", re.MULTILINE), ""),
    (re.compile(r"^[ \t]*[-*+][ \t]+", re.MULTILINE), ""),
    (re.compile(r"!?\[([^\[\]\n]*)\]\([^()\n]*\)"), r"\1"),
    (re.compile(r"`([^`\n]+)`"), r"\1"),
    (re.compile(r"\*\*(?!\s)([^*\n]+)(?<!\s)\*\*"), r"\1"),
    (re.compile(r"(?<!\w)__(?!\s)([^_\n]+)(?<!\s)__(?!\w)"), r"\1"),
    (re.compile(r"\*(?!\s)([^*\n]+)(?<!\s)\*"), r"\1"),
    (re.compile(r"(?<!\w)_(?!\s)([^_\n]+)(?<!\s)_(?!\w)"), r"\1"),
    (re.compile(r"~~([^~\n]+)~~"), r"\1"),
)
# Possessive throughout: "$5.55M" must not be read as "$5.55" or "$5", nor "$1,2345" as "$1,234".
_NUMBER = r"(?:\d{1,3}(?:,\d{3})++|\d++)(?:\.\d++)?+"
_CURRENCY = re.compile(
    rf"(?<!\w)([$€£]) ?({_NUMBER})(?:[ ](thousand|million|billion|trillion)\b)?+(?![\w,.–-]?\w)"
)
_GROUPED = re.compile(r"(?<![\w.,$€£])\d{1,3}(?:,\d{3}){2,}+(?:\.\d++)?+(?![,.–-]?\w)")
_UNITS = {"$": ("dollar", "cent"), "€": ("euro", "cent"), "£": ("pound", "pence")}
_REPEATED = re.compile(r"[!?]{2,}")
_LARGEST = 10**15

_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = ("trillion", 10**12), ("billion", 10**9), ("million", 10**6), ("thousand", 1000)


def normalize(text: str) -> str:
    """Return the text without markup and zero-width characters, numbers and signs as they are spoken."""
    text = _ZERO_WIDTH.sub("", text).replace("\r\n", "\n")
    for pattern, kept in _MARKDOWN:
        text = pattern.sub(kept, text)
    text = " ".join(text.split())
    text = _CURRENCY.sub(_money, text)
    text = _GROUPED.sub(lambda match: _spoken(match[0]) or match[0], text)
    text = _dashes(text)
    text = _REPEATED.sub(lambda match: "".join(dict.fromkeys(match[0])), text)
    return _ended(" ".join(text.split()))


def words_of(number: int) -> str:
    """Write a number below 10^15 in English words.

    Raises:
        ValueError: it is negative or too large.
    """
    if not 0 <= number < _LARGEST:
        raise ValueError(f"{number} is not between 0 and {_LARGEST}")
    parts = []
    for name, scale in _SCALES:
        if number >= scale:
            parts.append(f"{_below_thousand(number // scale)} {name}")
            number %= scale
    if number or not parts:
        parts.append(_below_thousand(number))
    return " ".join(parts)


def _below_thousand(number: int) -> str:
    if number >= 100:
        rest = f" {_below_thousand(number % 100)}" if number % 100 else ""
        return f"{_SMALL[number // 100]} hundred{rest}"
    if number < 20:
        return _SMALL[number]
    return _TENS[number // 10 - 2] + (f"-{_SMALL[number % 10]}" if number % 10 else "")


def _parts(number: str) -> tuple[int, str] | None:
    """Return the whole part of a number and the digits behind its point, or None where it is too large."""
    before, _, behind = number.replace(",", "").partition(".")
    # Counted first: Python refuses to convert thousands of digits.
    if len(before) > 15 or not before.isascii() or not behind.isascii():
        return None
    return int(before), behind


def _spoken(number: str) -> str | None:
    parts = _parts(number)
    if parts is None:
        return None
    behind = "".join(f" {_SMALL[int(digit)]}" for digit in parts[1])
    return words_of(parts[0]) + (f" point{behind}" if behind else "")


def _money(match: re.Match[str]) -> str:
    """Speak an amount; one that is too large to speak stays as it is written."""
    sign, number, scale = match.groups()
    parts = _parts(number)
    if parts is None:
        return match[0]
    amount, behind = parts
    unit, cent = _UNITS[sign]
    if scale or len(behind) > 2:
        return f"{_spoken(number)} {f'{scale} ' if scale else ''}{unit}s"
    cents = int(behind.ljust(2, "0")) if behind else 0
    said = [_counted(amount, unit)] if amount or not cents else []
    return " and ".join(said + ([_counted(cents, cent)] if cents else []))


def _counted(count: int, unit: str) -> str:
    if unit == "pence":
        return f"{words_of(count)} {'penny' if count == 1 else unit}"
    return f"{words_of(count)} {unit}{'' if count == 1 else 's'}"


_DASHES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-{2,}"), "—"),
    (re.compile(r" ?\("), " — "),
    (re.compile(r"\) ?"), " — "),
    (re.compile(r"—(?: ?—)+"), "—"),
    # No dash is heard before a stop, at the start, or at the end.
    (re.compile(r" ?— ?(?=[.,;:!?…])"), ""),
    (re.compile(r"^ ?— ?| ?— ?$"), ""),
)


def _dashes(text: str) -> str:
    for pattern, new in _DASHES:
        text = " ".join(pattern.sub(new, text).split())
    return text


def _ended(text: str) -> str:
    """Let the text end like a sentence; one that says nothing is empty."""
    closers = "\"'”’»)]}」』"
    said = text.rstrip(closers)
    if said.endswith(tuple(".!?…。！？।॥؟۔")):
        return text
    text = text.rstrip(",;: ")
    return f"{text}." if text else ""
