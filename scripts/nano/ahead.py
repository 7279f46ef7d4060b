"""Batches drawn ahead by other processes, while the device is at work on the ones before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

Drawn = TypeVar("Drawn")


def drawn_ahead(draw: Callable[[int], Drawn], numbers: Sequence[int], workers: int) -> Iterable[Drawn]:
    """Return what `draw` gives for each number, in order, by so many processes; by this one if there are none."""
    return DataLoader(
        _Batches(draw), batch_size=None, sampler=numbers, num_workers=workers, collate_fn=_as_it_is
    )


class _Batches(Dataset[Drawn]):
    def __init__(self, draw: Callable[[int], Drawn]) -> None:
        self._draw = draw

    def __getitem__(self, number: int) -> Drawn:
        return self._draw(number)


def _as_it_is(batch: Any) -> Any:
    return batch
