from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtral_pipes.models import columns
from voxtral_pipes.models.columns import Array, Columns, extremes, first, mean


def test_rows_that_fit_stay_as_they_are() -> None:
    kept = Columns(2, np.float32, mean, limit=4)
    rows = np.arange(14, dtype=np.float32).reshape(7, 2)
    kept.add(rows[:3])
    kept.add(rows[3:])
    np.testing.assert_array_equal(kept.image(), rows)
    assert (kept.group, kept.rows, kept.share()) == (1, 7, 1)


def test_of_nothing_there_are_no_columns() -> None:
    kept = Columns(2, np.float32, mean)
    kept.add(np.empty((0, 2), np.float32))
    assert kept.image().shape == (0, 2)


def test_a_long_stream_is_reduced_by_twos_and_the_rest_is_a_column() -> None:
    rows = np.random.default_rng(3).normal(size=(211, 4)).astype(np.float32)
    for reduce in (mean, first):
        kept = Columns(4, np.float32, reduce, limit=8)
        for part in np.split(rows, [1, 2, 17, 18, 100, 150, 209]):
            kept.add(part)
        assert kept.group == 16
        expected = np.concatenate([reduce(rows[:208].reshape(13, 16, 4)), reduce(rows[None, 208:])])
        np.testing.assert_allclose(kept.image(), expected, atol=1e-5)
        assert kept.share() == 14 * 16 / 211


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 600), st.lists(st.integers(0, 600), max_size=8))
def test_any_cutting_gives_the_same(n_rows: int, cuts: list[int]) -> None:
    rows = np.random.default_rng(n_rows).integers(-999, 999, (n_rows, 2)).astype(np.int32)
    whole, pieces = Columns(2, np.int32, extremes, limit=4), Columns(2, np.int32, extremes, limit=4)
    whole.add(rows)
    for part in np.split(rows, sorted(min(cut, n_rows) for cut in cuts)):
        pieces.add(part)
    np.testing.assert_array_equal(whole.image(), pieces.image())
    if n_rows:
        assert whole.image()[:, 0].min() == rows[:, 0].min() and whole.image()[:, 1].max() == rows[:, 1].max()


@pytest.mark.parametrize("reduce", [mean, first, extremes])
def test_steps_change_nothing(reduce: columns.Reduce, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(3).normal(size=(5000, 2)).astype(np.float32)
    images: list[Array] = []
    for step_rows in (4, 1024):
        monkeypatch.setattr(columns, "STEP_ROWS", step_rows)
        kept = Columns(2, np.float32, reduce, limit=4)
        for part in np.split(rows, range(0, 5000, 77)):
            kept.add(part)
        images.append(kept.image())
    np.testing.assert_allclose(images[0][:-1], images[1][:-1], atol=1e-6)
    assert len(images[0]) == len(images[1])


def test_memory_is_flat_over_a_long_stream() -> None:
    kept = Columns(2, np.float32, extremes, limit=16)
    piece = np.zeros((8192, 2), np.float32)
    for _ in range(100):
        kept.add(piece)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(2000):
        kept.add(piece)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held - before < 64 << 10 and peak < 1 << 20
