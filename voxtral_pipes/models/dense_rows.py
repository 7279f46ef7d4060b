"""Rows of a dense checkpoint of any layout as the GGUF files have them: Mistral's row order, weight norm folded.

A few rows at a time are read, so that no tensor need be in memory whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import numpy.typing as npt

from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.bf16 import widen
from voxtral_pipes.formats.table import TYPE_SIZES
from voxtral_pipes.formats.virtual import forget
from voxtral_pipes.models.checkpoint import Checkpoint
from voxtral_pipes.models.gguf_layout import GgufLayout
from voxtral_pipes.models.tts_shapes import gain_and_direction

_WORDS = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}

Values = npt.NDArray[np.float32]


class DenseRows:
    """The values of all tensors of `layout`, from `checkpoint`.

    Raises:
        BadModelError: a tensor is missing, or packed already.
    """

    def __init__(self, checkpoint: Checkpoint, layout: GgufLayout) -> None:
        self._checkpoint = checkpoint
        self._shapes = {name: info.shape for name, info in layout.tensors.items()}
        self._folded: Mapping[str, tuple[str, str]] = {
            name: halves
            for name in layout.tensors
            if name not in checkpoint.names
            and checkpoint.names.issuperset(halves := gain_and_direction(name.removesuffix(".weight")))
        }
        self.sources = {part for name in layout.tensors for part in self._folded.get(name, (name,))}
        """Names of the tensors of the checkpoint that are read."""
        for name in sorted(self.sources):
            if (kind := checkpoint.info(name).type) not in _WORDS:
                raise BadModelError(
                    f"{checkpoint.label}: {name} is {kind}; what is to be quantised must be {', '.join(_WORDS)}"
                )

    def is_folded(self, name: str) -> bool:
        """Tell whether a tensor is computed of two of the checkpoint, and not just stored in it."""
        return name in self._folded

    def grain(self, name: str) -> int:
        """Return of how many rows the ranges asked of a tensor must be multiples, if they do not reach to its end."""
        if name in self._folded:
            return self._shapes[name][0]
        return self._checkpoint.rotary_head_dim(name) or 1

    def read(self, name: str, begin: int, end: int) -> Values:
        """Return rows `begin` to `end` of a tensor; float32, [end - begin, ...]."""
        if name in self._folded:
            return self._fold(name)[begin:end]
        rows = self._stored(name, begin, end)
        head_dim = self._checkpoint.rotary_head_dim(name)
        if head_dim is None:
            return rows
        # transformers' half-split order to Mistral's pairs (asr.md section 10)
        halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)

    def halves(self, name: str) -> tuple[Values, Values]:
        """Return g and v of a folded tensor; float32, [rows, 1, 1] and [rows, ...]."""
        gain, direction = (
            self._stored(half, 0, self._checkpoint.info(half).shape[0]) for half in self._folded[name]
        )
        return gain, direction

    def _fold(self, name: str) -> Values:
        import torch

        from voxtral_pipes.models.codec import fold_weight_norm

        gain, direction = (torch.from_numpy(half) for half in self.halves(name))
        folded: Values = fold_weight_norm(gain, direction).numpy()
        return folded

    def _stored(self, name: str, begin: int, end: int) -> Values:
        info = self._checkpoint.info(name)
        row_bytes = prod(info.shape[1:]) * TYPE_SIZES[info.type][1]
        data = self._checkpoint.bytes(name, begin * row_bytes, end * row_bytes)
        words = np.frombuffer(data, _WORDS[info.type])
        values = widen(words) if info.type == "BF16" else words.astype(np.float32)
        forget(data)
        return values.reshape(end - begin, *info.shape[1:])
