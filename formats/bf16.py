"""bfloat16 in numpy, which has no such type: words of 16 bits, the upper half of a float32 (formats.md section 4)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint16]
"""bfloat16 as it is stored."""


def bf16_words(values: npt.NDArray[np.float32]) -> Words:
    """Round finite float32 to the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widen(words: Words) -> npt.NDArray[np.float32]:
    """Return bfloat16 words as float32; exact."""
    return (words.astype(np.uint32) << 16).view(np.float32)


def is_finite(words: Words) -> npt.NDArray[np.bool_]:
    """Tell of each bfloat16 word whether it is neither NaN nor infinity."""
    finite: npt.NDArray[np.bool_] = (words & 0x7F80) != 0x7F80
    return finite
