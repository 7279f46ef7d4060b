"""The transformer block of all but the codec: pre-norm attention over a ring of keys, SwiGLU, residuals.

    x += wo attn(rope(wq n), rope(wk n), wv n)      n = rms(x, attention_norm)
    x += w2 (silu(w1 m) * (w3 m))                    m = rms(x, ffn_norm)

asr.md sections 7 and 9, tts.md section 4; only the encoder has biases: on q, v, o and w2.  The flow head attends in a
way of its own (tts.md section 6).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from voxtral_pipes.errors import BadModelError
from voxtral_pipes.kernels import dispatch as ops
from voxtral_pipes.kernels.packed import Weight
from voxtral_pipes.models.cache import RingKV, Span

if TYPE_CHECKING:
    from voxtral_pipes.kernels.q4_tiles import NormRows

TIME_THETA = 10000.0


def time_embedding(t: float, dim: int) -> Tensor:
    """Return the sinusoids of a time, float32 [dim]: cosines first, then sines, of t * 10000^(-2i / dim).

    The decoder conditions on its delay in tokens with it (asr.md section 9), the flow head on t in 0..1 (tts.md
    section 6).
    """
    rates = torch.exp(-math.log(TIME_THETA) * torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    return torch.cat(((t * rates).cos(), (t * rates).sin())).to(torch.float32)


def dense(tensors: Mapping[str, Weight], name: str) -> Tensor:
    """Return a tensor that can only be dense: a norm, bias, codebook or convolution.

    Raises:
        BadModelError: it is packed.
    """
    weight = tensors[name]
    if not isinstance(weight, Tensor):
        raise BadModelError(f"{name} is packed; it must be F32, F16 or BF16")
    return weight


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix [out, in] and perhaps a bias [out]."""

    weight: Weight
    bias: Tensor | None = None

    @classmethod
    def of(cls, tensors: Mapping[str, Weight], name: str) -> Linear:
        """Take `name.weight`, and `name.bias` if it is there."""
        bias = f"{name}.bias"
        return cls(tensors[f"{name}.weight"], dense(tensors, bias) if bias in tensors else None)

    def prepared(self, dtype: torch.dtype, *, rows: ops.Rows = "one", twice: bool = False) -> Linear:
        """Return it as it is fastest in `dtype`; see `ops.prepare`."""
        return Linear(ops.prepare(self.weight, dtype, rows=rows, twice=twice), self.bias)

    @property
    def kernel_weight(self) -> ops.KernelWeight:
        """The matrix, for kernels that are only chosen where it is one they take."""
        assert isinstance(self.weight, ops.KernelWeight)
        return self.weight

    def __call__(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return ops.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Block:
    """Weights of one layer; read-only and shared by all streams."""

    attention_norm: Tensor
    wq: Linear
    wk: Linear
    wv: Linear
    wo: Linear
    ffn_norm: Tensor
    w1: Linear
    w2: Linear
    w3: Linear
    head_dim: int
    norm_eps: float

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, Weight],
        prefix: str,
        head_dim: int,
        norm_eps: float,
        *,
        rows: ops.Rows = "one",
    ) -> Block:
        """Take the layer whose Mistral names begin with `prefix` ("layers.0."); see `Linear.prepared`."""
        norm = dense(tensors, f"{prefix}attention_norm.weight")
        projections = {
            name: Linear.of(tensors, f"{prefix}{part}.{name}").prepared(norm.dtype, rows=rows)
            for part, names in (("attention", ("wq", "wk", "wv", "wo")), ("feed_forward", ("w1", "w2", "w3")))
            for name in names
        }
        return cls(
            attention_norm=norm,
            ffn_norm=dense(tensors, f"{prefix}ffn_norm.weight"),
            head_dim=head_dim,
            norm_eps=norm_eps,
            **projections,
        )

    def __call__(
        self, x: Tensor, turn: Tensor, kv: RingKV, layer: int, span: Span, ffn_norm: Tensor | None = None
    ) -> Tensor:
        """Run one step: x [B, T, dim] -> [B, T, dim]; writes this layer's part of `kv`.

        `turn` is complex64 [T, D / 2]; `ffn_norm` replaces the layer's own (the decoder folds its
        conditioning on the delay into it).
        """
        x = ops.add_linear(x, self._attend(x, turn, kv, layer, span), self.wo.weight, self.wo.bias)
        return self.feed_forward(x, self.ffn_norm if ffn_norm is None else ffn_norm)

    def feed_forward(self, x: Tensor, norm: Tensor) -> Tensor:
        """Run the second half of the layer, which sees one position at a time: x [..., dim] -> [..., dim]."""
        m = ops.norm_swiglu(x, norm, self.norm_eps, self.w1.weight, self.w3.weight)
        return ops.add_linear(x, m, self.w2.weight, self.w2.bias)

    @property
    def in_tiles(self) -> bool:
        """Tell whether all its matrices are in tiles, so that a few rows can go by `finish`."""
        linears = self.wq, self.wk, self.wv, self.wo, self.w1, self.w2, self.w3
        return ops.in_tiles(*(linear.weight for linear in linears))

    def finish(self, x: Tensor, mixed: Tensor, norm: Tensor, apart: int = 1) -> NormRows:
        """Do what is behind attention, where matrices are `in_tiles`, and begin the norm behind the layer.

        `mixed` [R, H D] is what attention gave, for every `apart`th row of x [.., dim].
        """
        y = ops.add_and_begin(x, mixed, self.wo.weight, self.ffn_norm, self.wo.bias, apart)
        m = ops.begun_swiglu(y, self.norm_eps, self.w1.weight, self.w3.weight)
        return ops.add_and_begin(y.rows, m, self.w2.weight, norm, self.w2.bias)

    def step_in_tiles(
        self, x: NormRows, turn: Tensor, kv: RingKV, layer: int, position: Tensor, norm: Tensor
    ) -> NormRows:
        """Run a few positions of one stream where matrices are `in_tiles`, and begin the norm behind the layer."""
        return self.finish(x.rows, self._attend_few(x, turn, kv, layer, position), norm)

    def fits_triton(self, x: Tensor) -> bool:
        """Tell whether a few positions x [T, dim] can go through `ops.attend_few`."""
        return ops.fits_triton_heads(x, self.head_dim, self.wq.weight, self.wk.weight, self.wv.weight)

    def _attend(self, x: Tensor, turn: Tensor, kv: RingKV, layer: int, span: Span) -> Tensor:
        if span.position is not None:
            return self._attend_few(x[0], turn, kv, layer, span.position)[None]
        n = ops.rms_norm(x, self.attention_norm, self.norm_eps)
        q, k, v = (proj(n).unflatten(-1, (-1, self.head_dim)) for proj in (self.wq, self.wk, self.wv))
        keys = ops.rotate(k, turn).transpose(1, 2)
        all_keys, all_values = kv.write(layer, span, keys, v.transpose(1, 2))
        return ops.attention(ops.rotate(q, turn), all_keys, all_values, span.mask)

    def _attend_few(
        self, x: Tensor | NormRows, turn: Tensor, kv: RingKV, layer: int, position: Tensor
    ) -> Tensor:
        weights = self.wq.kernel_weight, self.wk.kernel_weight, self.wv.kernel_weight
        biases = self.wq.bias, self.wk.bias, self.wv.bias
        ring = kv.keys[layer, 0], kv.values[layer, 0], position, kv.window
        return ops.attend_few(x, self.attention_norm, self.norm_eps, weights, biases, turn, *ring)
