"""Ring caches and rotary angles."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtral_pipes.models.cache import RingKV, Rotary


def ring(window: int, max_step: int) -> RingKV:
    return RingKV.new(
        layers=1, batch=1, heads=1, head_dim=1, window=window, max_step=max_step,
        device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(window=st.integers(1, 12), steps=st.lists(st.integers(1, 5), min_size=1, max_size=25), data=st.data())
def test_a_query_sees_exactly_the_window(window: int, steps: list[int], data: st.DataObject) -> None:
    """asr.md section 7: key j is seen by query i if i - W < j <= i, wherever the ring keeps it."""
    kv = ring(window, max(steps))
    position = data.draw(st.sampled_from([0, 10**9]))
    # A stream cannot begin at 10^9 with an empty ring; fill one window first.
    for p in range(max(0, position - kv.capacity), position):
        key = torch.full((1, 1, 1, 1), float(p - position))
        kv.write(0, kv.span(p, 1), key, key + 0.5)
    start = position
    for count in steps:
        span = kv.span(position, count)
        fresh = torch.arange(position - start, position - start + count, dtype=torch.float32).view(
            1, 1, -1, 1
        )
        keys, values = kv.write(0, span, fresh, fresh + 0.5)
        for i in range(count):
            seen = keys[0, 0, :, 0] if span.mask is None else keys[0, 0, span.mask[i], 0]
            last = position + i
            wanted = range(max(0, last - window + 1), last + 1)
            assert sorted(seen.tolist()) == [p - start for p in wanted]
        assert torch.equal(values, keys + 0.5)
        position += count


def test_a_step_that_would_evict_what_it_needs_is_refused() -> None:
    kv = ring(window=8, max_step=4)
    kv.span(0, 11)  # an empty ring has nothing to lose
    kv.span(100, 4)
    with pytest.raises(ValueError, match="overruns"):
        kv.span(100, 5)
    with pytest.raises(ValueError, match="overruns"):
        kv.span(0, 12)


@pytest.mark.parametrize("position", [0, 1023, 131_000, 524_288, 10**10])
def test_angles_are_exact_at_any_position(position: int) -> None:
    """Computed in float64 from the integer, by another route: the C library's cos and sin of the reduced angle."""
    turn = Rotary(head_dim=8, theta=1e6).at(position, 3)
    for row in range(3):
        for i in range(4):
            angle = math.fmod((position + row) * 1e6 ** (-2 * i / 8), 2 * math.pi)
            assert abs(turn[row, i].item() - complex(math.cos(angle), math.sin(angle))) < 2e-6


def test_angles_keep_few_blocks() -> None:
    rotary = Rotary(8, 1e6)
    for position in range(0, 100 * Rotary.BLOCK, Rotary.BLOCK // 2):
        rotary.at(position, 8)
    assert len(rotary._blocks) == Rotary.KEEP
