"""The flow head against the reference's published module, with its noise, and each known mistake against the same.

tests/golden/README.md says how the reference was run.  A mistake some port has made (tts.md section 13) is made here on
purpose: the comparison that our code passes must then fail, or it would prove nothing.
"""

from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from tts_models import (
    FLOW_FRAMES,
    FLOWS,
    GUIDANCES,
    SMALL_FLOW,
    STEPS,
    TIE_FLOWS,
    flow_inputs,
    flow_tensors,
    random_rows,
    tie_inputs,
)

from voxtral_pipes.config import FlowConfig
from voxtral_pipes.errors import BadModelError
from voxtral_pipes.kernels import dispatch as ops
from voxtral_pipes.kernels.packed import PackedWeight, Weight
from voxtral_pipes.models import flow as module
from voxtral_pipes.models.codes import END_AUDIO
from voxtral_pipes.models.flow import Flow
from voxtral_pipes.models.layers import time_embedding
from voxtral_pipes.models.noise import frame_noise
from voxtral_pipes.models.tts_shapes import FLOW, flow_shapes

GOLDEN = Path(__file__).parents[1] / "golden" / "flow.npz"
TOLERANCE = 1e-5
"""Of states, which are about 1."""
CLEAR = 1000 * TOLERANCE
"""What a mistake must change at least, somewhere."""
CASES = list(product(FLOWS, STEPS, GUIDANCES))


@cache
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


@cache
def flow(name: str = "small") -> Flow:
    return Flow.of(flow_tensors(FLOWS[name]), FLOWS[name])


def error(head: Flow, name: str, steps: int, guidance: float, ours: tuple[int, float] | None = None) -> float:
    """Integrate, perhaps with steps and guidance of `ours`; return the greatest distance from the reference."""
    hidden, noise = flow_inputs(FLOWS[name])
    final = head.integrate(hidden, noise, *(ours or (steps, guidance))).numpy()
    return float(np.abs(final - golden()[f"{name}_{steps}_{guidance}_final"]).max())


def test_the_golden_file_is_of_the_reference() -> None:
    assert str(golden()["made_with"]).startswith("vllm-omni 0.30.0, ")


