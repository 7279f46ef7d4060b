"""What the weights of a stage take: in the file, on the device, and on the device while the stage runs."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import torch

from voxtral_pipes.models.checkpoint import Checkpoint


def precision(checkpoint: Checkpoint, names: Iterable[str], dtype: torch.dtype) -> str:
    """Say what most numbers of these tensors are stored as, and what is computed in: "Q4_0 weights, bf16"."""
    counts: Counter[str] = Counter()
    for name in names:
        info = checkpoint.info(name)
        counts[info.type] += prod(info.shape)
    return f"{counts.most_common(1)[0][0]} weights, {'f32' if dtype == torch.float32 else 'bf16'}"


def stage_memory(
    stage: str,
    stored_bytes: int,
    device: torch.device,
    load: Callable[[], Any],
    run: Callable[[Any, str], None],
    inputs: Sequence[str],
) -> dict[str, float]:
    """Load a stage, alone on the device, run it on each of the named inputs, and return what it took, in GB.

    Without inputs nothing is loaded; on the CPU there is only the figure of the file (the memory of processes is in
    the figures of the pipes).
    """
    figures = {f"{stage}, weights in the file GB": stored_bytes / 1e9}
    if not inputs:
        return figures
    cuda = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if cuda else 0
    part = load()
    if cuda:
        figures[f"{stage}, loaded GB"] = (torch.cuda.memory_allocated(device) - before) / 1e9
    for given in inputs:
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        run(part, given)
        if cuda:
            peak = torch.cuda.max_memory_allocated(device) - before
            figures[f"{stage}, peak over {given} GB"] = peak / 1e9
    del part
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return figures
