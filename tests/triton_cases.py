"""The Triton kernels against their references, for whichever device and dtype; imported by name, not collected."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from voxtral_pipes.kernels import reference as ref

EPS = 1e-5


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

    def linear_rows(
        self, rows: int, n_in: int, n_out: int, *, norm: bool, gated: bool, residual: bool
    ) -> float:
        from voxtral_pipes.kernels.rows import linear_rows

        x, weight, up = self.draw(rows, n_in), self.weight(n_out, n_in), self.weight(n_out, n_in)
        gain, beside = self.norm(n_in), self.draw(rows, n_out)
        given: dict[str, Any] = {"norm": gain, "eps": EPS} if norm else {}
        given |= {"up": up} if gated else {}
        given |= {"residual": beside} if residual else {}
        got = linear_rows(x, weight, dtype=torch.float32, **given)
        wide = ref.rms_norm(x.float(), gain.float(), EPS) if norm else x.float()
        expected = ref.linear(wide, weight.float())
        expected = ref.swiglu(wide, weight.float(), up.float()) if gated else expected
        expected = expected + beside.float() if residual else expected
        return float((got - expected).abs().max())

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

    def attend_one(
        self, heads: int, groups: int, width: int, n_in: int, capacity: int, window: int, positions: int
    ) -> float:
        """Fill a ring position by position, past its end, beside plain attention over the same keys."""
        from voxtral_pipes.kernels.decode_attention import attend_one

        sizes = (heads * width, groups * width, groups * width)
        weights = tuple(self.weight(n_out, n_in) for n_out in sizes)
        gain = self.norm(n_in)
        keys, values = (
            torch.zeros(groups, capacity, width, device=self.device, dtype=self.dtype) for _ in range(2)
        )
        wide_keys, wide_values = keys.float(), values.float()
        worst = 0.0
        for position in range(positions):
            x = self.draw(1, n_in)
            angles = torch.randn(1, width // 2, generator=self._generator)
            turn = torch.polar(torch.ones_like(angles), angles).to(self.device)
            where = torch.tensor([position], device=self.device)
            got = attend_one(
                x, gain, EPS, (weights[0], weights[1], weights[2]), turn, keys, values, where, window
            )
            n = ref.rms_norm(x.float(), gain.float(), EPS)
            q, k, v = (ref.linear(n, weight.float()).view(1, 1, -1, width) for weight in weights)
            wide_keys[:, position % capacity] = ref.rotate(k, turn)[0, 0]
            wide_values[:, position % capacity] = v[0, 0]
            held = min(position + 1, capacity)
            slots = torch.arange(held)
            newest = position - (position - slots) % capacity
            mask = ((newest >= 0) & (newest > position - window))[None].to(self.device)
            ring = wide_keys[None, :, :held], wide_values[None, :, :held]
            expected = ref.attention(ref.rotate(q, turn), *ring, mask)[0]
            worst = max(worst, float((got.float() - expected).abs().max()))
        return worst

    def mix_tokens(self, heads: int, groups: int, width: int, n_in: int, queries: int) -> float:
        from voxtral_pipes.kernels.flow_step import mix_tokens

        sizes = (heads * width, groups * width, groups * width)
        weights = tuple(self.weight(n_out, n_in) for n_out in sizes)
        y, gain = self.draw(6, n_in), self.norm(n_in)
        got = mix_tokens(y, gain, EPS, (weights[0], weights[1], weights[2]), width, queries)
        n = ref.rms_norm(y.float(), gain.float(), EPS).view(2, 3, n_in)
        q, k, v = (ref.linear(n, weight.float()).view(2, 3, -1, width) for weight in weights)
        expected = ref.attention(q[:, :queries], k.transpose(1, 2), v.transpose(1, 2), None)
        return float((got.float() - expected.reshape(2 * queries, -1)).abs().max())

    def move(self, n_state: int, dim: int) -> tuple[float, float]:
        """Return the errors of the state and of the tokens."""
        from voxtral_pipes.kernels.flow_step import move

        wide = Cases(self.device, torch.float32)
        state, velocity = wide.draw(n_state), wide.draw(2, n_state)
        weight, time, condition = self.weight(dim, n_state), self.draw(dim), self.draw(2, dim)
        moved, tokens = move(state, velocity, weight, time, condition, 1.2, 1 / 7)
        expected = state + (1.2 * velocity[0] - 0.2 * velocity[1]) / 7
        first = ref.linear(expected.to(self.dtype).float(), weight.float())
        rows = [row for branch in range(2) for row in (first, time.float(), condition[branch].float())]
        return float((moved - expected).abs().max()), float((tokens.float() - torch.stack(rows)).abs().max())
