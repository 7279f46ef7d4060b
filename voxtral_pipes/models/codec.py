"""The codec decoder: 37 codes to 1920 samples, one frame after another, without look-ahead (tts.md sections 9 and 10).

    codes [B, n, 37] -> latents [B, n, 292] -> conv k3 -> 2 layers -> x2 -> 2 layers -> x2 -> 2 layers -> x2 -> 2 layers
                     -> conv k7 -> patches [B, 8 n, 240] -> samples [B, 1920 n]

Every layer is causal, so the streaming form is exact.  Carried between calls: two latents, one column before each
doubling, the last W keys and values of each layer, six columns before the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from voxtral_pipes.config import CodecConfig
from voxtral_pipes.kernels import dispatch as ops
from voxtral_pipes.kernels.graphs import Replayed
from voxtral_pipes.kernels.packed import Weight
from voxtral_pipes.models.codes import CODE_OFFSET
from voxtral_pipes.models.layers import Linear, dense
from voxtral_pipes.models.tts_shapes import (
    BOOK,
    CODEC,
    FIRST_KERNEL,
    OUT_KERNEL,
    conv_names,
    gain_and_direction,
)

USAGE_FLOOR = 1e-5
TOGETHER = (1, 2, 4, 8)
"""Frames of a step that is worth a graph of its own."""
MOST_TOGETHER = 8
"""Frames of a step on CUDA at most: one alone is bound by launches and by reading the weights, not by arithmetic."""


def frames_together(done: int, most: int) -> int:
    """Return how many frames the step behind `done` of them takes: 1, 1, 1, 1, 2, 2, 4, 4, ... but at most `most`.

    It is a power of two and never more than half of what has been heard: a player that takes the sound as it comes runs
    dry only where frames come more slowly than at one and a half times the speed of speech.
    """
    return 1 << min(max(1, done // 2), most).bit_length() - 1


Key = tuple[str, int, int]
"""What is carried, the stage, and the layer in it."""
LATENTS: Key = ("latents", 0, 0)
COLUMNS: Key = ("columns", 0, 0)


class CodecState:
    """What one lockstep batch of streams carries; owned by its caller, changed only by `Codec.step`.

    `held` has what the next step reads; before the first frame, nothing:
    LATENTS [B, latent, 2], the last latents; ("doubling", i, 0) [B, dim, 1], the last input column;
    ("keys" or "values", stage, layer) [B, at most W, H, D], keys normed; COLUMNS [B, dim, 6], before the output.
    """

    def __init__(self, run: Callable[[CodecState, Tensor], Tensor]) -> None:
        self.held: dict[Key, Tensor] = {}
        self.frames = 0
        self._places: dict[tuple[Key, torch.Size], Tensor] = {}
        self.steady = Replayed(lambda codes: run(self, codes), to_host=True)
        """On CUDA: one or a few frames of a stream whose keys are all there, as a graph for each number of them."""

    def hold(self, key: Key, value: Tensor) -> None:
        """Keep a copy, where the one of the same shape before it was: a graph finds it there again."""
        place = self._places.get((key, value.shape))
        if place is None:
            place = self._places[key, value.shape] = value.clone()
        else:
            place.copy_(value)
        self.held[key] = place

    def restart(self) -> None:
        """Begin new streams; the memory and the graph stay."""
        self.held.clear()
        self.frames = 0


@dataclass(frozen=True, slots=True)
class CodecLayer:
    """Weights of one transformer layer; read-only."""

    wq: Linear
    wk: Linear
    wv: Linear
    wo: Linear
    w1: Linear
    w2: Linear
    w3: Linear
    q_norm: Tensor
    k_norm: Tensor
    attention_norm: Tensor
    ffn_norm: Tensor
    attention_scale: Tensor
    ffn_scale: Tensor

    @classmethod
    def of(cls, tensors: Mapping[str, Weight], prefix: str) -> CodecLayer:
        """Take the layer whose names begin with `prefix`."""
        norm = dense(tensors, f"{prefix}attention_norm.weight")
        projections = {
            name: Linear.of(tensors, f"{prefix}{part}.{name}").prepared(norm.dtype, rows="many", twice=True)
            for part, names in (("attention", ("wq", "wk", "wv", "wo")), ("feed_forward", ("w1", "w2", "w3")))
            for name in names
        }
        return cls(
            **projections,
            q_norm=dense(tensors, f"{prefix}attention.q_norm.weight"),
            k_norm=dense(tensors, f"{prefix}attention.k_norm.weight"),
            attention_norm=norm,
            ffn_norm=dense(tensors, f"{prefix}ffn_norm.weight"),
            attention_scale=dense(tensors, f"{prefix}attention_scale"),
            ffn_scale=dense(tensors, f"{prefix}ffn_scale"),
        )


def alibi_slopes(n_heads: int) -> Tensor:
    """Return m_h = 2^(-8h / H), float32 [H]: 1 for head 0 (tts.md section 9); other counts interleave as ALiBi does."""

    def of_power(n: int) -> list[float]:
        return [2.0 ** (-8.0 * h / n) for h in range(n)]

    below = 2 ** int(math.log2(n_heads))
    slopes = of_power(below) + (of_power(2 * below)[::2][: n_heads - below] if below < n_heads else [])
    return torch.tensor(slopes, dtype=torch.float32)


def fold_weight_norm(gain: Tensor, direction: Tensor) -> Tensor:
    """Return `g v / |v|` in float32; the norm runs over all but dimension 0, which is the input one of doublings."""
    wide = direction.float()
    folded: Tensor = gain.float() * wide / wide.norm(dim=(1, 2), keepdim=True)
    return folded


def conv_weight(tensors: Mapping[str, Weight], name: str) -> Tensor:
    """Take a convolution's weight, folded (`.weight`, as GGUF has it) or parametrised (as released); float32."""
    if f"{name}.weight" in tensors:
        return dense(tensors, f"{name}.weight").float()
    gain, direction = gain_and_direction(name)
    return fold_weight_norm(dense(tensors, gain), dense(tensors, direction))


