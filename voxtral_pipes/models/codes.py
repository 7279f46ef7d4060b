"""What the numbers of the tensor `codes` mean (tts.md sections 5 and 6).

A row is one frame of 80 ms: the semantic code, then one acoustic code for each further codebook.  The first
entries of every codebook are special, so an ordinary code is its number in the codebook plus `CODE_OFFSET`.
No torch here: vx-peek reads this as well.
"""

from __future__ import annotations

from voxtral_pipes.formats.frame import Tensor

EMPTY_AUDIO, END_AUDIO, CODE_OFFSET = 0, 1, 2
MAX_CODEBOOKS = 1024


def is_codes(tensor: Tensor) -> bool:
    """Tell whether a tensor can be rows of codes: integers [n, codebooks], the first one semantic."""
    return (
        tensor.dtype.startswith(("u", "i"))
        and len(tensor.shape) == 2
        and 2 <= tensor.shape[1] <= MAX_CODEBOOKS
    )
