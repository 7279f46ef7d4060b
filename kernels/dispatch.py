"""Where computation happens: the device, the arithmetic, and which kernel does an operation.

Models import the operations from here and nowhere else, so a faster kernel is chosen in this one place.  Every
choice can be read with `describe`; nothing is chosen by catching an exception.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from voxtral_pipes.errors import UnsupportedError, UsageError
from voxtral_pipes.kernels import cpu, reference, waiting
from voxtral_pipes.kernels.packed import HeadWeight, Int4Weight, OnednnWeight, PackedWeight, Weight
from voxtral_pipes.kernels.precision import Precision
from voxtral_pipes.kernels.reference import attention, rms_norm, rotate

KERNELS = ("auto", "triton", "torch")
FEW_ROWS = 16
"""Rows that share one reading of the weights (`rows.MAX_ROWS`, which needs triton to be read)."""
FLOAT_ROWS = (1, 2, 4, 8)
"""Rows for which there is a kernel in float32: those of a codec frame on its way."""
MIN_HEAD = 16
"""Narrowest head of the Triton kernels: a tile of the tensor core."""


def pick_device(name: str) -> torch.device:
    """Turn auto, cpu, cuda or cuda:N into a device that exists.

    Raises:
        UsageError: it is no device name.
        UnsupportedError: it is one, and not here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()) or (kind == "cpu" and number):
        raise UsageError(f"--device {name!r} is none of auto, cpu, cuda, cuda:N")
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UnsupportedError(f"--device {name}: torch finds no CUDA device here; use --device cpu")
    if int(number or 0) >= torch.cuda.device_count():
        raise UnsupportedError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices")
    # TF32 has 10 bits of mantissa: float32 asked for must be float32 got, in convolutions too.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(1)  # what is left for the host is small, and threads that wait for it burn cores
    return torch.device("cuda", int(number or 0))


def torch_dtype(precision: Precision) -> torch.dtype:
    """Turn f32 or bf16 into a torch dtype."""
    return torch.float32 if precision == "f32" else torch.bfloat16


def check_kernels() -> None:
    """Refuse a VX_KERNELS that cannot be obeyed."""
    wanted = os.environ.get("VX_KERNELS", "auto")
    if wanted not in KERNELS:
        raise UsageError(f"VX_KERNELS={wanted!r} is none of {', '.join(KERNELS)}")
    if wanted == "triton" and not (torch.cuda.is_available() and _has_triton()):
        raise UnsupportedError(
            "VX_KERNELS=triton needs a CUDA device and the package triton; unset it or say torch"
        )


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _wants_plain() -> bool:
    return os.environ.get("VX_KERNELS", "auto") == "torch"


def _wants_triton() -> bool:
    return not _wants_plain() and _has_triton()


def describe(device: torch.device, dtype: torch.dtype) -> str:
    """Say in one line what was chosen."""
    how = "plain torch kernels"
    where = f"{torch.get_num_threads()} CPU threads ({waiting.describe()})"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
        if dtype == torch.bfloat16 and _wants_triton():
            how = "Triton kernels for up to 16 rows of dense weights, plain torch for the rest"
        elif _wants_triton():
            how = "Triton kernels for up to 8 rows of dense weights, plain torch for the rest"
        elif not _has_triton():
            how += " (triton is not installed)"
        how += ", in CUDA graphs"
    elif _lays_out(device, dtype):
        how = "oneDNN and int4 kernels, weights laid out for them"
    return f"computing in {str(dtype).removeprefix('torch.')} on {where} with {how}"


def fits_triton(x: Tensor, *weights: Weight) -> bool:
    """Tell whether the Triton kernels multiply these weights by x [..., N]: bfloat16 on CUDA, a few rows."""
    return _dense_on_cuda(x, torch.bfloat16, weights) and x.numel() // x.shape[-1] <= FEW_ROWS


def fits_triton_heads(x: Tensor, head_dim: int, *weights: Weight) -> bool:
    """Tell whether the Triton kernels attend with these projections too: heads whose width is a power of two."""
    fits = fits_triton(x, *weights) and head_dim >= MIN_HEAD and head_dim & (head_dim - 1) == 0
    return fits and weights[0].shape[0] // weights[1].shape[0] <= FEW_ROWS


