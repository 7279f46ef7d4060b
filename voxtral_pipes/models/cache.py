"""State that a transformer carries along a stream: ring buffers of keys and values, and rotary angles.

Both have no end: positions are absolute integers that only grow (asr.md section 15).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Span:
    """Where one step of n positions goes in a ring and what it sees; the same for every layer."""

    slots: slice | Tensor
    """Slots that take the new keys."""
    held: int
    """Slots in use once they are written; the rest was never written."""
    mask: Tensor | None
    """bool [n, held], True where a query attends; None where it attends to all of them."""


@dataclass(slots=True)
class RingKV:
    """Keys and values of one stack of layers, [layers, B, H, capacity, D], written in place by its owner alone.

    Slot s holds the newest position p with p mod capacity = s.  Keys are stored rotated by their absolute
    position and attention does not mind order, so nothing is ever moved.
    """

    keys: Tensor
    values: Tensor
    window: int
    """Keys a query sees, itself included."""

    @classmethod
    def new(
        cls,
        *,
        layers: int,
        batch: int,
        heads: int,
        head_dim: int,
        window: int,
        max_step: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> RingKV:
        """Allocate for steps of up to `max_step` positions.

        A step is written before it attends, so it must not evict what its first query still sees:
        capacity = window + max_step - 1.  Memory is not touched before it is used.
        """
        shape = (layers, batch, heads, window + max_step - 1, head_dim)
        return cls(
            torch.empty(shape, device=device, dtype=dtype),
            torch.empty(shape, device=device, dtype=dtype),
            window,
        )

    @property
    def capacity(self) -> int:
        """Slots of the ring."""
        return self.keys.shape[3]

    def span(self, position: int, steps: int) -> Span:
        """Plan the step at positions `position .. position + steps - 1`."""
        capacity, end = self.capacity, position + steps
        if steps > capacity or (position > 0 and steps > capacity - self.window + 1):
            raise ValueError(
                f"a step of {steps} at {position} overruns a ring of {capacity}, window {self.window}"
            )
        held = min(end, capacity)
        device = self.keys.device
        first = position % capacity
        slots: slice | Tensor = slice(first, first + steps)
        if first + steps > capacity:
            slots = torch.arange(position, end, device=device) % capacity
        if steps == 1 and held <= self.window:
            return Span(slots, held, None)
        last = end - 1
        holds = torch.arange(held, device=device)
        holds = last - (last - holds) % capacity
        queries = torch.arange(position, end, device=device)[:, None]
        return Span(slots, held, (holds <= queries) & (holds > queries - self.window))

    def write(self, layer: int, span: Span, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, H, n, D] of one layer and return all keys and values in use, [B, H, held, D]."""
        self.keys[layer][:, :, span.slots] = keys
        self.values[layer][:, :, span.slots] = values
        return self.keys[layer][:, :, : span.held], self.values[layer][:, :, : span.held]


class Rotary:
    """Rotations e^(i p theta^(-2k/D)) for any position; holds only a few blocks of them, shared by all streams.

    Angles are computed in float64 from the integer position: float32 angles are off by 0.008 rad at
    position 131072 already (asr.md section 15).
    """

    BLOCK = 1024
    KEEP = 4

    def __init__(self, head_dim: int, theta: float, device: torch.device) -> None:
        self._rates = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        self._device = device
        self._blocks: OrderedDict[int, Tensor] = OrderedDict()

    def at(self, position: int, steps: int) -> Tensor:
        """Return complex64 [steps, D / 2] for positions from `position` on."""
        first, last = position // self.BLOCK, (position + steps - 1) // self.BLOCK
        pieces = [self._block(number) for number in range(first, last + 1)]
        table = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        offset = position - first * self.BLOCK
        return table[offset : offset + steps]

    def _block(self, number: int) -> Tensor:
        block = self._blocks.get(number)
        if block is None:
            positions = torch.arange(number * self.BLOCK, (number + 1) * self.BLOCK, dtype=torch.float64)
            angles = torch.outer(positions, self._rates)
            block = torch.polar(torch.ones_like(angles), angles).to(torch.complex64).to(self._device)
            self._blocks[number] = block
            while len(self._blocks) > self.KEEP:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return block