@dataclass(frozen=True, slots=True)
class Codec:
    """Weights of the codec decoder; read-only and shared by all streams."""

    config: CodecConfig
    embedding: Tensor
    """[semantic_size, semantic_dim], float32."""
    first: Weight
    """[dim, latent * 3]: convolutions are products, which for a few columns cuDNN and oneDNN are slow at."""
    ups: tuple[Weight, ...]
    """Per doubling [2 * dim, 2 * dim]: `x[t], x[t - 1]` to `y[2t], y[2t + 1]`."""
    out: Weight
    """[patch_samples, dim * 7]."""
    stages: tuple[tuple[CodecLayer, ...], ...]
    slopes: Tensor
    dtype: torch.dtype
    _biases: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """Per columns and window, for those steps that can be graphs."""

    @classmethod
    def of(cls, tensors: Mapping[str, Weight], config: CodecConfig) -> Codec:
        """Assemble from tensors under their released names, all on one device."""
        blocks = f"{CODEC}decoder_blocks."
        first, *ups, out = (conv_weight(tensors, name) for name in conv_names(config))
        usage = dense(tensors, f"{BOOK}cluster_usage").float().clamp(min=USAGE_FLOOR)
        stages = tuple(
            tuple(CodecLayer.of(tensors, f"{blocks}{2 * stage + 1}.layers.{i}.") for i in range(count))
            for stage, count in enumerate(config.stage_layers)
        )
        dtype = stages[0][0].attention_norm.dtype

        def prepared(weight: Tensor) -> Weight:
            return ops.prepare(weight.to(dtype), dtype, rows="many", twice=True)

        return cls(
            config=config,
            embedding=dense(tensors, f"{BOOK}embedding_sum").float() / usage[:, None],
            first=prepared(first.flatten(1)),
            ups=tuple(prepared(_doubling(weight)) for weight in ups),
            out=prepared(out.flatten(1)),
            stages=stages,
            slopes=alibi_slopes(config.n_heads).to(usage.device),
            dtype=dtype,
        )

    def new_state(self) -> CodecState:
        """Begin a batch of streams; its size is that of the first codes."""
        return CodecState(self._run)

    @property
    def together(self) -> int:
        """How many frames a step of a long stream best takes."""
        return MOST_TOGETHER if self.embedding.is_cuda else 1

    def warm(self, state: CodecState, together: int = 1) -> None:
        """Record the steps of a new state, of up to so many frames, ahead of its first; nothing to do on the CPU."""
        if self.embedding.is_cuda:
            sizes = [n for n in TOGETHER if n <= together for _ in range(2)]
            for n in (*(1 for _ in range(self.config.first_window)), *sizes):
                self.step(state, torch.full((1, n, 1 + self.config.acoustic_dim), CODE_OFFSET))
            state.restart()

    @torch.inference_mode()
    def step(self, state: CodecState, codes: Tensor) -> tuple[Tensor, CodecState]:
        """Decode the next frames: codes int [B, n, 1 + acoustic_dim], offset included, n > 0 -> [B, n frame_samples].

        Samples are not clipped and can exceed 1.  The result is the same for any division into steps, up to
        rounding.  END_AUDIO frames are not for here.
        """
        device, frames = self.embedding.device, codes.shape[1]
        if device.type == "cuda" and frames in TOGETHER and state.frames >= self.config.first_window:
            samples = state.steady(device, codes)
        else:
            samples = self._run(state, codes.to(device))
        state.frames += frames
        return samples, state

    def _run(self, state: CodecState, codes: Tensor) -> Tensor:
        """Do the tensor work of a step, without the bookkeeping: it can be recorded."""
        x = self._conv_first(state, self.latents(codes).transpose(1, 2)).transpose(1, 2)
        for number, stage in enumerate(self.stages):
            if number:
                x = self._double(state, number, x.transpose(1, 2)).transpose(1, 2)
            window = self.config.first_window * 2**number
            for i, layer in enumerate(stage):
                mixed = self._attend(state, (number, i), layer, x, window)
                x = ops.add_linear(x, mixed, layer.wo.weight, scale=layer.attention_scale)
                eps = self.config.norm_eps
                m = ops.norm_swiglu(x, layer.ffn_norm, eps, layer.w1.weight, layer.w3.weight)
                x = ops.add_linear(x, m, layer.w2.weight, scale=layer.ffn_scale)
        patches = self._conv_out(state, x.transpose(1, 2))
        return patches.transpose(1, 2).flatten(1).float()

    def latents(self, codes: Tensor) -> Tensor:
        """Turn codes [B, n, 1 + acoustic_dim] into latents [B, n, semantic_dim + acoustic_dim]."""
        bare = codes.to(torch.int64) - CODE_OFFSET
        acoustic = bare[..., 1:].float() * 2 / (self.config.acoustic_levels - 1) - 1
        return torch.cat((self.embedding[bare[..., 0]], acoustic), dim=-1).to(self.dtype)

    def _conv_first(self, state: CodecState, x: Tensor) -> Tensor:
        """[B, latent, T] to [B, dim, T]; the first latent is repeated before the first frame."""
        tail = state.held.get(LATENTS)
        if tail is None:
            tail = x[:, :, :1].expand(-1, -1, FIRST_KERNEL - 1)
        x = torch.cat((tail, x), dim=2)
        state.hold(LATENTS, x[:, :, -(FIRST_KERNEL - 1) :])
        return _convolve(x, self.first, FIRST_KERNEL)

    def _double(self, state: CodecState, number: int, x: Tensor) -> Tensor:
        """[B, dim, T] to [B, dim, 2 T]: `y[2t + j] = x[t] W[j] + x[t - 1] W[j + 2]`."""
        tail = state.held.get(("doubling", number, 0))
        if tail is None:
            tail = torch.zeros_like(x[:, :, :1])
        before = torch.cat((tail, x[:, :, :-1]), dim=2)
        state.hold(("doubling", number, 0), x[:, :, -1:])
        pairs = ops.linear(torch.cat((x, before), dim=1).transpose(1, 2), self.ups[number - 1])
        y: Tensor = pairs.unflatten(2, (2, -1)).flatten(1, 2)
        return y.transpose(1, 2)

    def _conv_out(self, state: CodecState, x: Tensor) -> Tensor:
        """[B, dim, T] to [B, patch_samples, T]; the first frame's own columns are mirrored before it."""
        tail = state.held.get(COLUMNS)
        if tail is None:
            tail = x[:, :, 1:OUT_KERNEL].flip(2)
        x = torch.cat((tail, x), dim=2)
        state.hold(COLUMNS, x[:, :, -(OUT_KERNEL - 1) :])
        return _convolve(x, self.out, OUT_KERNEL)

    def _attend(
        self, state: CodecState, where: tuple[int, int], layer: CodecLayer, x: Tensor, window: int
    ) -> Tensor:
        """Attend to the window + 1 last keys with ALiBi, [B, T, dim] to [B, T, H D].

        Queries and keys are normed over their full width.
        """
        projections = layer.wq.weight, layer.wk.weight, layer.wv.weight
        q, k, v = ops.norm_linears(x, layer.attention_norm, self.config.norm_eps, projections)
        gains, eps = (layer.q_norm, layer.k_norm), self.config.qk_norm_eps
        keys, values = (("keys", *where), ("values", *where))
        held = state.held.get(keys)
        if held is not None and held.shape[1] == window and ops.fits_window(q):
            return ops.attend_window(q, k, v, gains, eps, self.slopes, held, state.held[values])
        q, k = (ops.rms_norm(t, gain, eps) for t, gain in zip((q, k), gains, strict=True))
        q, k, v = (t.unflatten(-1, (self.config.n_heads, -1)) for t in (q, k, v))
        k, v = self._join(state, keys, k, window), self._join(state, values, v, window)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self._bias(q.shape[2], k.shape[2], window))
        by_position: Tensor = mixed.transpose(1, 2).flatten(2)
        return by_position

    @staticmethod
    def _join(state: CodecState, key: Key, new: Tensor, window: int) -> Tensor:
        """Return what is held and `new` behind it, [B, T, H, D]; hold the last `window` of it."""
        before = state.held.get(key)
        joined = new if before is None else torch.cat((before, new), dim=1)
        state.hold(key, joined[:, -window:])
        return joined

    def _bias(self, steps: int, seen: int, window: int) -> Tensor:
        """Return what ALiBi adds to the scores of the last `steps` of `seen` keys, [H, steps, seen]."""
        steady = seen == steps + window and steps * self.config.first_window in (n * window for n in TOGETHER)
        known = self._biases.get((steps, window)) if steady else None
        if known is None:
            keys = torch.arange(seen, device=self.slopes.device)
            ahead = keys - keys[seen - steps :, None]
            outside = (ahead > 0) | (ahead < -window)
            bias: Tensor = (
                (self.slopes[:, None, None] * ahead).masked_fill(outside, -torch.inf).to(self.dtype)
            )
            if steady:
                self._biases[steps, window] = bias
            return bias
        return known


def _convolve(x: Tensor, weight: Weight, kernel: int) -> Tensor:
    """Convolve [B, C, T + kernel - 1] with weight [M, C * kernel]: [B, M, T]."""
    columns = x.unfold(2, kernel, 1).permute(0, 2, 1, 3).flatten(2)
    return ops.linear(columns, weight).transpose(1, 2)


def _doubling(weight: Tensor) -> Tensor:
    """Turn the weight of a doubling, [in, out, 4], into the matrix of `Codec.ups`, [2 out, 2 in]."""
    now, before = weight[:, :, :2], weight[:, :, 2:]
    return torch.cat((now, before)).permute(2, 1, 0).flatten(0, 1)
