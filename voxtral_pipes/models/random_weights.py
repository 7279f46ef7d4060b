"""Weights drawn at random, the same for one seed in whatever file they end up.

Every tensor comes from a generator of its own, seeded by seed and name, and is drawn and rounded to BF16 in pieces,
so that even the full size needs little memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from voxtral_pipes.formats.bf16 import Words, bf16_words, widen
from voxtral_pipes.models.shapes import Shape

_PIECE_WEIGHTS = 1 << 22
_LEVELS = 1 << 16


@dataclass(frozen=True, slots=True)
class Law:
    """How the weights of one tensor are distributed: mean + scale * N(0, 1), some rows louder or quieter."""

    mean: float
    scale: float
    gains: Mapping[int, float] = field(default_factory=dict)
    """Factors of the rows that have one."""


def fan_in_law(shape: Shape, factor: float = 1.0) -> Law:
    """Return the law of a matrix or convolution that maps inputs near 1 to outputs near `factor`."""
    return Law(0.0, factor / math.sqrt(math.prod(shape[1:])))


@cache
def _quantiles() -> npt.NDArray[np.float64]:
    """Return the standard normal distribution as 65536 equally likely values."""
    normal = NormalDist()
    half = np.array([normal.inv_cdf((i + 0.5) / _LEVELS) for i in range(_LEVELS // 2)])
    return np.concatenate([half, -half[::-1]])


def random_words(name: str, shape: Shape, seed: int, law: Law) -> Iterator[Words]:
    """Yield the weights of one tensor in pieces of whole rows; uint16 BF16 words, [rows, ...]."""
    table = bf16_words((law.mean + law.scale * _quantiles()).astype(np.float32))
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    bits = np.random.PCG64(int.from_bytes(digest, "little"))
    row = math.prod(shape[1:])
    step = max(1, _PIECE_WEIGHTS // row)
    for start in range(0, shape[0], step):
        rows = min(step, shape[0] - start)
        raw = bits.random_raw(-(-rows * row // 4)).astype("<u8", copy=False).view("<u2")[: rows * row]
        piece = table[raw].reshape(rows, *shape[1:])
        for number, gain in law.gains.items():
            if start <= number < start + rows:
                piece[number - start] = bf16_words(widen(piece[number - start]) * np.float32(gain))
        yield piece
