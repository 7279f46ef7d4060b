"""The vocabulary of the nano recogniser: bytes, and the merges that make one piece of each of its words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from nano.words import WORDS
from voxtral_pipes.config import AudioConfig
from voxtral_pipes.models.random_tekken import asr_audio, write_pieces

N_SPECIAL = 64
"""The published ids of what is used are below; 1000 of them would be a quarter of the model."""


def merged_pieces(words: Sequence[str]) -> list[bytes]:
    """Return the 256 bytes and what byte-pair training adds until each word, a space before it, is one piece.

    In the order of the merges, so that encoding by rank takes the same way.
    """
    pieces = [bytes([byte]) for byte in range(256)]
    split = [[bytes([byte]) for byte in f" {word}".encode()] for word in words]
    while any(len(parts) > 1 for parts in split):
        pairs = Counter(pair for parts in split for pair in pairwise(parts))
        first, second = max(pairs, key=lambda pair: (pairs[pair], pair))
        pieces.append(first + second)
        split = [_merge(parts, first, second) for parts in split]
    return pieces


def _merge(parts: list[bytes], first: bytes, second: bytes) -> list[bytes]:
    merged: list[bytes] = []
    for part in parts:
        # Left to right, as encoders do it.
        if merged and merged[-1] == first and part == second:
            merged[-1] = first + second
        else:
            merged.append(part)
    return merged


PIECES = merged_pieces(WORDS)
VOCAB_SIZE = N_SPECIAL + len(PIECES)


def write_vocabulary(path: Path, audio: AudioConfig) -> None:
    """Write tekken.json."""
    write_pieces(path, PIECES, VOCAB_SIZE, N_SPECIAL, asr_audio(audio))
