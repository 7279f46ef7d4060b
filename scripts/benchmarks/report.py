"""Figures and how they are shown."""

from __future__ import annotations

import json
import math
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0..1) of the sorted values lie (nearest rank); NaN of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def median(values: Sequence[float]) -> float:
    """Return the median; NaN of none."""
    return percentile(values, 0.5)


def machine() -> dict[str, Any]:
    """Say what the figures were measured on."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
    }


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_gb(device: torch.device) -> dict[str, float]:
    """Return the peak memory of this process so far."""
    import torch

    figures = {"peak host GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}
    if device.type == "cuda":
        figures["peak device GB"] = torch.cuda.max_memory_allocated(device) / 1e9
    return figures


def show(results: Mapping[str, Mapping[str, Any]], as_json: bool) -> None:
    """Print sections of figures, as aligned lines or as one JSON object; a line may have several, by name."""
    if as_json:
        json.dump(results, sys.stdout, indent=1)
        print()
        return
    for section, figures in results.items():
        print(section)
        width = max(map(len, figures), default=0)
        for name, value in figures.items():
            print(f"  {name:<{width}}  {_text(value)}")


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "  ".join(f"{name} {_text(one):<8}" for name, one in value.items()).rstrip()
    return f"{value:.4g}" if isinstance(value, float) else str(value)
