"""Weights as Q4_0 will hold them, for training: a model that has met its own rounding is hurt less by it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nano.forward import PHONES

_BLOCK = 32


def as_q4_0(weight: Tensor) -> Tensor:
    """Return the values that a matrix [M, N] has when ggml's rule has packed it as Q4_0; N is a multiple of 32.

    The weight of a block that is farthest from zero becomes -8 times the scale, a float16 (formats.md section 2).
    """
    blocks = weight.detach().float().reshape(-1, _BLOCK)
    farthest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True)) / -8
    codes = torch.where(farthest == 0, 8.0, (blocks / farthest + 8.5).floor().clamp(0, 15))
    return ((codes - 8) * farthest.half().float()).reshape(weight.shape).to(weight.dtype)


def rounded(weights: Mapping[str, Tensor], whether: Tensor) -> dict[str, Tensor]:
    """Return the weights with all that will be packed rounded if `whether`, a scalar, is 1, and as they are if 0.

    Gradients are those of the weights themselves.
    """
    return {
        name: value + whether * (as_q4_0(value) - value).detach()
        if value.dim() == 2 and not name.startswith(PHONES)
        else value
        for name, value in weights.items()
    }
