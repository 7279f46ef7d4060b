"""What the pieces of one file are called, and their order (formats.md sections 3.1 to 3.4)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from string import ascii_lowercase

from voxtral_pipes.errors import BadModelError

MANIFEST = "manifest.json"
RAW_NAME = re.compile(r"shard-[a-z]+")
_PART = re.compile(
    r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?P<kind>gguf|safetensors)", re.DOTALL
)


def names_in(home: Path) -> list[str]:
    """Return all names in a directory.

    Raises:
        OSError: it cannot be read.
    """
    # Bytewise order is the order in which split(1) numbers raw pieces, also past shard-yz.
    return sorted(entry.name for entry in home.iterdir())


def raw_paths(home: Path, names: Iterable[str]) -> tuple[Path, ...]:
    """Return the raw pieces among the `names_in` a directory, in order."""
    return tuple(home / name for name in names if RAW_NAME.fullmatch(name))


def raw_name(index: int) -> str:
    """Return the name that split(1) gives piece `index`: shard-aa to shard-yz, then shard-zaaa to shard-zyzz..."""
    digits, before = 2, ""
    while index >= 25 * 26 ** (digits - 1):
        index -= 25 * 26 ** (digits - 1)
        digits, before = digits + 1, before + "z"
    return f"shard-{before}{letters(index, digits)}"


def letters(index: int, digits: int) -> str:
    """Return a number in letters, as `split -a DIGITS` does."""
    return "".join(ascii_lowercase[index // 26**place % 26] for place in reversed(range(digits)))


def part_of(name: str, *kinds: str) -> re.Match[str] | None:
    """Return `stem`, `number` (from 1), `count` and `kind` if the name is that of a part: of a gguf, or of `kinds`."""
    part = _PART.fullmatch(name)
    return part if part and part["kind"] in (kinds or ("gguf",)) else None


def part_name(stem: str, index: int, count: int) -> str:
    """Return the name of part `index` (from 0) of a gguf-split set."""
    return f"{stem}-{index + 1:05d}-of-{count:05d}.gguf"


def part_paths(home: Path, names: Collection[str], stem: str, count: int) -> tuple[Path, ...]:
    """Return all parts of a gguf-split set in order.

    Raises:
        BadModelError: one is not among the `names` in the directory.
    """
    wanted = [part_name(stem, index, count) for index in range(count)]
    for name in wanted:
        if name not in names:
            raise BadModelError(f"{home / name} is missing, one of the {count} parts of its set")
    return tuple(home / name for name in wanted)
