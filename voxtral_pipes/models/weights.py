"""Load the tensors of one stage from an opened checkpoint, in Mistral's names and row order.

Only tensors that are asked for are read: for the CPU they are the mapped file itself, to CUDA `models.staging` brings
them.  Spec: asr.md section 10; formats.md sections 0 and 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from voxtral_pipes.errors import BadModelError
from voxtral_pipes.kernels.packed import BLOCK_BYTES, BLOCK_WEIGHTS, PackedFormat, PackedWeight, StoredWeight
from voxtral_pipes.models.checkpoint import Checkpoint
from voxtral_pipes.models.staging import staged

_DENSE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PACKED: Mapping[str, PackedFormat] = {"Q4_0": "q4_0", "Q8_0": "q8_0"}


def mistral_rows(rows: Tensor, head_dim: int) -> Tensor:
    """Return rotary rows in Mistral's interleaved order; a copy.

    `rows`: any dtype, [heads * head_dim, ...] in transformers' half-split order (asr.md section 10).
    """
    split = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return split.transpose(1, 2).reshape(rows.shape)


def load_weights(
    checkpoint: Checkpoint, names: Iterable[str], device: torch.device, dtype: torch.dtype
) -> dict[str, StoredWeight]:
    """Load tensors by Mistral's names.

    Dense ones come as `dtype` on `device`: on the CPU views of the mapped file where that is what lies there, and then
    they must not be written to.  Q4_0 and Q8_0 stay packed, whatever `dtype` says.

    Raises:
        BadModelError: a tensor is missing, is of a type that weights do not have, or cannot be read.
    """
    names = list(names)
    for name in names:
        _check_type(checkpoint, name)
    if device.type == "cuda":
        stored = staged(checkpoint, names, device)
    else:
        stored = ((name, _mapped(checkpoint, name)) for name in names)
    return {name: _weight(checkpoint, name, data, dtype) for name, data in stored}


def _check_type(checkpoint: Checkpoint, name: str) -> None:
    info = checkpoint.info(name)
    if info.type in _PACKED and len(info.shape) != 2:
        raise BadModelError(f"{checkpoint.label}: {name} is {info.type}, and only matrices can be packed")
    if info.type not in _PACKED and info.type not in _DENSE:
        raise BadModelError(f"{checkpoint.label}: {name} has the type {info.type}, which weights do not have")


def _weight(checkpoint: Checkpoint, name: str, data: Tensor, dtype: torch.dtype) -> StoredWeight:
    """Make a weight of its stored bytes, uint8 [bytes], where they are."""
    info = checkpoint.info(name)
    head_dim = checkpoint.rotary_head_dim(name)
    if info.type in _PACKED:
        form = _PACKED[info.type]
        blocks = data.view(info.shape[0], info.shape[1] // BLOCK_WEIGHTS, BLOCK_BYTES[form])
        return PackedWeight(form, blocks if head_dim is None else mistral_rows(blocks, head_dim))
    dense = data.view(_DENSE[info.type]).view(info.shape)
    return (dense if head_dim is None else mistral_rows(dense, head_dim)).to(dtype)


def _mapped(checkpoint: Checkpoint, name: str) -> Tensor:
    """View stored bytes, uint8 [bytes], copied where raw shards are cut so that they would not be aligned."""
    kind = checkpoint.info(name).type
    array = np.frombuffer(checkpoint.bytes(name), np.uint8)
    alignment = _DENSE[kind].itemsize if kind in _DENSE else 4
    return torch.from_numpy(array.copy() if array.ctypes.data % alignment else array)
