"""Write safetensors of BF16 tensors (formats.md section 4)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod


def bf16_header(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """Return what comes before the data of BF16 tensors, which follow in the order of `shapes` without gaps."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + 2 * prod(shape)
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
