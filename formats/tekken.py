"""tekken.json: the vocabulary that turns token ids into bytes and text into token ids.

Layout: formats.md section 5 and asr.md section 12.  Reading takes json and base64 alone; tiktoken is imported
by `Tekken.encode` only.  Parsing the published 15 MB file takes some 0.3 s, so the result is kept under
`$XDG_CACHE_HOME/voxtral-pipes/tekken/` (1.4 MB, read in 4 ms); a cache that is missing, stale, corrupt or
unwritable changes nothing but the time.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import os
import struct
import sys
import time
import zlib
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from voxtral_pipes.errors import BadModelError, NoModelError
from voxtral_pipes.formats.atomic import replace_file

if TYPE_CHECKING:
    import tiktoken

MAX_FILE_BYTES = 64 << 20
"""Published files have 15 to 19 MB; JSON may take twenty times its size in memory."""
MAX_SPECIAL = 1 << 20

BUILTIN_SPECIAL = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
    "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
"""Ids 0..19 of files without `special_tokens` (mistral-common, Tekkenizer.DEPRECATED_SPECIAL_TOKENS)."""

N_SPECIAL = 1000
"""Ids below this are special in the published files."""
PUBLISHED_SPECIAL: Mapping[str, int] = {
    "<unk>": 0, "<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4, "<pad>": 11, "[AUDIO]": 24,
    "[BEGIN_AUDIO]": 25, "[STREAMING_PAD]": 32, "[STREAMING_WORD]": 33, "[REPEAT_AUDIO_TEXT]": 35,
    "[NEXT_AUDIO_TEXT]": 36,
}  # fmt: skip
"""Special tokens of the published files: a file may leave these names out (formats.md section 5)."""

_CACHE_MAGIC = b"VXTEKKEN"
_CACHE_VERSION = 1
_CACHE_HEAD = struct.Struct("<8sIII")  # magic, version, bytes of JSON, CRC-32 of all that follows
_CACHE_FROM_BYTES = 1 << 20  # parsing less takes no noticeable time
_CACHE_FILES = 8
_Source = list[str | int]
"""Real path, size, modification time in ns, inode: while they stay the same, so does the content."""
_SETTLED_NS = 2 * 10**9  # a file changed again within one tick of its clock would look unchanged


class Tekken:
    """One vocabulary: ids 0..n_special-1 are special, id >= n_special is the bytes of rank id - n_special."""

    def __init__(
        self,
        name: str,
        pieces: bytes,
        bounds: array[int],
        special: Mapping[str, int],
        n_special: int,
        pattern: str,
        audio: Mapping[str, Any],
    ) -> None:
        self.name = name
        """The file it came from, for messages."""
        self.n_special = n_special
        self.vocab_size = n_special + len(bounds) - 1
        self.pattern = pattern
        self.audio = audio
        """The `audio` section as it stands in the file; empty where there is none."""
        self._pieces = pieces
        self._bounds = bounds
        self._special = special
        self._names = {rank: token for token, rank in special.items()}
        self._encoding: tiktoken.Encoding | None = None

    @classmethod
    def read(cls, path: Path, note: Callable[[str], None] = lambda line: None) -> Tekken:
        """Read a tekken.json, from the cache where that is fresh; `note` gets the lines for -v.

        Raises:
            NoModelError: there is no such file.
            BadModelError: it cannot be read or is not a tekken.json.
        """
        try:
            with path.open("rb") as file:
                before = os.fstat(file.fileno())
                source: _Source = [os.path.realpath(path), before.st_size, before.st_mtime_ns, before.st_ino]
                cached = _cache_file(source) if before.st_size >= _CACHE_FROM_BYTES else None
                if cached is not None and (found := _read_cache(cached, source, str(path), note)) is not None:
                    return found
                raw = file.read(MAX_FILE_BYTES + 1)
                after = os.fstat(file.fileno())
        except FileNotFoundError as error:
            raise NoModelError(f"{path}: there is no such file") from error
        except OSError as error:
            raise BadModelError(f"{path}: {error.strerror or error}") from error
        tekken = cls.parse(raw, str(path))
        settled = time.time_ns() - after.st_mtime_ns > _SETTLED_NS
        if cached is not None and settled and source[1:3] == [after.st_size, after.st_mtime_ns]:
            tekken._write_cache(cached, source, note)
        return tekken

    @classmethod
    def parse(cls, raw: bytes, name: str = "tekken.json") -> Tekken:
        """Parse the bytes of a tekken.json; `name` begins the messages.

        Raises:
            BadModelError: it is malformed.
        """
        if len(raw) > MAX_FILE_BYTES:
            raise BadModelError(f"{name}: over {MAX_FILE_BYTES >> 20} MiB, which no tekken.json has")
        try:
            top = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise BadModelError(
                f"{name}: not valid JSON ({str(error)[:120] or type(error).__name__})"
            ) from error
        if not isinstance(top, dict) or not isinstance(top.get("config"), dict) or "vocab" not in top:
            raise BadModelError(f"{name}: not a tekken.json: it lacks 'config' or 'vocab'")
        config, audio = top["config"], top.get("audio")
        n_special = _count(config, "default_num_special_tokens", name)
        n_pieces = _count(config, "default_vocab_size", name) - n_special
        pattern = config.get("pattern")
        if not isinstance(pattern, str):
            raise BadModelError(f"{name}: config.pattern is missing or not a string")
        if audio is not None and not isinstance(audio, dict):
            raise BadModelError(f"{name}: 'audio' is not an object")
        pieces, bounds = _pieces(top["vocab"], n_pieces, name)
        special = _special_names(top.get("special_tokens"), n_special, name)
        return cls(name, pieces, bounds, special, n_special, pattern, audio or {})

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of an id; a special id has none.

        Raises:
            ValueError: the id is not in the vocabulary.
        """
        rank = token - self.n_special
        if token < 0 or token >= self.vocab_size:
            raise ValueError(f"token id {token} is not in the vocabulary of {self.vocab_size}")
        return self._pieces[self._bounds[rank] : self._bounds[rank + 1]] if rank >= 0 else b""

    def special(self, name: str) -> int:
        """Return the id of a special token by its string, as published where the file does not name it.

        Raises:
            BadModelError: there is no such special token.
        """
        token = self._special.get(name, PUBLISHED_SPECIAL.get(name))
        if token is None or token >= self.n_special:
            raise BadModelError(f"{self.name}: there is no special token {name!r}")
        return token

    def special_name(self, token: int) -> str:
        """Return the string of a special id: the file's, else the published one, else `<SPECIAL_n>`."""
        published = next((name for name, number in PUBLISHED_SPECIAL.items() if number == token), None)
        return self._names.get(token) or published or f"<SPECIAL_{token}>"

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, no specials added; special strings in it are ordinary text.

        Lone surrogates count as U+FFFD.  The first call imports tiktoken and builds its tables (about 0.3 s).

        Raises:
            BadModelError: the pattern of the file is not a regular expression.
        """
        if self._encoding is None:
            self._encoding = self._build()
        return [rank + self.n_special for rank in self._encoding.encode_ordinary(text)]

    def _build(self) -> tiktoken.Encoding:
        import tiktoken

        ranks = {self.token_bytes(self.n_special + r): r for r in range(self.vocab_size - self.n_special)}
        try:
            return tiktoken.Encoding("tekken", pat_str=self.pattern, mergeable_ranks=ranks, special_tokens={})
        except ValueError as error:
            raise BadModelError(
                f"{self.name}: config.pattern is not usable ({str(error)[:120]!r})"
            ) from error

    def _write_cache(self, path: Path, source: _Source, note: Callable[[str], None]) -> None:
        meta = {
            "source": source, "n_special": self.n_special, "n_pieces": self.vocab_size - self.n_special,
            "pattern": self.pattern, "special": self._special, "audio": self.audio,
        }  # fmt: skip
        head = json.dumps(meta).encode()
        body = head + _little(self._bounds).tobytes() + self._pieces

        def write(file: BinaryIO) -> None:
            file.write(_CACHE_HEAD.pack(_CACHE_MAGIC, _CACHE_VERSION, len(head), zlib.crc32(body)) + body)

        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(path, write)
            kept = sorted(path.parent.glob("*.bin"), key=lambda file: file.stat().st_mtime_ns)
            for old in kept[:-_CACHE_FILES]:
                old.unlink(missing_ok=True)
        except (OSError, ValueError) as error:
            note(f"{path}: the tokenizer cache was not written ({error})")


def _count(config: Mapping[str, Any], key: str, name: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadModelError(f"{name}: config.{key} is {value!r:.40}, not a number of tokens")
    return value


def _pieces(vocab: Any, n_pieces: int, name: str) -> tuple[bytes, array[int]]:
    """Join the bytes of the first `n_pieces` entries; entry r is `[bounds[r]:bounds[r + 1]]`."""
    if not isinstance(vocab, list):
        raise BadModelError(f"{name}: 'vocab' is not a list")
    if not 256 <= n_pieces <= len(vocab):
        raise BadModelError(
            f"{name}: config asks for {n_pieces} text tokens; there are {len(vocab)}, and any text needs 256"
        )
    found: dict[bytes, int] = {}
    bounds = array("I", [0])
    end = 0
    for rank in range(n_pieces):
        entry = vocab[rank]
        if not isinstance(entry, dict) or type(entry.get("rank")) is not int or entry["rank"] != rank:
            raise BadModelError(f"{name}: vocab[{rank}] does not have the rank {rank}")
        try:
            piece = binascii.a2b_base64(entry["token_bytes"], strict_mode=True)
        except (ValueError, TypeError, KeyError) as error:
            raise BadModelError(f"{name}: the token_bytes of rank {rank} are not base64") from error
        if not piece or (rank < 256 and piece != bytes([rank])) or found.setdefault(piece, rank) != rank:
            raise BadModelError(
                f"{name}: the bytes of rank {rank} are empty, repeated, or not the byte {rank}"
            )
        end += len(piece)
        bounds.append(end)
    return b"".join(found), bounds


def _special_names(entries: Any, n_special: int, name: str) -> dict[str, int]:
    """Map the names that the file gives, or the built-in ones, to ids."""
    if n_special > MAX_SPECIAL:
        raise BadModelError(f"{name}: {n_special} special tokens are more than {MAX_SPECIAL}")
    if entries is None:
        return {token: rank for rank, token in enumerate(BUILTIN_SPECIAL[:n_special])}
    if not isinstance(entries, list):
        raise BadModelError(f"{name}: 'special_tokens' is not a list")
    special: dict[str, int] = {}
    ranks: set[int] = set()
    for position, entry in enumerate(entries):
        token, rank = (entry.get("token_str"), entry.get("rank")) if isinstance(entry, dict) else (None, None)
        if not isinstance(token, str) or type(rank) is not int or not 0 <= rank < n_special:
            raise BadModelError(
                f"{name}: special_tokens[{position}] lacks token_str or a rank below {n_special}"
            )
        if token in special or rank in ranks:
            raise BadModelError(f"{name}: special token {token!r:.40} or its rank {rank} is there twice")
        special[token] = rank
        ranks.add(rank)
    return special


def _cache_file(source: _Source) -> Path | None:
    """Return where the parsed form of a file is kept: one name for each real path, or None without a home."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the XDG specification says to ignore relative ones
        base = Path(os.environ.get("HOME", ""), ".cache")
    if not base.is_absolute():
        return None
    key = hashlib.sha256(os.fsencode(str(source[0]))).hexdigest()[:32]
    return base.joinpath("voxtral-pipes", "tekken", f"{key}.bin")


