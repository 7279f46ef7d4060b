"""A causal transformer over a ring of keys: what the audio encoder, the text decoder and the speech backbone share.

`Stack` is weights, read-only and shared by all streams; `StackState` is what one lockstep batch of streams carries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from voxtral_pipes.config import BackboneConfig, DecoderConfig, EncoderConfig
from voxtral_pipes.kernels import dispatch as ops
from voxtral_pipes.kernels.graphs import Replayed
from voxtral_pipes.kernels.packed import Weight
from voxtral_pipes.models.cache import RingKV, Rotary, Span
from voxtral_pipes.models.layers import Block, dense

StackConfig = EncoderConfig | DecoderConfig | BackboneConfig

Run = Callable[..., Tensor]
"""The tensor work of one step, without the bookkeeping: called with the step's inputs, then turn and span."""


@dataclass(frozen=True, slots=True)
class Place:
    """Some positions as a step by the Triton kernels takes them."""

    position: int
    steps: int
    turn: Tensor
    first: Tensor
    """`position`, int64 [1]."""


@dataclass(slots=True)
class StackState:
    """Owned by its caller, changed only by `Stack.advance`."""

    kv: RingKV
    position: int
    """Positions done; absolute, without end."""
    run: Run
    """Bound to this state's own tensors."""
    to_host: bool = field(default=False, kw_only=True)
    """What steps give is wanted on the host."""
    ahead: int = field(default=1, kw_only=True)
    """Steps of a few positions that may be under way at a time."""
    graphs: Replayed = field(init=False)
    """On CUDA: `run` as graphs, a span as its slots and mask."""
    single: Replayed = field(init=False)
    """On CUDA with Triton: `run` as one graph for each small number of positions, wherever they are."""
    following: Place | None = field(default=None, init=False)
    """What the next step probably needs, made while the device was at work."""

    def restart(self) -> None:
        """Begin new streams; memory and graphs stay, and what others wrote is not seen before it is written again."""
        self.position = 0

    def __post_init__(self) -> None:
        run = self.run
        self.graphs = Replayed(lambda *inputs: run(*inputs[:-2], Span.of(*inputs[-2:])), to_host=self.to_host)
        self.single = Replayed(
            lambda *inputs: run(*inputs[:-1], Span.one(inputs[-1])), to_host=self.to_host, ahead=self.ahead
        )


