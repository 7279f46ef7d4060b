"""Q4_0 forms of random models for tests; imported by name, not collected."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from voxtral_pipes.kernels import reference
from voxtral_pipes.kernels.packed import BLOCK_WEIGHTS, PackedWeight, StoredWeight


def packed(weight: Tensor) -> PackedWeight:
    """Quantise [M, N] by the rule that the greatest weight of a block is -8 scales: half of the scales are negative."""
    blocks = weight.float().view(weight.shape[0], -1, BLOCK_WEIGHTS)
    greatest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scales = (greatest / -8).half()
    safe = torch.where(scales == 0, torch.ones_like(scales), scales).float()
    codes = (blocks / safe + 8.5).clamp(0, 15).to(torch.uint8)
    low, high = codes.split(BLOCK_WEIGHTS // 2, dim=-1)
    return PackedWeight("q4_0", torch.cat((scales.view(torch.uint8), low | high << 4), dim=-1))


def packed_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, StoredWeight], dict[str, Tensor]]:
    """Quantise the matrices of a model; return it, and the same values in float32."""
    stored: dict[str, StoredWeight] = {}
    exact: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and tensor.shape[1] % BLOCK_WEIGHTS == 0 and not name.endswith("embedding_sum"):
            weight = packed(tensor)
            stored[name], exact[name] = weight, reference.dequantize(weight, torch.float32)
        else:
            stored[name] = exact[name] = tensor
    return stored, exact


def placed(
    stored: Mapping[str, StoredWeight], device: torch.device, dtype: torch.dtype
) -> dict[str, StoredWeight]:
    """Put a model on a device; what is dense in `dtype`."""
    return {
        name: weight.to(device, dtype) if isinstance(weight, Tensor) else weight.to(device)
        for name, weight in stored.items()
    }
