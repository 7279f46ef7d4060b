"""Questions to the tensor table of a GGUF without params.json: what shapes tell of the hyperparameters."""

from __future__ import annotations

import re
from collections.abc import Mapping

from voxtral_pipes.errors import BadModelError


class TableShapes:
    """The shapes of a table, row-major, by Mistral's names; every answer that is not there is an error."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], label: str) -> None:
        self._shapes = shapes
        self._label = label

    def has(self, name: str) -> bool:
        """Tell whether there is such a tensor."""
        return name in self._shapes

    def size(self, name: str, axis: int, n_axes: int = 2) -> int:
        """Return one size of a tensor that must have `n_axes`."""
        shape = self._shapes.get(name)
        if shape is None or len(shape) != n_axes:
            raise BadModelError(
                f"{self._label}: {name} is missing or malformed, and there is no params.json beside it"
            )
        return shape[axis]

    def layers(self, prefix: str) -> int:
        """Count the layers whose names are `prefix` and a number."""
        pattern = re.compile(re.escape(prefix) + r"(\d{1,3})\.")
        return max((int(m[1]) + 1 for name in self._shapes if (m := pattern.match(name))), default=0)

    def heads(self, name: str, head_dim: int) -> int:
        """Return how many heads of `head_dim` a projection has."""
        rows = self.size(name, 0)
        if rows % head_dim:
            raise BadModelError(
                f"{self._label}: {name} has {rows} rows, not a multiple of the published head size {head_dim}: "
                "put the params.json of this model beside it"
            )
        return rows // head_dim

    def stack(self, prefix: str, head_dim: int) -> dict[str, int]:
        """Return the sizes of the stack of layers `prefix`N., under the names that configurations have for them."""
        return {
            "n_layers": self.layers(prefix),
            "n_heads": self.heads(f"{prefix}0.attention.wq.weight", head_dim),
            "n_kv_heads": self.heads(f"{prefix}0.attention.wk.weight", head_dim),
            "hidden_dim": self.size(f"{prefix}0.feed_forward.w1.weight", 0),
        }
