"""Load the tensors of one stage from an opened checkpoint, in Mistral's names and row order.

Only tensors that are asked for are read.  Spec: asr.md section 10; formats.md sections 0 and 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from voxtral_pipes.errors import BadModelError
from voxtral_pipes.kernels.packed import BLOCK_BYTES, BLOCK_WEIGHTS, PackedFormat, PackedWeight, StoredWeight
from voxtral_pipes.models.checkpoint import Checkpoint

_DENSE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PACKED: Mapping[str, PackedFormat] = {"Q4_0": "q4_0", "Q8_0": "q8_0"}


def mistral_rows(rows: Tensor, head_dim: int) -> Tensor:
    """Return rotary rows in Mistral's interleaved order; a copy.

    `rows`: any dtype, [heads * head_dim, ...] in transformers' half-split order (asr.md section 10).
    """
    split = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return split.transpose(1, 2).reshape(rows.shape)


def hf_rows(rows: Tensor, head_dim: int) -> Tensor:
    """Return rotary rows in transformers' half-split order; the inverse of `mistral_rows`."""
    split = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return split.transpose(1, 2).reshape(rows.shape)


def load_weights(
    checkpoint: Checkpoint, names: Iterable[str], device: torch.device, dtype: torch.dtype
) -> dict[str, StoredWeight]:
    """Load tensors by Mistral's names.

    Dense ones come as `dtype` on `device`: views of the mapped file where that is what lies there, and then
    they must not be written to.  Q4_0 and Q8_0 stay packed, whatever `dtype` says.

    Raises:
        BadModelError: a tensor is missing, or is of a type that weights do not have.
    """
    return {name: _load(checkpoint, name, device, dtype) for name in names}


def _load(checkpoint: Checkpoint, name: str, device: torch.device, dtype: torch.dtype) -> StoredWeight:
    info = checkpoint.info(name)
    head_dim = checkpoint.rotary_head_dim(name)
    if info.type in _PACKED:
        form = _PACKED[info.type]
        if len(info.shape) != 2:
            raise BadModelError(f"{checkpoint.label}: {name} is {info.type}, and only matrices can be packed")
        raw = torch.from_numpy(_aligned(checkpoint.bytes(name), "<u1", 4))
        blocks = raw.reshape(info.shape[0], info.shape[1] // BLOCK_WEIGHTS, BLOCK_BYTES[form])
        return PackedWeight(form, (blocks if head_dim is None else mistral_rows(blocks, head_dim)).to(device))
    if info.type not in _DENSE:
        raise BadModelError(f"{checkpoint.label}: {name} has the type {info.type}, which weights do not have")
    kind = _DENSE[info.type]
    words = _aligned(checkpoint.bytes(name), {4: "<i4", 2: "<i2"}[kind.itemsize], kind.itemsize)
    dense = torch.from_numpy(words).view(kind).reshape(info.shape)
    # Device first: half the bytes to move where the file holds 16 bits and float32 is wanted.
    return (dense if head_dim is None else mistral_rows(dense, head_dim)).to(device).to(dtype)


def _aligned(data: memoryview, form: str, alignment: int) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    """View bytes as an array, copied where raw shards are cut so that it would not be aligned."""
    array: np.ndarray[tuple[int], np.dtype[np.generic]] = np.frombuffer(data, dtype=form)
    return array.copy() if array.ctypes.data % alignment else array
