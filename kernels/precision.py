"""The arithmetic of a stage as a word, so that a command can say it before torch is imported."""

from __future__ import annotations

from typing import Literal

from voxtral_pipes.errors import UsageError

SMALL_BYTES = 256 << 20
"""Up to this many bytes, float32 costs nothing that matters, and `auto` takes it."""

Precision = Literal["f32", "bf16"]


def pick_precision(name: str, unpacked_bytes: int) -> Precision:
    """Turn auto, f32 or bf16 into one of the latter; `unpacked_bytes` counts packed weights as bfloat16."""
    if name == "auto":
        return "f32" if unpacked_bytes <= SMALL_BYTES else "bf16"
    if name not in ("f32", "bf16"):
        raise UsageError(f"--dtype {name!r} (or VX_DTYPE) is none of auto, f32, bf16")
    return "f32" if name == "f32" else "bf16"
