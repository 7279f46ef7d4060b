"""Read JSON settings (params.json, config.json, an index): a wrong value is named where it stands."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from voxtral_pipes.errors import BadModelError

MAX_JSON_BYTES = 256 << 20


def parse_json(data: bytes, label: str) -> dict[str, Any]:
    """Parse one JSON map.

    Raises:
        BadModelError: it is not valid UTF-8 JSON, holds a key twice, or is not a map.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BadModelError(f"{label} is not valid JSON ({error!s:.120})") from error
    if not isinstance(value, dict):
        raise BadModelError(f"{label} is not a JSON map")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"{twice!r:.80} is there twice")
    return entries


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON map from a file of up to 256 MiB.

    Raises:
        BadModelError: the file cannot be read, is too large, or is no JSON map.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise BadModelError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_JSON_BYTES:
        raise BadModelError(f"{path} is larger than {MAX_JSON_BYTES} bytes")
    return parse_json(data, path.name)


class Settings:
    """One map of a settings file, with typed access; every error names the file and the key."""

    def __init__(self, values: Mapping[str, Any], label: str) -> None:
        self._values = values
        self.label = label

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read a whole settings file (see `read_json` for what it raises)."""
        return cls(read_json(path), f"{path.name}: ")

    @property
    def keys(self) -> Iterable[str]:
        """The keys of this map."""
        return self._values.keys()

    def has(self, key: str) -> bool:
        """Whether the key is there and is not null."""
        return self._values.get(key) is not None

    def fail(self, key: str, what: str) -> BadModelError:
        """Make the error for a value that cannot be used."""
        return BadModelError(f"{self.label}{key} {what}")

    def _get(self, key: str) -> Any:
        value = self._values.get(key)
        if value is None:
            raise self.fail(key, "is missing")
        return value

    def section(self, key: str) -> Settings:
        """Return the map under `key`."""
        value = self._get(key)
        if not isinstance(value, dict):
            raise self.fail(key, "is not a map")
        return Settings(value, f"{self.label}{key}.")

    def sections(self, key: str) -> list[Settings]:
        """Return the maps in the list under `key`."""
        value = self._get(key)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.fail(key, "is not a list of maps")
        return [Settings(item, f"{self.label}{key}[{i}].") for i, item in enumerate(value)]

    def text(self, key: str) -> str:
        """Return a string."""
        value = self._get(key)
        if not isinstance(value, str):
            raise self.fail(key, f"is {value!r:.40}, not a string")
        return value

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = 2**31 - 1) -> int:
        """Return a whole number of `least` to `most`; some files hold it as a string (asr.md section 13)."""
        if default is not None and not self.has(key):
            return default
        value = self._get(key)
        try:
            number = int(value) if isinstance(value, str) else value
            if isinstance(number, bool) or not isinstance(number, int | float) or number != int(number):
                raise ValueError
        except (ValueError, OverflowError):
            raise self.fail(key, f"is {value!r:.40}, not a whole number") from None
        if number < least:
            raise self.fail(key, f"is {value!r:.40}; a number of {least} or more is needed")
        if number > most:
            raise self.fail(key, f"is {value!r:.40}; a number of {most} or less is needed")
        return int(number)

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number."""
        if default is not None and not self.has(key):
            return default
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
            raise self.fail(key, f"is {value!r:.40}, not a number")
        try:
            return float(value)
        except OverflowError:
            raise self.fail(key, "is too large") from None

    def positive(self, key: str, default: float | None = None) -> float:
        """Return a finite number above zero."""
        value = self.number(key, default)
        if value <= 0:
            raise self.fail(key, f"is {value!r:.40}; a number above 0 is needed")
        return value

    def expect(self, key: str, *allowed: object) -> None:
        """Check that a setting, where it is present, has a value that this program implements."""
        if self.has(key) and self._values[key] not in allowed:
            known = " and ".join(map(repr, allowed)) + (" is" if len(allowed) == 1 else " are")
            raise self.fail(key, f"is {self._values[key]!r:.40}; only {known} supported")
