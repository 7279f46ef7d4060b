"""Bring stored bytes of tensors to a CUDA device in the time that the bus takes, without a second copy on the host.

    files (page cache) --several threads, preadv--> pinned buffers, in turn --asynchronous copies--> device

To copy from a mapped file instead is several times slower (its pages fault one by one and are not pinned), and every
page that was looked at counts as memory of the process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from voxtral_pipes.models.checkpoint import Checkpoint

BUFFER_BYTES, BUFFERS = 16 << 20, 4
READ_BYTES, READERS = 4 << 20, 8
"""What a thread reads at a time, and how many threads there are."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Stored bytes `begin` to `begin + size` of a tensor, and where in a buffer they go."""

    name: str
    begin: int
    at: int
    size: int
    last: bool
    """The tensor ends with it."""


def plan(sizes: Mapping[str, int], buffer_bytes: int) -> Iterator[list[Piece]]:
    """Lay tensors of these sizes, in that order, into buffers: each but the last is filled to its end."""
    pieces: list[Piece] = []
    at = 0
    for name, size in sizes.items():
        begin, last = 0, False
        while not last:
            count = min(size - begin, buffer_bytes - at)
            last = begin + count == size
            pieces.append(Piece(name, begin, at, count, last))
            begin, at = begin + count, at + count
            if at == buffer_bytes:
                yield pieces
                pieces, at = [], 0
    if pieces:
        yield pieces


class _Buffer:
    """Host memory to read into and to copy from, again and again."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._device = device
        self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._view = self._memory.numpy().data
        self._await_copies: Callable[[], None] = lambda: None
        self._pieces: Iterable[Piece] = ()
        self._reads: list[Future[None]] = []

    def read(
        self, checkpoint: Checkpoint, pieces: Iterable[Piece], pool: ThreadPoolExecutor, read_bytes: int
    ) -> None:
        """Begin to read `pieces`, once what was copied from here before has arrived."""
        self._await_copies()
        self._pieces = pieces
        self._reads = [
            pool.submit(
                checkpoint.read_into,
                piece.name,
                piece.begin + done,
                self._view[piece.at + done : piece.at + min(done + read_bytes, piece.size)],
            )
            for piece in pieces
            for done in range(0, piece.size, read_bytes)
        ]

    def copy(self, targets: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Wait until all is read and begin to copy it to `targets`; yield, and take out, those that end with it."""
        for read in self._reads:
            read.result()
        for piece in self._pieces:
            source = self._memory[piece.at : piece.at + piece.size]
            targets[piece.name][piece.begin : piece.begin + piece.size].copy_(source, non_blocking=True)
        if self._device.type == "cuda":
            copied = torch.cuda.Event(blocking=True)  # to spin would take a core from those that read
            copied.record(torch.cuda.current_stream(self._device))
            self._await_copies = copied.synchronize
        yield from [(piece.name, targets.pop(piece.name)) for piece in self._pieces if piece.last]


def staged(
    checkpoint: Checkpoint,
    names: Iterable[str],
    device: torch.device,
    *,
    buffer_bytes: int = BUFFER_BYTES,
    buffers: int = BUFFERS,
    read_bytes: int = READ_BYTES,
    readers: int = READERS,
) -> Iterator[tuple[str, Tensor]]:
    """Yield the stored bytes of each tensor, uint8 [bytes] on `device`, in order.

    They may still be on their way: work on them belongs on the current stream of the device, behind the copies.

    Raises:
        BadModelError: a tensor is missing, or a file cannot be read.
    """
    sizes = {name: checkpoint.info(name).nbytes for name in names}
    capacity = min(buffer_bytes, sum(sizes.values()))
    ring: list[_Buffer] = []
    reading: deque[_Buffer] = deque()
    targets: dict[str, Tensor] = {}
    with ThreadPoolExecutor(readers, "read-weights") as pool:
        for number, pieces in enumerate(plan(sizes, capacity)):
            targets |= {
                piece.name: torch.empty(sizes[piece.name], dtype=torch.uint8, device=device)
                for piece in pieces
                if piece.begin == 0
            }
            if number < buffers:
                ring.append(_Buffer(capacity, device))
            if len(reading) == max(1, buffers - 1):
                yield from reading.popleft().copy(targets)
            buffer = ring[number % buffers]
            buffer.read(checkpoint, pieces, pool, read_bytes)
            reading.append(buffer)
        for buffer in reading:
            yield from buffer.copy(targets)