def fits_float(x: Tensor, *weights: Weight) -> bool:
    """Tell whether the float32 Triton kernels multiply these weights by x [..., N]: 1, 2, 4 or 8 rows on CUDA."""
    return _dense_on_cuda(x, torch.float32, weights) and x.numel() // x.shape[-1] in FLOAT_ROWS


def _dense_on_cuda(x: Tensor, dtype: torch.dtype, weights: tuple[Weight, ...]) -> bool:
    return (
        x.is_cuda
        and x.dtype == dtype
        and all(isinstance(weight, Tensor) and weight.dtype == dtype for weight in weights)
        and _wants_triton()
    )


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def prepare(weight: Weight, dtype: torch.dtype, *, many_rows: bool = False, twice: bool = False) -> Weight:
    """Return a matrix as it is fastest to multiply by in `dtype`; on the CPU in bfloat16 that is a private copy.

    `many_rows` says that it will mostly meet more than four rows at a time, `twice` that it is small enough to be held
    twice: then float32 is laid out on the CPU too.
    """
    if isinstance(weight, Tensor | PackedWeight) and _lays_out(
        weight.device, torch.bfloat16 if twice else dtype
    ):
        return cpu.lay_out(weight, many_rows=many_rows)
    return weight


def prepare_head(weight: Weight, dtype: torch.dtype) -> Weight | HeadWeight:
    """Return the tied embedding as `head` is fastest with; see `prepare`."""
    if isinstance(weight, Tensor | PackedWeight) and _lays_out(weight.device, dtype):
        fast = cpu.lay_out(weight, many_rows=False)
        if isinstance(fast, OnednnWeight | Int4Weight):
            return HeadWeight(fast, weight)
    return weight


