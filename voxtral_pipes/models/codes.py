"""What the numbers of the tensor `codes` mean (tts.md sections 5 and 6).

A row is one frame of 80 ms: the semantic code, then one acoustic code for each further codebook.  The first
entries of every codebook are special, so an ordinary code is its number in the codebook plus `CODE_OFFSET`.
No torch here: vx-peek reads this as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from voxtral_pipes.errors import BadInputError
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


def check_row(row: Sequence[int], semantic_size: int, acoustic_levels: int, n_codebooks: int) -> None:
    """Check one row of codes, offset included; an END_AUDIO row is 1, then `CODE_OFFSET`s.

    Raises:
        BadInputError: there are not `n_codebooks` of them, or one is not in its codebook.
    """
    if len(row) != n_codebooks:
        raise BadInputError(f"a row of codes has {len(row)} of them, not {n_codebooks}")
    semantic, acoustic = row[0], row[1:]
    if semantic == END_AUDIO and all(code == CODE_OFFSET for code in acoustic):
        return
    if not CODE_OFFSET <= semantic < CODE_OFFSET + semantic_size:
        what = {EMPTY_AUDIO: " (EMPTY_AUDIO)", END_AUDIO: " (END_AUDIO, but acoustic codes follow)"}
        raise BadInputError(
            f"the semantic code {semantic}{what.get(semantic, '')} is not one of {CODE_OFFSET} to "
            f"{CODE_OFFSET + semantic_size - 1}"
        )
    wrong = next((c for c in acoustic if not CODE_OFFSET <= c < CODE_OFFSET + acoustic_levels), None)
    if wrong is not None:
        raise BadInputError(
            f"the acoustic code {wrong} is not one of {CODE_OFFSET} to {CODE_OFFSET + acoustic_levels - 1}"
        )
