"""Where computation happens: the device, the arithmetic, and which kernel does an operation.

Models import the operations from here and nowhere else, so a faster kernel is chosen in this one place.  Every
choice can be read with `describe`; nothing is chosen by catching an exception.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from voxtral_pipes.kernels import cpu, int4, reference, waiting
from voxtral_pipes.kernels.device import (
    check_kernels,
    has_triton,
    pick_device,
    torch_dtype,
    wants_plain,
    wants_triton,
)
from voxtral_pipes.kernels.fitting import (
    FEW_ROWS,
    fits_float,
    fits_triton,
    fits_triton_heads,
    fits_window,
    in_tiles,
)
from voxtral_pipes.kernels.packed import (
    HeadWeight,
    Int4Weight,
    OnednnWeight,
    PackedWeight,
    Q4CudaWeight,
    Q4TileWeight,
    Weight,
)
from voxtral_pipes.kernels.reference import attention, rotate

if TYPE_CHECKING:
    from voxtral_pipes.kernels.decode_attention import Projections
    from voxtral_pipes.kernels.q4_tiles import NormRows

Rows = Literal["one", "few", "many"]
"""What a matrix mostly meets: one row at a time, up to 16, or dozens."""
KernelWeight = Tensor | Q4CudaWeight | Q4TileWeight
"""What the Triton kernels multiply by."""


def describe(device: torch.device, dtype: torch.dtype) -> str:
    """Say in one line what was chosen."""
    how = "plain torch kernels"
    where = f"{torch.get_num_threads()} CPU threads ({waiting.describe()})"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
        if dtype == torch.bfloat16 and wants_triton():
            how = "Triton kernels for up to 16 rows of BF16 or Q4_0 weights, cuBLAS for more; Q8_0 as BF16"
        elif wants_triton():
            how = "Triton kernels for up to 8 rows of dense weights, plain torch for the rest"
        elif not has_triton():
            how += " (triton is not installed)"
        how += ", in CUDA graphs"
    elif _lays_out(device, dtype):
        how = "oneDNN and int4 kernels, weights laid out for them"
        if not int4.lanes():
            how += " (the int4 kernel's order is another than known, so Q4_0 takes long to load)"
    return f"computing in {str(dtype).removeprefix('torch.')} on {where} with {how}"


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def prepare(weight: Weight, dtype: torch.dtype, *, rows: Rows = "one", twice: bool = False) -> Weight:
    """Return a matrix as it is fastest to multiply by in `dtype`, which may be a private copy.

    `twice` says that it is small enough to be held twice: then float32 is laid out on the CPU too.
    """
    if isinstance(weight, PackedWeight) and _lays_out_on_cuda(weight.device, dtype):
        if weight.format != "q4_0":
            return reference.dequantize(weight, dtype)  # there are no kernels for it
        if rows == "one":
            from voxtral_pipes.kernels.q4_rows import to_cuda_layout

            return to_cuda_layout(weight)
        from voxtral_pipes.kernels.q4_tile_layout import to_tiles

        return to_tiles(weight)
    if isinstance(weight, Tensor | PackedWeight) and _lays_out(
        weight.device, torch.bfloat16 if twice else dtype
    ):
        return cpu.lay_out(weight, many_rows=rows != "one")
    return weight


def prepare_table(weight: Weight, dtype: torch.dtype) -> Weight:
    """Return a matrix as it is fastest to look rows up in."""
    if isinstance(weight, PackedWeight) and _lays_out_on_cuda(weight.device, dtype):
        return prepare(weight, dtype)
    return weight


def prepare_head(weight: Weight, dtype: torch.dtype) -> Weight | HeadWeight:
    """Return the tied embedding, as `prepare_table` gives it, as `head` is fastest with."""
    if isinstance(weight, Tensor | PackedWeight) and _lays_out(weight.device, dtype):
        fast = cpu.lay_out(weight, many_rows=False)
        if isinstance(fast, OnednnWeight | Int4Weight):
            return HeadWeight(fast, weight)
    return weight


def _lays_out(device: torch.device, dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and device.type == "cpu" and not wants_plain() and cpu.can_lay_out()


def _lays_out_on_cuda(device: torch.device, dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and device.type == "cuda" and wants_triton()


def _stored(weight: Weight) -> Tensor | PackedWeight:
    """Return a weight that has not been laid out."""
    if not isinstance(weight, Tensor | PackedWeight):
        raise TypeError("this operation is not for weights laid out for products")
    return weight


def embedding(ids: Tensor, weight: Weight, dtype: torch.dtype) -> Tensor:
    """Look up rows (see `reference.embedding`)."""
    if isinstance(weight, Q4CudaWeight):
        from voxtral_pipes.kernels.q4_rows import look_up

        return look_up(ids.reshape(-1, 1), weight, dtype).view(*ids.shape, -1)
    return reference.embedding(ids, _stored(weight), dtype)


def embedding_sum(ids: Tensor, offsets: Tensor, weight: Weight, dtype: torch.dtype) -> Tensor:
    """Add rows up in float32: ids int64 [..., K], offsets int64 [K] added to them, weight [M, N] -> [..., N]."""
    if isinstance(weight, Q4CudaWeight):
        from voxtral_pipes.kernels.q4_rows import look_up

        return look_up(ids.reshape(-1, ids.shape[-1]), weight, dtype, offsets).view(*ids.shape[:-1], -1)
    return reference.embedding(ids + offsets, _stored(weight), torch.float32).sum(dim=-2).to(dtype)


def head(x: Tensor, weight: Weight | HeadWeight, forbidden: Tensor | None = None) -> Tensor:
    """Multiply by the tied embedding in float32: see `reference.head`."""
    if isinstance(weight, HeadWeight):
        return cpu.head(x, weight, forbidden)
    if isinstance(weight, Q4CudaWeight):
        from voxtral_pipes.kernels.rows import linear_rows

        logits = torch.cat([linear_rows(row[None], weight, dtype=torch.float32) for row in x.contiguous()])
        return logits if forbidden is None else logits.masked_fill_(forbidden, -torch.inf)
    return reference.head(x, _stored(weight), forbidden)


def choose(logits: Tensor, apart: int) -> Tensor:
    """Say what greedy decoding needs to know of logits float32 [B, M]: see `reference.choose`."""
    if logits.is_cuda and wants_triton():
        from voxtral_pipes.kernels.choose import choose as choose_on_cuda

        return choose_on_cuda(logits, apart)
    return reference.choose(logits, apart)


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
    if isinstance(weight, Q4CudaWeight | Q4TileWeight):
        if fits_triton(x, weight):
            return _linear_rows(x, weight, bias=bias)
        weight = _unpacked(weight, x.dtype)
    return reference.linear(x, weight, bias)


def _unpacked(weight: Q4CudaWeight | Q4TileWeight, dtype: torch.dtype) -> Tensor:
    if isinstance(weight, Q4TileWeight):
        from voxtral_pipes.kernels import q4_tile_layout

        return q4_tile_layout.unpack(weight, dtype)
    from voxtral_pipes.kernels.q4_rows import unpack

    return unpack(weight, dtype)


def _linear_rows(x: Tensor, weight: Weight, **beside: Any) -> Tensor:
    """Multiply where `fits_triton`: see `rows.linear_rows`, and `q4_tiles.linear`, which has its own way with norms."""
    rows = _rows(x).contiguous()
    if isinstance(weight, Q4TileWeight):
        from voxtral_pipes.kernels import q4_tiles

        norm = beside.pop("norm", None)
        y = q4_tiles.linear(rows if norm is None else q4_tiles.begin(rows, norm), weight, **beside)
    else:
        from voxtral_pipes.kernels.rows import linear_rows

        assert isinstance(weight, Tensor | Q4CudaWeight)
        y = linear_rows(rows, weight, **beside)
    return y.view(*x.shape[:-1], -1)


def rms_norm(x: Tensor, norm: Tensor, eps: float) -> Tensor:
    """Compute `x rsqrt(mean(x^2) + eps) norm`: x [..., N], norm [N], result as x."""
    if fits_triton(x, norm):
        from voxtral_pipes.kernels.rows import norm_rows

        return norm_rows(_rows(x).contiguous(), norm, eps).view(x.shape)
    return reference.rms_norm(x, norm, eps)


def norm_swiglu(x: Tensor, norm: Tensor, eps: float, gate: Weight, up: Weight) -> Tensor:
    """Compute `silu(gate n) * (up n)` of n = rms_norm(x): x [..., N], gate and up [M, N], result [..., M]."""
    if fits_triton(x, gate, up):
        return _linear_rows(x, gate, norm=norm, eps=eps, up=up)
    if isinstance(gate, Tensor) and isinstance(up, Tensor) and fits_float(x, gate, up):
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
    if scale is None and fits_triton(x, weight):
        return _linear_rows(x, weight, bias=bias, residual=_rows(residual).contiguous())
    if isinstance(weight, Tensor) and bias is None and fits_float(x, weight):
        from voxtral_pipes.kernels.float_rows import float_rows

        rows, behind = _rows(x).contiguous(), _rows(residual).contiguous()
        return float_rows(rows, weight, residual=behind, scale=scale).view(residual.shape)
    y = linear(x, weight, bias)
    return residual + (y if scale is None else scale * y)


def begin_norm(x: Tensor, norm: Tensor) -> NormRows:
    """Begin the norm of a few rows for weights `in_tiles`: see `q4_tiles.begin`."""
    from voxtral_pipes.kernels import q4_tiles

    return q4_tiles.begin(x, norm)


def add_and_begin(
    residual: Tensor, x: Tensor, weight: Weight, norm: Tensor, bias: Tensor | None = None, apart: int = 1
) -> NormRows:
    """Add a product of a few rows, of a weight `in_tiles`, and begin the norm behind it: see `q4_tiles.add`."""
    from voxtral_pipes.kernels import q4_tiles

    assert isinstance(weight, Q4TileWeight)
    return q4_tiles.add(residual, x, weight, norm, bias=bias, apart=apart)


def begun_swiglu(x: NormRows, eps: float, gate: Weight, up: Weight) -> Tensor:
    """Compute `silu(gate n) * (up n)` of the norm that has been begun, of weights `in_tiles`."""
    from voxtral_pipes.kernels import q4_tiles

    assert isinstance(gate, Q4TileWeight) and isinstance(up, Q4TileWeight)
    return q4_tiles.linear(x, gate, eps=eps, up=up)


def begun_linear(x: NormRows, norm: Tensor, eps: float, weight: Weight) -> Tensor:
    """Compute `n W^T` in float32, n being the norm that has been begun with the gain `norm`."""
    if isinstance(weight, Q4TileWeight):
        from voxtral_pipes.kernels import q4_tiles

        return q4_tiles.linear(x, weight, eps=eps, dtype=torch.float32)
    return _linear_rows(x.rows, weight, norm=norm, eps=eps, dtype=torch.float32)


def attend_few(
    x: Tensor | NormRows,
    norm: Tensor,
    eps: float,
    weights: Projections,
    biases: tuple[Tensor | None, Tensor | None, Tensor | None],
    turn: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    window: int,
) -> Tensor:
    """Attend with the next positions where `fits_triton_heads`: see `decode_attention.attend_few`."""
    from voxtral_pipes.kernels import decode_attention

    ring = turn, keys, values, position, window
    if biases == (None, None, None) and isinstance(x, Tensor) and len(x) == 1 and not in_tiles(*weights):
        return decode_attention.attend_one(x, norm, eps, weights, *ring)
    return decode_attention.attend_few(x, norm, eps, weights, biases, *ring)


def attend_window(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gains: tuple[Tensor, Tensor],
    eps: float,
    slopes: Tensor,
    held_keys: Tensor,
    held_values: Tensor,
) -> Tensor:
    """Attend with the next positions of a codec's layer where `fits_window`: q, k, v [1, T, N], result alike.

    See `codec_window.attend_window`; what is held is [1, W, H, D], contiguous, and written in place.
    """
    from voxtral_pipes.kernels import codec_window

    width = q.shape[-1]
    asked, keys, values = (t.reshape(-1, width).contiguous() for t in (q, k, v))
    held = held_keys.view(-1, width), held_values.view(-1, width)
    return codec_window.attend_window(asked, keys, values, gains, eps, slopes, *held)[None]


def flow_mix(
    y: Tensor | NormRows, norm: Tensor, eps: float, weights: Projections, head_dim: int, queries: int
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


def flow_move_and_begin(
    state: Tensor,
    velocity: Tensor,
    weight: Tensor,
    time: Tensor,
    condition: Tensor,
    norm: Tensor,
    guidance: float,
    length: float,
) -> tuple[Tensor, NormRows]:
    """Do as `flow_move`, and begin the norm behind it, for weights `in_tiles`: see `flow_step.move_and_begin`."""
    from voxtral_pipes.kernels import flow_step

    return flow_step.move_and_begin(state, velocity, weight, time, condition, norm, guidance, length)


def norm_linear(x: Tensor, norm: Tensor, eps: float, weight: KernelWeight) -> Tensor:
    """Compute `rms_norm(x) W^T` in float32 where `fits_triton`: x [R, N], weight [M, N]."""
    return _linear_rows(x, weight, norm=norm, eps=eps, dtype=torch.float32)


__all__ = [
    "FEW_ROWS",
    "add_and_begin",
    "add_linear",
    "attend_few",
    "attend_window",
    "attention",
    "begin_norm",
    "begun_linear",
    "begun_swiglu",
    "check_kernels",
    "choose",
    "describe",
    "embedding",
    "embedding_sum",
    "fits_float",
    "fits_triton",
    "fits_triton_heads",
    "fits_window",
    "flow_mix",
    "flow_move",
    "flow_move_and_begin",
    "head",
    "in_tiles",
    "linear",
    "norm_linear",
    "norm_linears",
    "norm_swiglu",
    "pick_device",
    "prepare",
    "prepare_head",
    "prepare_table",
    "rms_norm",
    "rotate",
    "swiglu",
    "torch_dtype",
]