@dataclass(frozen=True, slots=True)
class Stack:
    """Blocks, rotary angles and the final norm."""

    blocks: tuple[Block, ...]
    norm: Tensor
    norm_eps: float
    rotary: Rotary
    n_kv_heads: int
    few_positions: int
    """So many at a time go by the Triton kernels; 0 where they do not fit."""

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, Weight],
        prefix: str,
        config: StackConfig,
        *,
        rows: ops.Rows = "one",
    ) -> Stack:
        """Take `PREFIXlayers.N.*` and `PREFIXnorm.weight`, all on one device.

        `rows` says of how many positions steps mostly are.
        """
        norm = dense(tensors, f"{prefix}norm.weight")
        blocks = tuple(
            Block.of(tensors, f"{prefix}layers.{i}.", config.head_dim, config.norm_eps, rows=rows)
            for i in range(config.n_layers)
        )
        return cls(
            blocks=blocks,
            few_positions=max(
                (n for n in range(1, ops.FEW_ROWS + 1) if _fit_triton(blocks, norm, n)), default=0
            ),
            norm=norm,
            norm_eps=config.norm_eps,
            rotary=Rotary(config.head_dim, config.rope_theta),
            n_kv_heads=config.n_kv_heads,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norm.device

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return self.norm.dtype

    def new_kv(self, *, batch: int, window: int, max_step: int) -> RingKV:
        """Allocate the ring of a new state."""
        return RingKV.new(
            layers=len(self.blocks),
            batch=batch,
            heads=self.n_kv_heads,
            head_dim=self.blocks[0].head_dim,
            window=window,
            max_step=max_step,
            device=self.device,
            dtype=self.dtype,
        )

    def advance(self, state: StackState, steps: int, *inputs: Tensor, record: bool = True) -> Tensor:
        """Run the next `steps` positions and return what `state.run` makes of the inputs.

        On CUDA by a graph; with `record` False only by one that is there: a length that hardly comes again is not
        worth a new one.
        """
        return self.start(state, steps, *inputs, record=record)()

    def start(
        self, state: StackState, steps: int, *inputs: Tensor, record: bool = True
    ) -> Callable[[], Tensor]:
        """Start what `advance` does; what is returned gives the result.

        A few positions on CUDA are under way meanwhile, up to `state.ahead` such steps, whose results are asked for in
        order; all else is done when this returns.
        """
        if steps <= self.few_positions and state.kv.keys.shape[1] == 1:
            place = state.following
            if place is None or (place.position, place.steps) != (state.position, steps):
                place = self._place(state.position, steps)
            pending = state.single.start(self.device, *inputs, place.turn, place.first)
            state.position += steps
            state.following = self._place(state.position, steps)
            return pending
        result = self._advance(state, steps, inputs, record)
        return lambda: result

    def _place(self, position: int, steps: int) -> Place:
        return Place(position, steps, self.rotary.at(position, steps), torch.full((1,), position))

    def _advance(self, state: StackState, steps: int, inputs: tuple[Tensor, ...], record: bool) -> Tensor:
        turn = self.rotary.at(state.position, steps)
        span = state.kv.span(state.position, steps)
        if self.device.type == "cuda" and (record or state.graphs.knows(*inputs, turn, *span.tensors())):
            result = state.graphs(self.device, *inputs, turn, *span.tensors())
        elif self.device.type == "cuda":
            placed = Span.of(*(tensor.to(self.device) for tensor in span.tensors()))
            result = state.run(*(tensor.to(self.device) for tensor in (*inputs, turn)), placed)
        else:
            result = state.run(*inputs, turn, span)
        state.position += steps
        return result.cpu() if state.to_host else result

    def warm(self, state: StackState, *steps: Callable[[], object]) -> None:
        """Have `steps`, first ones of a new state, recorded ahead of its first input; nothing to do on the CPU."""
        if self.device.type == "cuda":
            for step in steps:
                for _ in range(1 + state.ahead):
                    state.restart()
                    step()
            state.restart()

    def __call__(
        self,
        x: Tensor,
        kv: RingKV,
        turn: Tensor,
        span: Span,
        ffn_norms: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """Run all blocks, x [B, T, dim] -> [B, T, dim], before the final norm; writes to `kv`."""
        if span.position is not None and ffn_norms is None and all(block.in_tiles for block in self.blocks):
            return self._in_tiles(x[0], kv, turn, span.position)[None]
        for layer, block in enumerate(self.blocks):
            x = block(x, turn, kv, layer, span, ffn_norms[layer] if ffn_norms else None)
        return x

    def _in_tiles(self, x: Tensor, kv: RingKV, turn: Tensor, position: Tensor) -> Tensor:
        """Run a few positions of one stream, x [T, dim], with each norm in the products before and behind it."""
        norms = [*(block.attention_norm for block in self.blocks), self.norm]
        y = ops.begin_norm(x.contiguous(), norms[0])
        for layer, block in enumerate(self.blocks):
            y = block.step_in_tiles(y, turn, kv, layer, position, norms[layer + 1])
        return y.rows

    def normed(self, x: Tensor) -> Tensor:
        """Apply the final norm."""
        return ops.rms_norm(x, self.norm, self.norm_eps)


def _fit_triton(blocks: Sequence[Block], norm: Tensor, positions: int) -> bool:
    """Tell whether so many positions, in the dtype and on the device of `norm`, can go by the Triton kernels."""
    x = norm.expand(positions, -1)
    return all(block.fits_triton(x) for block in blocks)
