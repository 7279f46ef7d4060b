"""The flow head: one hidden state to 37 codes, every 80 ms (tts.md sections 5 and 6).

    semantic = argmax(semantic_codebook_output h), EMPTY_AUDIO and padding masked, float32
    x ~ N(0, 1);  x += (a v(x, t, h) + (1 - a) v(x, t, 0)) / n   for t = 0, 1/n, .. (n - 1)/n
    acoustic = 2 + round(10 (clamp(x, -1, 1) + 1))

v reads token 0 of a small transformer over three tokens [x, t, h], bidirectional and without positions.  Frames do not
depend on each other: nothing is carried but the number of the frame, for its noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from voxtral_pipes.config import FlowConfig
from voxtral_pipes.kernels import dispatch as ops
from voxtral_pipes.kernels.graphs import Replayed
from voxtral_pipes.kernels.packed import HeadWeight, Weight
from voxtral_pipes.models.codes import CODE_OFFSET, EMPTY_AUDIO, END_AUDIO
from voxtral_pipes.models.layers import Block, Linear, dense, time_embedding
from voxtral_pipes.models.tts_shapes import FLOW


@dataclass(frozen=True, slots=True)
class Flow:
    """Weights of the flow head; read-only and shared by all streams."""

    config: FlowConfig
    input_projection: Linear
    time_projection: Linear
    llm_projection: Linear
    semantic_output: Weight | HeadWeight
    forbidden: tuple[Tensor, Tensor]
    """bool [rows of semantic_output]: what is no semantic code, without END_AUDIO and with it."""
    acoustic_output: Linear
    blocks: tuple[Block, ...]
    norm: Tensor
    device: torch.device
    dtype: torch.dtype
    _times: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, tensors: Mapping[str, Weight], config: FlowConfig) -> Flow:
        """Assemble from tensors under their released names, all on one device."""
        norm = dense(tensors, f"{FLOW}norm.weight")
        semantic = tensors[f"{FLOW}semantic_codebook_output.weight"]
        codes = torch.arange(semantic.shape[0], device=norm.device)
        forbidden = (codes == EMPTY_AUDIO) | (codes >= CODE_OFFSET + config.semantic_size)
        return cls(
            config=config,
            input_projection=Linear.of(tensors, f"{FLOW}input_projection"),
            time_projection=Linear.of(tensors, f"{FLOW}time_projection"),
            llm_projection=Linear.of(tensors, f"{FLOW}llm_projection").prepared(norm.dtype),
            semantic_output=ops.prepare_head(ops.prepare_table(semantic, norm.dtype), norm.dtype),
            forbidden=(forbidden, forbidden | (codes == END_AUDIO)),
            acoustic_output=Linear.of(tensors, f"{FLOW}acoustic_codebook_output").prepared(
                norm.dtype, rows="few"
            ),
            blocks=tuple(
                # Both branches of the guidance are six rows.
                Block.of(tensors, f"{FLOW}layers.{i}.", config.head_dim, config.norm_eps, rows="few")
                for i in range(config.n_layers)
            ),
            norm=norm,
            device=norm.device,
            dtype=norm.dtype,
        )

    @torch.inference_mode()
    def step(
        self, hidden: Tensor, noise: Tensor, steps: int, guidance: float, *, allow_end: bool = True
    ) -> Tensor:
        """Turn hidden states [B, input_dim] and noise float32 [B, acoustic_dim] into codes int64 [B, 1 + acoustic_dim].

        `steps` is the number of Euler steps, `guidance` the weight a of the conditional branch.  An END_AUDIO row is
        1, then 2s; with `allow_end` False it cannot come (a first frame that must not be empty).
        """
        hidden = hidden.to(self.device)
        semantic = self.semantic(hidden, allow_end=allow_end)
        x = self.integrate(hidden.to(self.dtype), noise.to(self.device, torch.float32), steps, guidance)
        half = (self.config.acoustic_levels - 1) / 2
        # Ties to even.  What is no number becomes a code of no codebook, on every device alike.
        levels = torch.round(half * (x.clamp(-1, 1) + 1)).nan_to_num(nan=-1.0 - CODE_OFFSET)
        acoustic = levels.to(torch.int64)
        acoustic = acoustic.masked_fill((semantic == END_AUDIO)[:, None], EMPTY_AUDIO)
        return torch.cat((semantic[:, None], acoustic + CODE_OFFSET), dim=1)

    @torch.inference_mode()
    def semantic(self, hidden: Tensor, *, allow_end: bool = True) -> Tensor:
        """Return the semantic code of each row, int64 [B], special offset included; of equals the lowest."""
        logits = ops.head(hidden, self.semantic_output, self.forbidden[not allow_end])
        best = logits.max(dim=-1, keepdim=True).values
        numbers = torch.arange(logits.shape[1], device=logits.device)
        return torch.where(logits == best, numbers, logits.shape[1]).min(dim=-1).values

    @torch.inference_mode()
    def integrate(self, hidden: Tensor, x: Tensor, steps: int, guidance: float) -> Tensor:
        """Integrate from noise x float32 [B, acoustic_dim] at t = 0 to t = 1; the end point is never evaluated.

        Float32 throughout.  Both branches of the guidance are one batch, so that weights are read once a step.
        """
        condition = self.condition(hidden)
        if len(x) == 1 and self._fits_triton(condition):
            if all(block.in_tiles for block in self.blocks):
                return self._integrate_in_tiles(x, condition, steps, guidance)
            return self._integrate_one(x, condition, steps, guidance)
        for token in self._time_tokens(steps):
            both = self.velocity(torch.cat((x, x)), token, condition)
            guided, free = both.chunk(2)
            x = x + (guidance * guided + (1 - guidance) * free) / steps
        return x

    def _fits_triton(self, tokens: Tensor) -> bool:
        ends = self.input_projection, self.acoustic_output
        return (
            all(end.bias is None for end in ends)
            and isinstance(self.input_projection.weight, Tensor)
            and ops.fits_triton(tokens, self.input_projection.weight)
            and ops.fits_triton(tokens, self.acoustic_output.weight)
            and all(
                ops.fits_triton_heads(
                    tokens[:1], block.head_dim, block.wq.weight, block.wk.weight, block.wv.weight
                )
                for block in self.blocks
            )
        )

    def _integrate_one(self, x: Tensor, condition: Tensor, steps: int, guidance: float) -> Tensor:
        """Integrate one frame, x [1, acoustic_dim], with the kernels of `flow_step`: the same, in fewer launches."""
        weight, out = self.input_projection.weight, self.acoustic_output.kernel_weight
        assert isinstance(weight, Tensor)
        state, velocity = x[0], torch.zeros(2, x.shape[1], device=x.device)
        for time in self._time_tokens(steps):
            state, y = ops.flow_move(state, velocity, weight, time, condition, guidance, 1 / steps)
            for block in self.blocks:
                last = block is self.blocks[-1]
                projections = block.wq.kernel_weight, block.wk.kernel_weight, block.wv.kernel_weight
                norm, eps = block.attention_norm, block.norm_eps
                mixed = ops.flow_mix(y, norm, eps, projections, block.head_dim, queries=1 if last else 3)
                asking = y[::3].contiguous() if last else y  # only token 0 is read behind the last layer
                y = block.feed_forward(ops.add_linear(asking, mixed, block.wo.weight), block.ffn_norm)
            velocity = ops.norm_linear(y, self.norm, self.config.norm_eps, out)
        moved: Tensor = state + (guidance * velocity[0] + (1 - guidance) * velocity[1]) / steps
        return moved[None]

    def _integrate_in_tiles(self, x: Tensor, condition: Tensor, steps: int, guidance: float) -> Tensor:
        """Do as `_integrate_one`, with each norm in what makes its rows and the product behind it."""
        weight = self.input_projection.weight
        assert isinstance(weight, Tensor)
        norms = [*(block.attention_norm for block in self.blocks), self.norm]
        state, velocity = x[0], torch.zeros(2, x.shape[1], device=x.device)
        for time in self._time_tokens(steps):
            state, y = ops.flow_move_and_begin(
                state, velocity, weight, time, condition, norms[0], guidance, 1 / steps
            )
            for block, norm, behind in zip(self.blocks, norms, norms[1:], strict=False):
                last = block is self.blocks[-1]
                projections = block.wq.kernel_weight, block.wk.kernel_weight, block.wv.kernel_weight
                mixed = ops.flow_mix(
                    y, norm, block.norm_eps, projections, block.head_dim, queries=1 if last else 3
                )
                y = block.finish(y.rows, mixed, behind, apart=3 if last else 1)
            velocity = ops.begun_linear(y, self.norm, self.config.norm_eps, self.acoustic_output.weight)
        moved: Tensor = state + (guidance * velocity[0] + (1 - guidance) * velocity[1]) / steps
        return moved[None]

    @torch.inference_mode()
    def condition(self, hidden: Tensor) -> Tensor:
        """Return the third tokens of both branches, [2 B, dim]: the projected hidden state, and an exact zero."""
        token = self.llm_projection(hidden)
        return torch.cat((token, torch.zeros_like(token)))

    @torch.inference_mode()
    def velocity(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Evaluate v: x float32 [R, acoustic_dim], time [dim], condition [R, dim] -> float32 [R, acoustic_dim]."""
        tokens = (self.input_projection(x.to(self.dtype)), time.expand_as(condition), condition)
        y = torch.stack(tokens, dim=1)
        for block in self.blocks[:-1]:
            y = _mix(block, y, y)
        first = _mix(self.blocks[-1], y[:, :1], y)  # only token 0 is read behind the last layer
        return self.acoustic_output(ops.rms_norm(first[:, 0], self.norm, self.config.norm_eps)).float()

    def _time_tokens(self, steps: int) -> Tensor:
        """Return the second tokens of all steps, [steps, dim]; computed once for each number of steps."""
        known = self._times.get(steps)
        if known is None:
            embedded = torch.stack([time_embedding(i / steps, self.config.dim) for i in range(steps)])
            known = self.time_projection(embedded.to(self.device, self.dtype))
            self._times[steps] = known
        return known


