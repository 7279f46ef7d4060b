"""Write a tekken.json with the published structure and a made-up vocabulary (formats.md section 5).

A piece is reachable if every substring of it is a piece as well: whatever pairs the byte-pair merge takes
first, the next pair is a piece again, until one is left.  So all vocabularies here are closed under
substrings, shortest first.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase

from voxtral_pipes.config import AudioConfig, CodecConfig
from voxtral_pipes.formats.tekken import N_SPECIAL, PUBLISHED_SPECIAL

PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The published one: splits are part of the structure."""

_SPECIAL_NAMES = {rank: name for name, rank in PUBLISHED_SPECIAL.items()}
_WORDS = (
    " the and for you was not are with this that have from they one all can what when who how out time two "
    "like day way may come good new work first water people about speech hear sound voice say"
)
_LETTERS = "éèüößñçáíşžжияαωλ中文日本語語字한국🙂"


def n_special(vocab_size: int) -> int:
    """Return how many ids are special: 1000 as published, fewer where 256 bytes need the room."""
    return min(N_SPECIAL, vocab_size - 256)


def write_tekken(path: Path, vocab_size: int, audio: Mapping[str, object]) -> None:
    """Write a vocabulary of `vocab_size` ids, and of some more that readers must drop; `audio` is its audio section.

    Raises:
        ValueError: fewer than 300 ids, which leave no room for the special ones.
    """
    if vocab_size < 300:
        raise ValueError(f"a vocabulary of {vocab_size} has no room for 256 bytes and the special tokens")
    n_special_ids = n_special(vocab_size)
    n_pieces = vocab_size - n_special_ids
    n_entries = 150_000 if vocab_size == 131_072 else n_pieces + 50
    write_pieces(path, list(itertools.islice(_pieces(), n_entries)), vocab_size, n_special_ids, audio)


def write_pieces(
    path: Path, pieces: Sequence[bytes], vocab_size: int, n_special_ids: int, audio: Mapping[str, object]
) -> None:
    """Write a vocabulary of given pieces, in the order of their ranks."""
    text = json.dumps(
        {
            "config": {
                "pattern": PATTERN,
                "num_vocab_tokens": len(pieces),
                "default_vocab_size": vocab_size,
                "default_num_special_tokens": n_special_ids,
                "version": "v7",
            },
            "vocab": [_entry(rank, piece) for rank, piece in enumerate(pieces)],
            "special_tokens": [
                {"rank": rank, "token_str": _SPECIAL_NAMES.get(rank, f"<SPECIAL_{rank}>"), "is_control": True}
                for rank in range(n_special_ids)
            ],
            "audio": audio,
        },
        indent=1,
    )
    path.write_text(text, encoding="utf-8")


def asr_audio(audio: AudioConfig) -> dict[str, object]:
    """Return the audio section of a recognition model (formats.md section 5)."""
    return {
        "sampling_rate": audio.rate_hz,
        "frame_rate": audio.frame_rate_hz,
        "audio_encoding_config": _encoding(audio),
        "chunk_length_s": None,
        "transcription_format": "streaming",
        "transcription_delay_ms": audio.delay_ms,
        "streaming_look_ahead_ms": 2.5,
        "streaming_look_back_ms": 52.5,
        "streaming_n_left_pad_tokens": audio.left_pad_tokens,
    }


def tts_audio(codec: CodecConfig, voices: Mapping[str, int]) -> dict[str, object]:
    """Return the audio section of a synthesis model; `voices` are their rows by name (formats.md section 5)."""
    return {
        "sampling_rate": codec.rate_hz,
        "frame_rate": codec.rate_hz / codec.frame_samples,
        "audio_encoding_config": _encoding(AudioConfig()),  # there, and unused
        "chunk_length_s": 30.0,
        "voice_num_audio_tokens": dict(voices),
    }


def _encoding(audio: AudioConfig) -> dict[str, int]:
    return {
        "num_mel_bins": audio.n_mels,
        "hop_length": audio.hop_samples,
        "window_size": audio.window_samples,
    }


def _entry(rank: int, piece: bytes) -> dict[str, object]:
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    return {"rank": rank, "token_bytes": base64.b64encode(piece).decode("ascii"), "token_str": text}


def _pieces() -> Iterator[bytes]:
    """Yield 256 bytes, then the substrings of some words and letters, then all short strings of letters."""
    yield from (bytes([byte]) for byte in range(256))
    seen = {bytes([byte]) for byte in range(256)}
    for piece in itertools.chain(_closed(_spellings()), _strings()):
        if piece not in seen:
            seen.add(piece)
            yield piece


def _spellings() -> Iterator[bytes]:
    yield from (letter.encode() for letter in _LETTERS)
    yield from (b" " + word.encode() for word in _WORDS.split())


def _closed(words: Iterable[bytes]) -> Iterator[bytes]:
    """Yield every substring of two bytes or more, those of one word shortest first."""
    for word in words:
        for size in range(2, len(word) + 1):
            yield from (word[start : start + size] for start in range(len(word) - size + 1))


def _strings() -> Iterator[bytes]:
    """Yield strings of 2, 3, then 4 letters, the first two lengths with a space before them as well."""
    for size in (2, 3, 4):
        for letters in itertools.product(ascii_lowercase, repeat=size - 1):
            yield (" " + "".join(letters)).encode()
        for letters in itertools.product(ascii_lowercase, repeat=size):
            yield "".join(letters).encode()
