"""The codec decoder: 37 codes to 1920 samples, one frame after another, without look-ahead (tts.md sections 9 and 10).

    codes [B, n, 37] -> latents [B, n, 292] -> conv k3 -> 2 layers -> x2 -> 2 layers -> x2 -> 2 layers -> x2 -> 2 layers
                     -> conv k7 -> patches [B, 8 n, 240] -> samples [B, 1920 n]

Every layer is causal, so the streaming form is exact.  Carried between calls: two latents, one column before each
doubling, the last W keys and values of each layer, six columns before the output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from voxtral_pipes.config import CodecConfig
from voxtral_pipes.kernels import dispatch as ops
from voxtral_pipes.kernels.packed import Weight
from voxtral_pipes.models.codes import CODE_OFFSET as CODE_OFFSET
from voxtral_pipes.models.layers import Linear, dense
from voxtral_pipes.models.tts_shapes import (
    BOOK,
    CODEC,
    FIRST_KERNEL,
    OUT_KERNEL,
    UP_KERNEL,
    conv_names,
    gain_and_direction,
)

USAGE_FLOOR = 1e-5


@dataclass(slots=True)
class CodecState:
    """What one lockstep batch of streams carries; owned by its caller, changed only by `Codec.step`."""

    latent_tail: Tensor | None = None
    """[B, latent, 2], the last latents; before the first frame there are none, and it is repeated."""
    up_tails: dict[int, Tensor] = field(default_factory=dict)
    """Per doubling [B, dim, 1], its last input column; absent: zero."""
    keys: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Per (stage, layer) the last keys (normed) and values, [B, H, at most W, D]."""
    out_tail: Tensor | None = None
    """[B, dim, 6], the last columns before the output; before the first frame they are its own, mirrored."""


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
        attention = {
            name: Linear.of(tensors, f"{prefix}attention.{name}") for name in ("wq", "wk", "wv", "wo")
        }
        feed = {name: Linear.of(tensors, f"{prefix}feed_forward.{name}") for name in ("w1", "w2", "w3")}
        return cls(
            **attention,
            **feed,
            q_norm=dense(tensors[f"{prefix}attention.q_norm.weight"]),
            k_norm=dense(tensors[f"{prefix}attention.k_norm.weight"]),
            attention_norm=dense(tensors[f"{prefix}attention_norm.weight"]),
            ffn_norm=dense(tensors[f"{prefix}ffn_norm.weight"]),
            attention_scale=dense(tensors[f"{prefix}attention_scale"]),
            ffn_scale=dense(tensors[f"{prefix}ffn_scale"]),
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
    folded = tensors.get(f"{name}.weight")
    if folded is not None:
        return dense(folded).float()
    gain, direction = gain_and_direction(name)
    return fold_weight_norm(dense(tensors[gain]), dense(tensors[direction]))


@dataclass(frozen=True, slots=True)
class Codec:
    """Weights of the codec decoder; read-only and shared by all streams."""

    config: CodecConfig
    embedding: Tensor
    """[semantic_size, semantic_dim], float32."""
    first: Tensor
    ups: tuple[Tensor, ...]
    """Per doubling [in, out, 4]."""
    out: Tensor
    stages: tuple[tuple[CodecLayer, ...], ...]
    slopes: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, tensors: Mapping[str, Weight], config: CodecConfig) -> Codec:
        """Assemble from tensors under their released names, all on one device."""
        blocks = f"{CODEC}decoder_blocks."
        first, *ups, out = (conv_weight(tensors, name) for name in conv_names(config))
        usage = dense(tensors[f"{BOOK}cluster_usage"]).float().clamp(min=USAGE_FLOOR)
        stages = tuple(
            tuple(CodecLayer.of(tensors, f"{blocks}{2 * stage + 1}.layers.{i}.") for i in range(count))
            for stage, count in enumerate(config.stage_layers)
        )
        dtype = stages[0][0].attention_norm.dtype
        return cls(
            config=config,
            embedding=dense(tensors[f"{BOOK}embedding_sum"]).float() / usage[:, None],
            first=first.to(dtype),
            ups=tuple(weight.to(dtype) for weight in ups),
            out=out.to(dtype),
            stages=stages,
            slopes=alibi_slopes(config.n_heads).to(usage.device),
            dtype=dtype,
        )

    def new_state(self) -> CodecState:
        """Begin a batch of streams; its size is that of the first codes."""
        return CodecState()

    @torch.inference_mode()
    def step(self, state: CodecState, codes: Tensor) -> tuple[Tensor, CodecState]:
        """Decode the next frames: codes int [B, n, 1 + acoustic_dim], offset included, n > 0 -> [B, n frame_samples].

        Samples are not clipped and can exceed 1.  The result is the same for any division into steps, up to
        rounding.  END_AUDIO frames are not for here.
        """
        x = self._conv_first(state, self.latents(codes).transpose(1, 2)).transpose(1, 2)
        for number, stage in enumerate(self.stages):
            if number:
                x = self._double(state, number, x.transpose(1, 2)).transpose(1, 2)
            window = self.config.first_window * 2**number
            for i, layer in enumerate(stage):
                x = x + layer.attention_scale * self._attend(state, (number, i), layer, x, window)
                m = ops.rms_norm(x, layer.ffn_norm, self.config.norm_eps)
                x = x + layer.ffn_scale * layer.w2(ops.swiglu(m, layer.w1.weight, layer.w3.weight))
        patches = self._conv_out(state, x.transpose(1, 2))
        return patches.transpose(1, 2).flatten(1).float(), state

    def latents(self, codes: Tensor) -> Tensor:
        """Turn codes [B, n, 1 + acoustic_dim] into latents [B, n, semantic_dim + acoustic_dim]."""
        bare = codes.to(torch.int64) - CODE_OFFSET
        acoustic = bare[..., 1:].float() * 2 / (self.config.acoustic_levels - 1) - 1
        return torch.cat((self.embedding[bare[..., 0]], acoustic), dim=-1).to(self.dtype)

    def _conv_first(self, state: CodecState, x: Tensor) -> Tensor:
        tail = state.latent_tail
        if tail is None:
            tail = x[:, :, :1].expand(-1, -1, FIRST_KERNEL - 1)
        x = torch.cat((tail, x), dim=2)
        state.latent_tail = x[:, :, -(FIRST_KERNEL - 1) :].clone()
        return F.conv1d(x, self.first)

    def _double(self, state: CodecState, number: int, x: Tensor) -> Tensor:
        """[B, dim, T] to [B, dim, 2 T]: `y[2t + j] = x[t] W[j] + x[t - 1] W[j + 2]`."""
        tail = state.up_tails.get(number)
        if tail is None:
            tail = torch.zeros_like(x[:, :, :1])
        state.up_tails[number] = x[:, :, -1:].clone()
        stride = UP_KERNEL // 2
        y = F.conv_transpose1d(torch.cat((tail, x), dim=2), self.ups[number - 1], stride=stride)
        return y[:, :, stride : stride + stride * x.shape[2]]

    def _conv_out(self, state: CodecState, x: Tensor) -> Tensor:
        tail = state.out_tail
        if tail is None:
            tail = x[:, :, 1:OUT_KERNEL].flip(2)
        x = torch.cat((tail, x), dim=2)
        state.out_tail = x[:, :, -(OUT_KERNEL - 1) :].clone()
        return F.conv1d(x, self.out)

    def _attend(
        self, state: CodecState, where: tuple[int, int], layer: CodecLayer, x: Tensor, window: int
    ) -> Tensor:
        """Attend to the window + 1 last keys with ALiBi; queries and keys are normed over their full width."""
        n = ops.rms_norm(x, layer.attention_norm, self.config.norm_eps)
        eps = self.config.qk_norm_eps
        q, k = ops.rms_norm(layer.wq(n), layer.q_norm, eps), ops.rms_norm(layer.wk(n), layer.k_norm, eps)
        q, k, v = (t.unflatten(-1, (self.config.n_heads, -1)).transpose(1, 2) for t in (q, k, layer.wv(n)))
        if where in state.keys:
            held_k, held_v = state.keys[where]
            k, v = torch.cat((held_k, k), dim=2), torch.cat((held_v, v), dim=2)
        state.keys[where] = k[:, :, -window:].clone(), v[:, :, -window:].clone()
        steps, seen = q.shape[2], k.shape[2]
        ahead = (
            torch.arange(seen, device=x.device) - torch.arange(seen - steps, seen, device=x.device)[:, None]
        )
        outside = (ahead > 0) | (ahead < -window)
        bias = (self.slopes[:, None, None] * ahead).masked_fill(outside, -torch.inf)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return layer.wo(mixed.transpose(1, 2).flatten(2))
