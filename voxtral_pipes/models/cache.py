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
    """Slots to look at; those beyond were never written."""
    mask: Tensor | None
    """bool [n, held], True where a query attends; None where it attends to all of them."""
    position: Tensor | None = None
    """int64 [1] on the device, where a kernel works out the rest of one position by itself."""

    @classmethod
    def of(cls, slots: Tensor, mask: Tensor) -> Span:
        """Make the form that has one shape for many positions, as CUDA graphs need it."""
        return cls(slots, mask.shape[1], mask)

    @classmethod
    def one(cls, position: Tensor) -> Span:
        """Make the form that has one shape for all positions."""
        return cls(position, 0, None, position)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return slots and mask of a span that was made by `of`."""
        if not isinstance(self.slots, Tensor) or self.mask is None:
            raise TypeError("this span is not of the form for CUDA graphs")
        return self.slots, self.mask


FIRST_BUCKET = 1024
"""On CUDA a ring is looked at in powers of two from here on, so that a few graphs serve all positions."""
ALIGNED = 64
"""Attention kernels want the width of a mask to be a multiple of 8 or more, and copy it otherwise."""


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
        capacity = window + max_step - 1.  On the CPU memory is not touched before it is used.
        """
        capacity = window + max_step - 1
        if device.type == "cuda":
            capacity += -capacity % ALIGNED
        shape = (layers, batch, heads, capacity, head_dim)
        keys, values = (torch.empty(shape, device=device, dtype=dtype) for _ in range(2))
        if device.type == "cuda":
            # A bucket reaches beyond what was written, and a masked NaN would still be one.
            keys.zero_()
            values.zero_()
        return cls(keys, values, window)

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
        if self.keys.is_cuda:
            bucket = max(FIRST_BUCKET, 1 << (end - 1).bit_length())
            slots = torch.arange(position, end) % capacity
            return Span.of(slots, self._mask(position, steps, min(capacity, bucket)))
        held, first = min(end, capacity), position % capacity
        wraps = first + steps > capacity
        where = torch.arange(position, end) % capacity if wraps else slice(first, first + steps)
        needs_mask = steps > 1 or held > self.window
        return Span(where, held, self._mask(position, steps, held) if needs_mask else None)

    def _mask(self, position: int, steps: int, held: int) -> Tensor:
        """Tell which slots each query of a step sees, bool [steps, held], on the host."""
        last = position + steps - 1
        holds = last - (last - torch.arange(held)) % self.capacity
        queries = torch.arange(position, position + steps)[:, None]
        return (holds >= 0) & (holds <= queries) & (holds > queries - self.window)

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

    def __init__(self, head_dim: int, theta: float) -> None:
        self._rates = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        self._blocks: OrderedDict[int, Tensor] = OrderedDict()

    def at(self, position: int, steps: int) -> Tensor:
        """Return complex64 [steps, D / 2] for positions from `position` on, on the host."""
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
            block = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
            self._blocks[number] = block
            while len(self._blocks) > self.KEEP:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return block
