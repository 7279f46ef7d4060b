"""The bare products of a run on a CPU: what it would take if there were nothing else in it.

A run is recorded once, and its matrix products are then made again in their order, with the same weights and inputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_NAMES = (
    "aten::_weight_int4pack_mm_for_cpu",
    "aten::addmm",
    "aten::bmm",
    "aten::linear",
    "aten::mm",
    "mkldnn::_linear_pointwise",
)
Product = Callable[[], Any]


class Products(TorchDispatchMode):
    """Remembers the products that are made while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Product] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Do what is asked for, and keep it if it is a product."""
        given = dict(kwargs or {})
        if func.name().partition(".")[0] in _NAMES:
            self.made.append(lambda: func(*args, **given))
        return func(*args, **given)


def seconds_of(products: Sequence[Product]) -> float:
    """Make products again, one after the other, and return how long that takes."""
    with torch.inference_mode():
        started = time.perf_counter()
        for product in products:
            product()
        return time.perf_counter() - started
