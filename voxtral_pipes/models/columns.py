"""The columns of a picture, bounded whatever the length of what is drawn.

Up to twice `limit` columns are kept, in the order they came; when they are full each two become one, and from then
on a column stands for twice as many rows.  Rows on their way into a column are reduced in steps of at most
`STEP_ROWS`, so what waits grows with the logarithm of the length only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

COLUMNS = 2048
STEP_ROWS = 1024

Array = npt.NDArray[Any]
Reduce = Callable[[Array], Array]
"""[n, group, width] -> [n, width]; doing it in two steps of equal groups must give the same."""


def mean(groups: Array) -> Array:
    """Average; NaN stays NaN."""
    averages: Array = groups.mean(axis=1, dtype=np.float32)
    return averages


def first(groups: Array) -> Array:
    """Keep one of each group as it is, for values between which there is nothing."""
    return groups[:, 0]


def extremes(groups: Array) -> Array:
    """Keep the least of column 0 and the greatest of column 1."""
    return np.stack([groups[:, :, 0].min(axis=1), groups[:, :, 1].max(axis=1)], axis=1)


class _Step:
    """Reduces groups of rows; holds less than one group."""

    def __init__(self, group: int, reduce: Reduce, like: Array) -> None:
        self._group = group
        self._reduce = reduce
        self.waiting = like[:0]

    def push(self, rows: Array) -> Array:
        rows = np.concatenate([self.waiting, rows])
        whole = len(rows) - len(rows) % self._group
        self.waiting = rows[whole:].copy()
        return self._reduce(rows[:whole].reshape(-1, self._group, rows.shape[1]))


class Columns:
    """Rows [n, width] of one stream, reduced to what fits."""

    def __init__(self, width: int, dtype: npt.DTypeLike, reduce: Reduce, limit: int = COLUMNS) -> None:
        self._kept = np.empty((2 * limit, width), dtype)
        self._reduce = reduce
        self._filled = 0
        self._steps: list[_Step] = []
        self.group = 1
        """Rows that one column stands for."""
        self.rows = 0
        """Rows that have come."""

    @property
    def width(self) -> int:
        """Values in a row."""
        return self._kept.shape[1]

    def add(self, rows: Array) -> None:
        """Take rows [n, width]; nothing of them is held."""
        with np.errstate(all="ignore"):
            while len(rows):
                # Not beyond the last free column: behind it a column stands for twice as many rows.
                room = len(self._kept) * self.group - self.rows
                part, rows = rows[:room], rows[room:]
                self.rows += len(part)
                for step in self._steps:
                    part = step.push(part)
                self._kept[self._filled : self._filled + len(part)] = part
                self._filled += len(part)
                if self._filled == len(self._kept):
                    self._halve()

    def _halve(self) -> None:
        limit = len(self._kept) // 2
        self._kept[:limit] = self._reduce(self._kept.reshape(limit, 2, self.width))
        self._filled = limit
        self.group *= 2
        self._steps = []
        left = self.group
        while left > 1:
            group = min(left, STEP_ROWS)
            self._steps.append(_Step(group, self._reduce, self._kept))
            left //= group

    def image(self) -> Array:
        """Return the columns [n, width], the last one of the rows that are left, however few."""
        rest = self._kept[:0]
        with np.errstate(all="ignore"):
            for step in self._steps:  # weighs a part like a whole, in the one column that is not complete
                rest = np.concatenate([step.waiting, rest])
                if len(rest):
                    rest = self._reduce(rest[None])
        return np.concatenate([self._kept[: self._filled], rest])

    def share(self) -> float:
        """Return how much longer the columns are than the rows: 1 or a little more, for the last one."""
        return len(self.image()) * self.group / max(1, self.rows)
