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

TOLERANCE = 3e-2
"""A few units in the last place of bfloat16 at 4."""


@pytest.fixture(scope="module")
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
    assert cases.attend_one(heads, groups, width, n_in, capacity, window, positions) < TOLERANCE


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize(
    ("heads", "groups", "width", "n_in"), [(6, 2, 16, 98), (3, 1, 32, 70), (32, 8, 128, 3072)]
)
def test_tokens_that_attend_to_each_other(
    cases: Cases, heads: int, groups: int, width: int, n_in: int, queries: int
) -> None:
    assert cases.mix_tokens(heads, groups, width, n_in, queries) < TOLERANCE


@pytest.mark.parametrize(("n_state", "dim"), [(36, 3072), (7, 98), (5, 64)])
def test_an_euler_step_and_the_tokens_after_it(cases: Cases, n_state: int, dim: int) -> None:
    state, tokens = cases.move(n_state, dim)
    assert state < 1e-5 and tokens < TOLERANCE