def _read_cache(path: Path, source: _Source, name: str, note: Callable[[str], None]) -> Tekken | None:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        note(f"{path}: the tokenizer cache was not read ({error.strerror})")
        return None
    try:
        magic, version, head_bytes, crc = _CACHE_HEAD.unpack_from(raw)
        if magic != _CACHE_MAGIC or version != _CACHE_VERSION or zlib.crc32(raw[_CACHE_HEAD.size :]) != crc:
            raise ValueError("wrong version or checksum")
        at = _CACHE_HEAD.size + head_bytes
        meta = json.loads(raw[_CACHE_HEAD.size : at])
        if meta["source"] != source:
            return None
        bounds = array("I")
        end = at + bounds.itemsize * (meta["n_pieces"] + 1)
        bounds.frombytes(raw[at:end])
        bounds, pieces = _little(bounds), raw[end:]
        if bounds[-1] != len(pieces):
            raise ValueError("wrong length")
        return Tekken(
            name, pieces, bounds, meta["special"], meta["n_special"], meta["pattern"], meta["audio"]
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, struct.error) as error:
        note(f"{path}: the tokenizer cache is corrupt and is made anew ({error})")
        return None


def _little(bounds: array[int]) -> array[int]:
    """Swap between this machine's byte order and the little-endian one of the cache."""
    if sys.byteorder == "little":
        return bounds
    swapped = bounds[:]
    swapped.byteswap()
    return swapped
