"""The Triton kernels against their references, for whichever device and dtype; imported by name, not collected."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from voxtral_pipes.kernels import reference as ref
from voxtral_pipes.kernels.packed import PackedWeight, Q4CudaWeight, Q4TileWeight

EPS = 1e-5
Form = Literal["dense", "row", "tiles"]
"""Of a matrix: dense, or Q4_0 for one row, or for a few."""


class Cases:
    """Draws operands; every check returns the greatest error against the reference in float32."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._generator = torch.Generator().manual_seed(0)

    def draw(self, *shape: int, scale: float = 1.0) -> Tensor:
        values = scale * torch.randn(*shape, generator=self._generator)
        return values.to(self.dtype).to(self.device)

    def weight(self, *shape: int) -> Tensor:
        return self.draw(*shape, scale=shape[-1] ** -0.5)

    def norm(self, width: int) -> Tensor:
        return 1 + self.draw(width, scale=0.1)

    def packed(self, n_out: int, n_in: int) -> PackedWeight:
        """Q4_0 with scales of both signs, as their rounding rules give them."""
        codes = torch.randint(256, (n_out, n_in // 32, 18), dtype=torch.uint8, generator=self._generator)
        scales = torch.randn(n_out, n_in // 32, 1, generator=self._generator) * n_in**-0.5 / 8
        codes[..., :2] = scales.to(torch.float16).view(torch.uint8)
        return PackedWeight("q4_0", codes.to(self.device))

    def matrix(
        self, n_out: int, n_in: int, form: Form
    ) -> tuple[Tensor | Q4CudaWeight | Q4TileWeight, Tensor]:
        """Draw a matrix as the kernels take it, and as float32."""
        if form == "dense":
            weight = self.weight(n_out, n_in)
            return weight, weight.float()
        from voxtral_pipes.kernels.q4_rows import to_cuda_layout
        from voxtral_pipes.kernels.q4_tile_layout import to_tiles

        packed = self.packed(n_out, n_in)
        laid = to_cuda_layout(packed) if form == "row" else to_tiles(packed)
        return laid, ref.dequantize(packed, torch.float32)

    def linear_rows(
        self,
        rows: int,
        n_in: int,
        n_out: int,
        *,
        norm: bool,
        gated: bool,
        residual: bool,
        form: Form = "dense",
    ) -> float:
        """With a residual there is a bias too."""
        from voxtral_pipes.kernels import q4_tiles
        from voxtral_pipes.kernels.rows import linear_rows

        x, gain, beside = self.draw(rows, n_in), self.norm(n_in), self.draw(rows, n_out)
        weight, wide_weight = self.matrix(n_out, n_in, form)
        up, wide_up = self.matrix(n_out, n_in, form)
        bias = self.draw(n_out)
        given: dict[str, Any] = {"up": up} if gated else {}
        given |= {"residual": beside, "bias": bias} if residual else {}
        if isinstance(weight, Q4TileWeight):
            begun = q4_tiles.begin(x, gain) if norm else x
            got = q4_tiles.linear(begun, weight, eps=EPS, dtype=torch.float32, **given)
        else:
            given |= {"norm": gain, "eps": EPS} if norm else {}
            got = linear_rows(x, weight, dtype=torch.float32, **given)
        wide = ref.rms_norm(x.float(), gain.float(), EPS) if norm else x.float()
        expected = ref.linear(wide, wide_weight)
        expected = ref.swiglu(wide, wide_weight, wide_up) if gated else expected
        expected = expected + beside.float() + bias.float() if residual else expected
        return float((got - expected).abs().max())

    def add_and_begin(self, rows: int, n_in: int, n_out: int, apart: int) -> tuple[float, float, float]:
        """Return the errors of a sum, of the same times a gain, and of the mean of its squares."""
        from voxtral_pipes.kernels import q4_tiles

        x, beside, bias = self.draw(rows, n_in), self.draw(rows * apart, n_out), self.draw(n_out)
        weight, wide = self.matrix(n_out, n_in, "tiles")
        gain = self.norm(n_out)
        assert isinstance(weight, Q4TileWeight)
        got = q4_tiles.add(beside, x, weight, gain, bias=bias, apart=apart)
        expected = beside[::apart].float() + ref.linear(x.float(), wide) + bias.float()
        squares = got.squares.sum(0)[:rows] - expected.square().sum(1)
        return (
            float((got.rows - expected).abs().max()),
            float((got.scaled - expected * gain.float()).abs().max()),
            float(squares.abs().max() / n_out),
        )

    def unlike_numbers(self, n_in: int, form: Form, value: float, *, norm: bool, gated: bool) -> bool:
        """Tell whether one input that is not finite leaves no output finite."""
        from voxtral_pipes.kernels.rows import linear_rows

        x, (weight, _), (up, _) = self.draw(1, n_in), self.matrix(9, n_in, form), self.matrix(9, n_in, form)
        given: dict[str, Any] = {"norm": self.norm(n_in), "eps": EPS} if norm else {}
        given |= {"up": up} if gated else {}
        assert not isinstance(weight, Q4TileWeight)
        shows = True
        for place in (0, n_in - 1):
            wrong = x.clone()
            wrong[0, place] = value
            shows &= not linear_rows(wrong, weight, dtype=torch.float32, **given).isfinite().any().item()
        return shows

    def unpack(self, n_in: int, n_out: int, form: Form) -> float:
        from voxtral_pipes.kernels import q4_rows, q4_tile_layout

        weight, wide = self.matrix(n_out, n_in, form)
        assert not isinstance(weight, Tensor)
        if isinstance(weight, Q4TileWeight):
            got = q4_tile_layout.unpack(weight, torch.float32)
        else:
            got = q4_rows.unpack(weight, torch.float32)
        return float((got - wide).abs().max())

    def look_up(self, n_in: int, n_out: int, sums: int, count: int) -> float:
        from voxtral_pipes.kernels.q4_rows import look_up

        weight, wide = self.matrix(n_out, n_in, "row")
        assert isinstance(weight, Q4CudaWeight)
        ids = torch.randint(n_out // 2, (sums, count), generator=self._generator).to(self.device)
        offsets = torch.randint(n_out // 2, (count,), generator=self._generator).to(self.device)
        got = look_up(ids, weight, torch.float32, offsets)
        alone = look_up(ids[:, :1], weight, torch.float32)
        worst = (got - wide[ids + offsets].sum(1)).abs().max()
        return float(torch.maximum(worst, (alone - wide[ids[:, 0]]).abs().max()))

    def choose(self, logits: Tensor, apart: int) -> tuple[bool, float]:
        """Return whether the ids are equal, and the error of the numbers."""
        from voxtral_pipes.kernels.choose import choose

        got, expected = choose(logits.to(self.device), apart), ref.choose(logits.to(self.device), apart)
        numbers, theirs = (each[:, 1:4].contiguous().view(torch.float32) for each in (got, expected))
        return torch.equal(got[:, ::4], expected[:, ::4]), float((numbers - theirs).abs().max())

    def float_rows(
        self, rows: int, n_in: int, n_out: int, *, norm: bool, gated: bool, residual: bool
    ) -> float:
        """float32, whatever the dtype of these cases."""
        from voxtral_pipes.kernels.float_rows import float_rows, three_float_rows

        wide = Cases(self.device, torch.float32)
        x, beside, scale = wide.draw(rows, n_in), wide.draw(rows, n_out), wide.draw(n_out)
        weight, up, gain = wide.weight(n_out, n_in), wide.weight(n_out, n_in), wide.norm(n_in)
        given: dict[str, Any] = {"norm": gain, "eps": EPS} if norm else {}
        given |= {"up": up} if gated else {}
        given |= {"residual": beside, "scale": scale} if residual else {}
        n = ref.rms_norm(x, gain, EPS) if norm else x
        expected = ref.swiglu(n, weight, up) if gated else ref.linear(n, weight)
        expected = beside + scale * expected if residual else expected
        worst = float((float_rows(x, weight, **given) - expected).abs().max())
        if norm:
            three = three_float_rows(x, gain, EPS, (weight, up, weight))
            theirs = torch.stack([ref.linear(n, each) for each in (weight, up, weight)])
            worst = max(worst, float((three - theirs).abs().max()))
        return worst

    def attend(
        self,
        heads: int,
        groups: int,
        width: int,
        n_in: int,
        capacity: int,
        window: int,
        positions: int,
        *,
        steps: int = 1,
        form: Form = "dense",
    ) -> float:
        """Fill a ring, `steps` positions at a time, past its end, beside plain attention over the same keys.

        Steps of several positions have biases, on q and v.
        """
        from voxtral_pipes.kernels.decode_attention import attend_few, attend_one

        sizes = (heads * width, groups * width, groups * width)
        (q_weight, wq), (k_weight, wk), (v_weight, wv) = (self.matrix(n_out, n_in, form) for n_out in sizes)
        bias_q, bias_v = (self.draw(sizes[i]) for i in (0, 2))
        gain = self.norm(n_in)
        keys, values = (
            torch.zeros(groups, capacity, width, device=self.device, dtype=self.dtype) for _ in range(2)
        )
        wide_keys, wide_values = keys.float(), values.float()
        worst = 0.0
        for position in range(0, positions, steps):
            x = self.draw(steps, n_in)
            angles = torch.randn(steps, width // 2, generator=self._generator)
            turn = torch.polar(torch.ones_like(angles), angles).to(self.device)
            where = torch.tensor([position], device=self.device)
            ring = turn, keys, values, where, window
            weights = q_weight, k_weight, v_weight
            if steps == 1:
                got = attend_one(x, gain, EPS, weights, *ring)
            else:
                got = attend_few(x, gain, EPS, weights, (bias_q, None, bias_v), *ring)
            n = ref.rms_norm(x.float(), gain.float(), EPS)
            q, k, v = (ref.linear(n, weight) for weight in (wq, wk, wv))
            if steps > 1:
                q, v = q + bias_q.float(), v + bias_v.float()
            q, k, v = (each.view(1, steps, -1, width) for each in (q, k, v))
            where = torch.arange(position, position + steps)
            wide_keys[:, where % capacity] = ref.rotate(k, turn)[0].transpose(0, 1)
            wide_values[:, where % capacity] = v[0].transpose(0, 1)
            last = position + steps - 1
            held = min(last + 1, capacity)
            newest = last - (last - torch.arange(held)) % capacity
            mask = (newest <= where[:, None]) & (newest > where[:, None] - window)
            past = wide_keys[None, :, :held], wide_values[None, :, :held]
            expected = ref.attention(ref.rotate(q, turn), *past, mask.to(self.device))[0]
            worst = max(worst, float((got.float() - expected).abs().max()))
        return worst

    def mix_tokens(
        self, heads: int, groups: int, width: int, n_in: int, queries: int, *, form: Form = "dense"
    ) -> float:
        from voxtral_pipes.kernels.flow_step import mix_tokens

        sizes = (heads * width, groups * width, groups * width)
        (q_weight, wq), (k_weight, wk), (v_weight, wv) = (self.matrix(n_out, n_in, form) for n_out in sizes)
        y, gain = self.draw(6, n_in), self.norm(n_in)
        got = mix_tokens(y, gain, EPS, (q_weight, k_weight, v_weight), width, queries)
        n = ref.rms_norm(y.float(), gain.float(), EPS).view(2, 3, n_in)
        q, k, v = (ref.linear(n, weight).view(2, 3, -1, width) for weight in (wq, wk, wv))
        expected = ref.attention(q[:, :queries], k.transpose(1, 2), v.transpose(1, 2), None)
        return float((got.float() - expected.reshape(2 * queries, -1)).abs().max())

    def move(self, n_state: int, dim: int) -> tuple[float, float, float]:
        """Return the errors of the state, of the tokens and of what their norm needs."""
        from voxtral_pipes.kernels.flow_step import move, move_and_begin

        wide = Cases(self.device, torch.float32)
        state, velocity = wide.draw(n_state), wide.draw(2, n_state)
        weight, time, condition = self.weight(dim, n_state), self.draw(dim), self.draw(2, dim)
        gain = self.norm(dim)
        moved, tokens = move(state, velocity, weight, time, condition, 1.2, 1 / 7)
        again, begun = move_and_begin(state, velocity, weight, time, condition, gain, 1.2, 1 / 7)
        assert torch.equal(again, moved) and torch.equal(begun.rows, tokens)
        expected = state + (1.2 * velocity[0] - 0.2 * velocity[1]) / 7
        first = ref.linear(expected.to(self.dtype).float(), weight.float())
        rows = torch.stack([row for i in range(2) for row in (first, time.float(), condition[i].float())])
        scaled = (begun.scaled.float() - rows * gain.float()).abs().max()
        squares = (begun.squares.sum(0)[:6] - rows.square().sum(1)).abs().max() / dim
        return (
            float((moved - expected).abs().max()),
            float((tokens.float() - rows).abs().max()),
            float(torch.maximum(scaled, squares)),
        )