def _lays_out(device: torch.device, dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and device.type == "cpu" and not _wants_plain() and cpu.can_lay_out()


def _stored(weight: Weight) -> Tensor | PackedWeight:
    """Return a weight that has not been laid out."""
    if isinstance(weight, OnednnWeight | Int4Weight):
        raise TypeError("this operation is not for weights laid out for the CPU's products")
    return weight


def embedding(ids: Tensor, weight: Weight, dtype: torch.dtype) -> Tensor:
    """Look up rows (see `reference.embedding`)."""
    return reference.embedding(ids, _stored(weight), dtype)


def head(x: Tensor, weight: Weight | HeadWeight) -> Tensor:
    """Multiply by the tied embedding in float32: x [B, N], weight [M, N], logits float32 [B, M]."""
    if isinstance(weight, HeadWeight):
        return cpu.head(x, weight)
    return reference.head(x, _stored(weight))


def swiglu(x: Tensor, gate: Weight, up: Weight) -> Tensor:
    """Compute `silu(gate x) * (up x)`: x [..., N], gate and up [M, N], result [..., M]."""
    return F.silu(linear(x, gate)) * linear(x, up)


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """Compute `x W^T + b`: x [..., N], weight [M, N], result [..., M] in the dtype of x."""
    if isinstance(weight, Tensor) and bias is None and fits_float(x, weight):
        from voxtral_pipes.kernels.float_rows import float_rows

        return float_rows(_rows(x).contiguous(), weight).view(*x.shape[:-1], -1)
    if isinstance(weight, OnednnWeight | Int4Weight):
        return cpu.linear(x, weight, bias)
    return reference.linear(x, weight, bias)


def norm_swiglu(x: Tensor, norm: Tensor, eps: float, gate: Weight, up: Weight) -> Tensor:
    """Compute `silu(gate n) * (up n)` of n = rms_norm(x): x [..., N], gate and up [M, N], result [..., M]."""
    if isinstance(gate, Tensor) and isinstance(up, Tensor):
        if fits_triton(x, gate, up):
            from voxtral_pipes.kernels.rows import linear_rows

            y = linear_rows(_rows(x), gate, norm=norm, eps=eps, up=up)
            return y.view(*x.shape[:-1], -1)
        if fits_float(x, gate, up):
            from voxtral_pipes.kernels.float_rows import float_rows

            y = float_rows(_rows(x).contiguous(), gate, norm=norm, eps=eps, up=up)
            return y.view(*x.shape[:-1], -1)
    return swiglu(rms_norm(x, norm, eps), gate, up)


def norm_linears(
    x: Tensor, norm: Tensor, eps: float, weights: tuple[Weight, Weight, Weight]
) -> tuple[Tensor, Tensor, Tensor]:
    """Multiply n = rms_norm(x) by three weights of one shape: x [..., N], weights [M, N], results [..., M]."""
    if fits_float(x, *weights):
        from voxtral_pipes.kernels.float_rows import three_float_rows

        q, k, v = (weight for weight in weights if isinstance(weight, Tensor))
        y = three_float_rows(_rows(x).contiguous(), norm, eps, (q, k, v)).view(3, *x.shape[:-1], -1)
        return y[0], y[1], y[2]
    n = rms_norm(x, norm, eps)
    first, second, third = (linear(n, weight) for weight in weights)
    return first, second, third


def add_linear(
    residual: Tensor, x: Tensor, weight: Weight, bias: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """Compute `residual + scale * (x W^T + b)`: residual [..., M], x [..., N], weight [M, N], scale [M]."""
    if isinstance(weight, Tensor) and bias is None:
        if scale is None and fits_triton(x, weight):
            from voxtral_pipes.kernels.rows import linear_rows

            y = linear_rows(_rows(x), weight, residual=_rows(residual).contiguous())
            return y.view(residual.shape)
        if fits_float(x, weight):
            from voxtral_pipes.kernels.float_rows import float_rows

            rows, behind = _rows(x).contiguous(), _rows(residual).contiguous()
            return float_rows(rows, weight, residual=behind, scale=scale).view(residual.shape)
    y = linear(x, weight, bias)
    return residual + (y if scale is None else scale * y)


def attend_one(
    x: Tensor,
    norm: Tensor,
    eps: float,
    weights: tuple[Tensor, Tensor, Tensor],
    turn: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    window: int,
) -> Tensor:
    """Attend with one position where `fits_triton_heads`: see `decode_attention.attend_one`."""
    from voxtral_pipes.kernels import decode_attention

    return decode_attention.attend_one(x, norm, eps, weights, turn, keys, values, position, window)


def flow_mix(
    y: Tensor, norm: Tensor, eps: float, weights: tuple[Tensor, Tensor, Tensor], head_dim: int, queries: int
) -> Tensor:
    """Mix the tokens of the flow head where `fits_triton_heads`: see `flow_step.mix_tokens`."""
    from voxtral_pipes.kernels import flow_step

    return flow_step.mix_tokens(y, norm, eps, weights, head_dim, queries)


def flow_move(
    state: Tensor,
    velocity: Tensor,
    weight: Tensor,
    time: Tensor,
    condition: Tensor,
    guidance: float,
    length: float,
) -> tuple[Tensor, Tensor]:
    """Take an Euler step where `fits_triton`: see `flow_step.move`."""
    from voxtral_pipes.kernels import flow_step

    return flow_step.move(state, velocity, weight, time, condition, guidance, length)


def norm_linear(x: Tensor, norm: Tensor, eps: float, weight: Tensor) -> Tensor:
    """Compute `rms_norm(x) W^T` in float32 where `fits_triton`: x [R, N], weight [M, N]."""
    from voxtral_pipes.kernels.rows import linear_rows

    return linear_rows(x, weight, norm=norm, eps=eps, dtype=torch.float32)


__all__ = [
    "add_linear",
    "attend_one",
    "attention",
    "check_kernels",
    "describe",
    "embedding",
    "fits_float",
    "fits_triton",
    "fits_triton_heads",
    "flow_mix",
    "flow_move",
    "head",
    "linear",
    "norm_linear",
    "norm_linears",
    "norm_swiglu",
    "pick_device",
    "prepare",
    "prepare_head",
    "rms_norm",
    "rotate",
    "swiglu",
    "torch_dtype",
]