@pytest.mark.parametrize("name", FLOWS)
def test_velocities_equal_the_reference(name: str) -> None:
    """tts.md section 14: 2e-6; at every step of three, both branches."""
    head, (hidden, _) = flow(name), flow_inputs(FLOWS[name])
    condition, times = head.condition(hidden), head._time_tokens(3)
    rows = zip(times, golden()[f"{name}_states"], golden()[f"{name}_velocities"], strict=True)
    for token, states, expected in rows:
        x = torch.from_numpy(states)
        velocity = head.velocity(torch.cat((x, x)), token, condition)
        np.testing.assert_allclose(velocity.numpy(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("name", "steps", "guidance"), CASES)
def test_codes_and_states_equal_the_reference(name: str, steps: int, guidance: float) -> None:
    """N means N Euler steps, dt = 1 / N; every code equal, END_AUDIO frames among them."""
    hidden, noise = flow_inputs(FLOWS[name])
    codes = golden()[f"{name}_{steps}_{guidance}_codes"].astype(np.int64)
    assert np.array_equal(flow(name).step(hidden, noise, steps, guidance).numpy(), codes)
    assert error(flow(name), name, steps, guidance) < TOLERANCE
    ends = codes[:, 0] == END_AUDIO
    assert 0 < ends.sum() < FLOW_FRAMES / 2 and (codes[ends, 1:] == 2).all()
    assert len(np.unique(codes[~ends, 1:])) > 15  # constant codes would prove nothing


@pytest.mark.parametrize(("name", "steps", "guidance"), CASES)
def test_another_number_of_steps_or_guidance_shows(name: str, steps: int, guidance: float) -> None:
    """As many grid points as steps, which is a step less; a step more; the other guidance."""
    others = [(steps + 1, guidance), (steps, 2.2 - guidance), (steps - 1, guidance)]
    for wrong in others[: 3 if steps > 1 else 2]:
        assert error(flow(name), name, steps, guidance, wrong) > CLEAR
    codes = flow(name).step(*flow_inputs(FLOWS[name]), *others[-1 if steps > 1 else 0]).numpy()
    assert not np.array_equal(codes, golden()[f"{name}_{steps}_{guidance}_codes"])


def constant_noise(patch: pytest.MonkeyPatch) -> None:
    integrate = Flow.integrate

    def wrong(head: Flow, hidden: Tensor, x: Tensor, *args: Any) -> Tensor:
        return integrate(head, hidden, torch.full_like(x, 0.5), *args)

    patch.setattr(Flow, "integrate", wrong)


def times_of(grid: Callable[[int], Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    def make(patch: pytest.MonkeyPatch) -> None:
        def wrong(head: Flow, steps: int) -> Tensor:
            embedded = [time_embedding(float(t), head.config.dim) for t in grid(steps)]
            return head.time_projection(torch.stack(embedded))

        patch.setattr(Flow, "_time_tokens", wrong)

    return make


def sines_first(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "time_embedding", lambda t, dim: time_embedding(t, dim).roll(dim // 2))


def positions(patch: pytest.MonkeyPatch) -> None:
    right = ops.attention

    def wrong(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        rates = 1e4 ** (-torch.arange(0, q.shape[-1], 2) / q.shape[-1])
        angles = torch.arange(3)[:, None] * rates
        turn = torch.polar(torch.ones_like(angles), angles)
        turned = ops.rotate(k.transpose(1, 2), turn).transpose(1, 2)
        return right(ops.rotate(q, turn[: q.shape[1]]), turned, v, mask)

    patch.setattr(ops, "attention", wrong)


def causal(patch: pytest.MonkeyPatch) -> None:
    right = ops.attention

    def wrong(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return right(q, k, v, torch.ones(q.shape[1], k.shape[2], dtype=torch.bool).tril())

    patch.setattr(ops, "attention", wrong)


def reordered(order: tuple[int, ...]) -> Callable[[pytest.MonkeyPatch], None]:
    """Give tokens x, t, h in another order, and still read the first."""

    def make(patch: pytest.MonkeyPatch) -> None:
        right = torch.stack

        def wrong(tensors: list[Tensor] | tuple[Tensor, ...], dim: int = 0) -> Tensor:
            return right([tensors[i] for i in order] if dim == 1 else tensors, dim=dim)

        patch.setattr(torch, "stack", wrong)

    return make


def absent_condition(patch: pytest.MonkeyPatch) -> None:
    """Leave the third token out of the unconditional branch, where it should be zero."""
    right = Flow.velocity

    def wrong(head: Flow, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        with_token = right(head, x, time, condition)
        half = len(x) // 2
        y = torch.stack((head.input_projection(x), time.expand_as(condition)), dim=1)[half:]
        for block in head.blocks:
            y = module._mix(block, y, y)
        without = head.acoustic_output(ops.rms_norm(y[:, 0], head.norm, head.config.norm_eps))
        return torch.cat((with_token[:half], without))

    patch.setattr(Flow, "velocity", wrong)


def branches_swapped(patch: pytest.MonkeyPatch) -> None:
    right = Flow.condition
    patch.setattr(Flow, "condition", lambda head, hidden: right(head, hidden).roll(len(hidden), dims=0))


MISTAKES = {
    "constant noise": constant_noise,
    "times from 1/n to 1": times_of(lambda n: torch.arange(1, n + 1) / n),
    "times down from 1": times_of(lambda n: 1 - torch.arange(n) / n),
    "times of a thousand": times_of(lambda n: 1000 * torch.arange(n) / n),
    "time, sines first": sines_first,
    "rotary positions": positions,
    "causal attention": causal,
    "order h t x": reordered((2, 1, 0)),
    "order t x h": reordered((1, 0, 2)),
    "no third token without condition": absent_condition,
    "branches swapped": branches_swapped,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_known_mistake_shows(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head = Flow.of(flow_tensors(SMALL_FLOW), SMALL_FLOW)  # anew: tokens of times are kept
    hidden, noise = flow_inputs(SMALL_FLOW)
    MISTAKES[mistake](monkeypatch)
    assert error(head, "small", 3, 1.2) > CLEAR
    codes = head.step(hidden, noise, 3, 1.2).numpy()
    assert not np.array_equal(codes, golden()["small_3_1.2_codes"])


def test_the_order_of_tokens_behind_the_first_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without positions only the token that is read has a place: so `reordered` itself is no mistake."""
    reordered((0, 2, 1))(monkeypatch)
    assert error(Flow.of(flow_tensors(SMALL_FLOW), SMALL_FLOW), "small", 1, 1.2) < TOLERANCE


@pytest.mark.parametrize("config", TIE_FLOWS, ids=lambda config: config.acoustic_levels)
def test_boundaries_round_to_even(config: FlowConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, hidden, noise = tie_inputs(config)
    head, expected = Flow.of(tensors, config), golden()[f"ties_{config.acoustic_levels}"]
    assert np.array_equal(head.step(hidden, noise, 3, 1.2).numpy(), expected)
    monkeypatch.setattr(torch, "round", lambda x: torch.floor(x + 0.5))
    wrong = (head.step(hidden, noise, 3, 1.2).numpy() != expected)[:, 1:]
    assert (
        wrong[::2].mean() > 0.8 and not wrong[1::2].any()
    )  # every second boundary, but for what is no tie in float32


@pytest.mark.parametrize("name", FLOWS)
def test_the_reference_was_asked_for_masked_codes(name: str) -> None:
    """Else the comparison of codes would not notice a missing mask of EMPTY_AUDIO or of the padding."""
    hidden, _ = flow_inputs(FLOWS[name])
    free = (hidden @ flow_tensors(FLOWS[name])[f"{FLOW}semantic_codebook_output.weight"].T).argmax(-1)
    assert (free == 0).sum() > 2 and (free >= 2 + FLOWS[name].semantic_size).sum() > 2


def test_steps_matter_and_frames_do_not_depend_on_each_other() -> None:
    hidden, noise = flow_inputs(SMALL_FLOW)
    seven = flow().step(hidden, noise, 7, 1.2)
    single = [flow().step(hidden[f : f + 1], noise[f : f + 1], 7, 1.2) for f in range(FLOW_FRAMES)]
    assert torch.equal(torch.cat(single), seven)
    assert not torch.equal(flow().step(hidden, noise, 3, 1.2), seven)


def test_pruning_the_last_layer_changes_nothing() -> None:
    hidden, noise = flow_inputs(SMALL_FLOW)
    head, condition = flow(), flow().condition(hidden)
    token = head._time_tokens(7)[2]
    both = torch.cat((noise, noise))
    y = torch.stack((head.input_projection(both), token.expand_as(condition), condition), dim=1)
    for block in head.blocks:
        y = module._mix(block, y, y)
    full = head.acoustic_output(ops.rms_norm(y[:, 0], head.norm, SMALL_FLOW.norm_eps))
    torch.testing.assert_close(head.velocity(both, token, condition), full, atol=1e-6, rtol=0)


def special(winner: int, runner_up: int) -> Flow:
    """Make a head whose semantic logits say `winner` for a hidden state of ones, `runner_up` next."""
    tensors = flow_tensors(SMALL_FLOW)
    output = torch.zeros_like(tensors[f"{FLOW}semantic_codebook_output.weight"])
    output[winner], output[runner_up] = 2.0, 1.0
    tensors[f"{FLOW}semantic_codebook_output.weight"] = output
    return Flow.of(tensors, SMALL_FLOW)


def test_the_end_frame_is_one_and_then_twos() -> None:
    ones, x = torch.ones(1, SMALL_FLOW.input_dim), random_rows(1, SMALL_FLOW.acoustic_dim, 2)
    assert special(1, 9).step(ones, x, 3, 1.2).tolist() == [[1] + [2] * SMALL_FLOW.acoustic_dim]
    assert special(1, 9).step(ones, x, 3, 1.2, allow_end=False)[0, 0] == 9


@pytest.mark.parametrize("masked", [0, 152, 255])
def test_empty_and_padding_never_win(masked: int) -> None:
    ones = torch.ones(1, SMALL_FLOW.input_dim)
    assert special(masked, 9).semantic(ones).tolist() == [9]


def test_of_equal_logits_the_lowest_index_wins() -> None:
    tensors = flow_tensors(SMALL_FLOW)
    tensors[f"{FLOW}semantic_codebook_output.weight"].zero_()
    head = Flow.of(tensors, SMALL_FLOW)
    assert head.semantic(torch.ones(2, SMALL_FLOW.input_dim)).tolist() == [1, 1]
    assert head.semantic(torch.ones(2, SMALL_FLOW.input_dim), allow_end=False).tolist() == [2, 2]


def test_noise_depends_on_seed_stream_and_frame_alone() -> None:
    again = frame_noise(7, 3, 11, 36)
    assert np.array_equal(frame_noise(7, 3, 11, 36), again)
    others = [frame_noise(8, 3, 11, 36), frame_noise(7, 4, 11, 36), frame_noise(7, 3, 12, 36)]
    assert all(not np.isin(again, other).any() for other in others)
    many = np.concatenate([frame_noise(0, 0, f, 36) for f in range(2000)])
    assert abs(many.mean()) < 0.02 and abs(many.std() - 1) < 0.02


def test_a_packed_norm_is_refused_by_name() -> None:
    packed = PackedWeight("q8_0", torch.zeros(1, 1, 34, dtype=torch.uint8))
    tensors: dict[str, Weight] = {**flow_tensors(SMALL_FLOW), f"{FLOW}norm.weight": packed}
    with pytest.raises(BadModelError, match=r"acoustic_transformer.norm.weight is packed"):
        Flow.of(tensors, SMALL_FLOW)


def test_the_published_shapes_add_up() -> None:
    """tts.md section 12."""
    shapes = flow_shapes(FlowConfig())
    assert len(shapes) == 33
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 393_851_904
