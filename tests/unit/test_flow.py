"""The flow head against code we did not write, with its noise; tests/golden/README.md says how that was run."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tts_models import SMALL_FLOW, random_rows, random_tensors

from voxtral_pipes.config import FlowConfig
from voxtral_pipes.models.flow import Flow, flow_shapes, frame_noise
from voxtral_pipes.models.layers import time_embedding

GOLDEN = Path(__file__).parents[1] / "golden" / "flow.npz"
FRAMES = 60


@cache
def flow() -> Flow:
    return Flow.of(random_tensors(flow_shapes(SMALL_FLOW)), SMALL_FLOW)


def hidden() -> torch.Tensor:
    return random_rows(FRAMES, SMALL_FLOW.input_dim, 1)


def noise() -> torch.Tensor:
    return random_rows(FRAMES, SMALL_FLOW.acoustic_dim, 2)


def test_velocities_equal_the_reference() -> None:
    """tts.md section 14: 2e-6."""
    head = flow()
    token = head.time_projection(time_embedding(3 / 7, SMALL_FLOW.dim))
    velocity = head.velocity(noise(), token, head.llm_projection(hidden()))
    np.testing.assert_allclose(velocity.numpy(), np.load(GOLDEN)["velocity"], atol=2e-6, rtol=0)


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_codes_equal_the_reference(steps: int) -> None:
    """N means N Euler steps, dt = 1 / N; every code equal where no rounding boundary is near."""
    golden = np.load(GOLDEN)[f"codes_{steps}"].astype(np.int64)
    codes = flow().step(hidden(), noise(), steps, 1.2).numpy()
    state = flow().integrate(hidden(), noise(), steps, 1.2).clamp(-1, 1)
    scaled = (SMALL_FLOW.acoustic_levels - 1) / 2 * (state + 1)
    clear = ((scaled - scaled.floor() - 0.5).abs() > 1e-3).numpy()
    assert clear.mean() > 0.95
    assert np.array_equal(codes[:, 0], golden[:, 0])
    assert np.array_equal(codes[:, 1:][clear], golden[:, 1:][clear])
    assert len(np.unique(golden[:, 1:])) > 15  # constant codes would prove nothing


def test_steps_matter_and_frames_do_not_depend_on_each_other() -> None:
    three, seven = (flow().step(hidden(), noise(), n, 1.2) for n in (3, 7))
    assert not torch.equal(three, seven)
    single = [flow().step(hidden()[f : f + 1], noise()[f : f + 1], 7, 1.2) for f in range(FRAMES)]
    assert torch.equal(torch.cat(single), seven)


def test_pruning_the_last_layer_changes_nothing() -> None:
    from voxtral_pipes.models import flow as module

    head, condition = flow(), flow().condition(hidden())
    token = head._time_tokens(7)[2]
    both = torch.cat((noise(), noise()))
    y = torch.stack((head.input_projection(both), token.expand_as(condition), condition), dim=1)
    for block in head.blocks:
        y = module._mix(block, y, y)
    from voxtral_pipes.kernels import dispatch as ops

    full = head.acoustic_output(ops.rms_norm(y[:, 0], head.norm, SMALL_FLOW.norm_eps))
    torch.testing.assert_close(head.velocity(both, token, condition), full, atol=1e-6, rtol=0)


def special(winner: int, runner_up: int) -> Flow:
    """Make a head whose semantic logits say `winner` for a hidden state of ones, `runner_up` next."""
    tensors = random_tensors(flow_shapes(SMALL_FLOW))
    output = torch.zeros_like(tensors["acoustic_transformer.semantic_codebook_output.weight"])
    output[winner], output[runner_up] = 2.0, 1.0
    tensors["acoustic_transformer.semantic_codebook_output.weight"] = output
    return Flow.of(tensors, SMALL_FLOW)


def test_the_end_frame_is_one_and_then_twos() -> None:
    ones, x = torch.ones(1, SMALL_FLOW.input_dim), noise()[:1]
    assert special(1, 9).step(ones, x, 3, 1.2).tolist() == [[1] + [2] * SMALL_FLOW.acoustic_dim]
    assert special(1, 9).step(ones, x, 3, 1.2, allow_end=False)[0, 0] == 9


@pytest.mark.parametrize("masked", [0, 152, 255])
def test_empty_and_padding_never_win(masked: int) -> None:
    ones = torch.ones(1, SMALL_FLOW.input_dim)
    assert special(masked, 9).semantic(ones).tolist() == [9]


def test_of_equal_logits_the_lowest_index_wins() -> None:
    tensors = random_tensors(flow_shapes(SMALL_FLOW))
    tensors["acoustic_transformer.semantic_codebook_output.weight"].zero_()
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


def test_the_published_shapes_add_up() -> None:
    """tts.md section 12."""
    shapes = flow_shapes(FlowConfig())
    assert len(shapes) == 33
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 393_851_904
