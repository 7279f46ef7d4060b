"""Which operands the Triton kernels take; `dispatch` chooses by it, and so do models whose steps differ by it."""

from __future__ import annotations

import torch
from torch import Tensor

from voxtral_pipes.kernels.device import wants_triton
from voxtral_pipes.kernels.packed import Q4CudaWeight, Q4TileWeight, Weight

FEW_ROWS = 16
"""Rows that share one reading of the weights (`rows.MAX_ROWS`, which needs triton to be read)."""
FLOAT_ROWS = (1, 2, 4, 8)
"""Rows for which there is a kernel in float32: those of a codec frame on its way.  cuBLAS is as fast for 16 to 64."""
MIN_HEAD = 16
"""Narrowest head of the Triton kernels: a tile of the tensor core."""


def fits_triton(x: Tensor, *weights: Weight) -> bool:
    """Tell whether the Triton kernels multiply these weights, all alike, by a few rows x [..., N], bfloat16 on CUDA."""
    rows = x.numel() // x.shape[-1]
    if not (x.is_cuda and x.dtype == torch.bfloat16 and 0 < rows <= FEW_ROWS and wants_triton()):
        return False
    if isinstance(weights[0], Q4TileWeight):
        return in_tiles(*weights)
    if isinstance(weights[0], Q4CudaWeight):
        return rows == 1 and all(isinstance(weight, Q4CudaWeight) for weight in weights)
    return all(isinstance(weight, Tensor) and weight.dtype == torch.bfloat16 for weight in weights)


def in_tiles(*weights: Weight) -> bool:
    """Tell whether all of these are laid out for a few rows."""
    return all(isinstance(weight, Q4TileWeight) for weight in weights)


def fits_triton_heads(x: Tensor, head_dim: int, *weights: Weight) -> bool:
    """Tell whether the Triton kernels attend with these projections too: heads whose width is a power of two.

    x [R, N]; the queries of one group of heads, for all rows, share a tile.
    """
    fits = fits_triton(x, *weights) and head_dim >= MIN_HEAD and head_dim & (head_dim - 1) == 0
    group = weights[0].shape[0] // weights[1].shape[0]
    return fits and group * (x.numel() // x.shape[-1]) <= FEW_ROWS


def fits_float(x: Tensor, *weights: Weight) -> bool:
    """Tell whether the float32 Triton kernels multiply these weights by x [..., N]: 1, 2, 4 or 8 rows on CUDA."""
    return (
        x.is_cuda
        and x.dtype == torch.float32
        and all(isinstance(weight, Tensor) and weight.dtype == torch.float32 for weight in weights)
        and wants_triton()
        and x.numel() // x.shape[-1] in FLOAT_ROWS
    )


def fits_window(q: Tensor) -> bool:
    """Tell whether `attend_window` takes these queries [B, T, N]: one stream in float32 on CUDA."""
    return q.is_cuda and q.dtype == torch.float32 and q.shape[0] == 1 and wants_triton()