def _mix(block: Block, queries: Tensor, tokens: Tensor) -> Tensor:
    """Run one layer for some of the tokens: queries [R, Q, dim] are its first, tokens [R, 3, dim] all."""
    keys = ops.rms_norm(tokens, block.attention_norm, block.norm_eps)
    q = block.wq(keys[:, : queries.shape[1]]).unflatten(-1, (-1, block.head_dim))
    k, v = (proj(keys).unflatten(-1, (-1, block.head_dim)).transpose(1, 2) for proj in (block.wk, block.wv))
    x = queries + block.wo(ops.attention(q, k, v, None))
    m = ops.rms_norm(x, block.ffn_norm, block.norm_eps)
    return x + block.w2(ops.swiglu(m, block.w1.weight, block.w3.weight))


class Sampler:
    """The flow head with its settings, one frame at a time; on CUDA a frame is one graph."""

    def __init__(self, flow: Flow, steps: int, guidance: float) -> None:
        """On CUDA the graph is recorded here."""
        self._flow = flow
        self._steps = steps
        self._guidance = guidance
        self._graphs = {
            allow_end: Replayed(partial(self._run, allow_end=allow_end), to_host=True)
            for allow_end in (True, False)
        }
        if flow.device.type == "cuda":
            hidden = torch.zeros(1, flow.config.input_dim, dtype=flow.dtype)
            for _ in range(2):
                self(hidden, np.zeros(flow.config.acoustic_dim, np.float32))

    def __call__(
        self, hidden: Tensor, noise: npt.NDArray[np.float32], *, allow_end: bool = True
    ) -> list[int]:
        """Turn one hidden state [1, input_dim] and its noise float32 [acoustic_dim] into codes, offset included."""
        given = torch.from_numpy(noise[None])
        if self._flow.device.type == "cuda":
            codes = self._graphs[allow_end](self._flow.device, hidden, given)
        else:
            codes = self._run(hidden, given, allow_end=allow_end)
        row: list[int] = codes[0].tolist()
        return row

    def _run(self, hidden: Tensor, noise: Tensor, *, allow_end: bool) -> Tensor:
        return self._flow.step(hidden, noise, self._steps, self._guidance, allow_end=allow_end)
