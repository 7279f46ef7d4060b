"""The device, the arithmetic, and which kinds of kernels may be used on it (`VX_KERNELS`)."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch

from voxtral_pipes.errors import UnsupportedError, UsageError
from voxtral_pipes.kernels.precision import Precision

KERNELS = ("auto", "triton", "torch")


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
        raise UsageError(f"--device {name!r} (or VX_DEVICE) is none of auto, cpu, cuda, cuda:N")
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
    if wanted == "triton" and not (torch.cuda.is_available() and has_triton()):
        raise UnsupportedError(
            "VX_KERNELS=triton needs a CUDA device and the package triton; unset it or say torch"
        )


@cache
def has_triton() -> bool:
    """Tell whether triton is installed."""
    return find_spec("triton") is not None


def wants_plain() -> bool:
    """Tell whether nothing but plain torch may be used."""
    return os.environ.get("VX_KERNELS", "auto") == "torch"


def wants_triton() -> bool:
    """Tell whether Triton kernels may be used where they fit."""
    return not wants_plain() and has_triton()
