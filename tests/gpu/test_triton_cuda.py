"""The Triton kernels on the device, bfloat16, at odd shapes and at the published ones."""

from __future__ import annotations

import pytest
import torch
from triton_cases import Cases

from voxtral_pipes.kernels import dispatch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

TOLERANCE = 4e-2
"""A few units in the last place of bfloat16 at 4."""


@pytest.fixture
def cases() -> Cases:
    return Cases(dispatch.pick_device("cuda"), torch.bfloat16)


@pytest.mark.parametrize(
    ("norm", "gated", "residual"), [(False, False, True), (True, False, False), (True, True, False)]
)
@pytest.mark.parametrize(
    ("rows", "n_in", "n_out"),
    [
        (1, 96, 80),
        (1, 1300, 7),
        (6, 530, 50),
        (16, 64, 17),
        (1, 3072, 9216),
        (1, 9216, 3072),
        (6, 3072, 9216),
        (2, 9216, 3072),
    ],
)
def test_products_of_a_few_rows(
    cases: Cases, rows: int, n_in: int, n_out: int, norm: bool, gated: bool, residual: bool
) -> None:
    assert cases.linear_rows(rows, n_in, n_out, norm=norm, gated=gated, residual=residual) < TOLERANCE


@pytest.mark.parametrize(
    ("norm", "gated", "residual"), [(False, False, True), (True, False, False), (True, True, True)]
)
@pytest.mark.parametrize(
    ("rows", "n_in", "n_out"),
    [(1, 96, 80), (2, 1300, 7), (4, 300, 36), (8, 1024, 4096), (8, 7168, 240), (2, 4096, 1024)],
)
def test_products_in_float32(
    cases: Cases, rows: int, n_in: int, n_out: int, norm: bool, gated: bool, residual: bool
) -> None:
    assert cases.float_rows(rows, n_in, n_out, norm=norm, gated=gated, residual=residual) < 2e-5


@pytest.mark.parametrize(
    ("heads", "groups", "width", "n_in", "capacity", "window", "positions"),
    [(6, 2, 16, 96, 70, 50, 90), (3, 3, 32, 50, 9, 9, 20), (32, 8, 128, 3072, 1280, 1200, 1400)],
)
def test_one_position_of_attention(
    cases: Cases, heads: int, groups: int, width: int, n_in: int, capacity: int, window: int, positions: int
) -> None:
    assert cases.attend(heads, groups, width, n_in, capacity, window, positions) < TOLERANCE


@pytest.mark.parametrize(
    ("norm", "gated", "residual"), [(False, False, True), (True, False, False), (True, True, True)]
)
@pytest.mark.parametrize(
    ("rows", "n_in", "n_out", "run"),
    [
        (1, 96, 80, 4),
        (1, 1312, 7, 4),
        (1, 96, 9, 32),
        (6, 544, 50, 32),
        (16, 2080, 17, 32),
        (1, 3072, 9216, 4),
        (1, 9216, 3072, 4),
        (6, 3072, 9216, 32),
        (4, 5120, 1280, 32),
    ],
)
def test_products_with_packed_weights(
    cases: Cases, rows: int, n_in: int, n_out: int, run: int, norm: bool, gated: bool, residual: bool
) -> None:
    given = {"norm": norm, "gated": gated, "residual": residual}
    assert cases.linear_rows(rows, n_in, n_out, run=run, **given) < TOLERANCE


@pytest.mark.parametrize("run", [4, 32])
@pytest.mark.parametrize(("n_in", "n_out"), [(96, 5), (352, 17), (3072, 1024)])
def test_packed_weights_unpacked(cases: Cases, n_in: int, n_out: int, run: int) -> None:
    assert cases.unpack(n_in, n_out, run) == 0


@pytest.mark.parametrize(("n_in", "n_out", "sums", "count"), [(96, 12, 3, 1), (3072, 400, 2, 37)])
def test_sums_of_packed_rows(cases: Cases, n_in: int, n_out: int, sums: int, count: int) -> None:
    assert cases.look_up(n_in, n_out, sums, count) < 1e-5


@pytest.mark.parametrize(
    ("heads", "groups", "width", "n_in", "capacity", "window", "positions", "steps", "run"),
    [
        (6, 2, 16, 96, 70, 50, 90, 1, 4),
        (3, 3, 32, 64, 24, 9, 60, 4, 0),
        (32, 8, 128, 3072, 1280, 1200, 1400, 1, 4),
        (32, 32, 64, 1280, 832, 750, 960, 4, 0),
        (32, 32, 64, 1280, 832, 750, 960, 4, 32),
    ],
)
def test_a_few_positions_of_attention(
    cases: Cases,
    heads: int,
    groups: int,
    width: int,
    n_in: int,
    capacity: int,
    window: int,
    positions: int,
    steps: int,
    run: int,
) -> None:
    sizes = heads, groups, width, n_in, capacity, window, positions
    assert cases.attend(*sizes, steps=steps, run=run) < TOLERANCE


@pytest.mark.parametrize(("rows", "size", "apart"), [(1, 40, 0), (3, 3000, 7), (1, 131072, 32)])
def test_the_choice_of_an_id(cases: Cases, rows: int, size: int, apart: int) -> None:
    logits = torch.randn(rows, size, generator=torch.Generator().manual_seed(size))
    logits[0, apart] = 9.0
    logits[-1, size // 3] = logits[-1, size // 2] = 8.0  # of equals the lowest
    same, error = cases.choose(logits, apart)
    assert same and error < 1e-5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_choice_shows_that_logits_are_not_finite(cases: Cases, value: float) -> None:
    from voxtral_pipes.kernels.choose import choose

    logits = torch.full((1, 40), value).to(cases.device)
    log_sum = choose(logits, 3)[0, 3:4].view(torch.float32)
    assert not torch.isfinite(log_sum).item()


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize(
    ("heads", "groups", "width", "n_in"), [(6, 2, 16, 98), (3, 1, 32, 70), (32, 8, 128, 3072)]
)
def test_tokens_that_attend_to_each_other(
    cases: Cases, heads: int, groups: int, width: int, n_in: int, queries: int
) -> None:
    assert cases.mix_tokens(heads, groups, width, n_in, queries) < TOLERANCE


def test_tokens_that_attend_to_each_other_by_packed_weights(cases: Cases) -> None:
    assert cases.mix_tokens(6, 2, 16, 352, 3, run=32) < TOLERANCE


@pytest.mark.parametrize(("n_state", "dim"), [(36, 3072), (7, 98), (5, 64)])
def test_an_euler_step_and_the_tokens_after_it(cases: Cases, n_state: int, dim: int) -> None:
    state, tokens = cases.move(n_state, dim)
    assert state < 1e-5 and tokens < TOLERANCE
