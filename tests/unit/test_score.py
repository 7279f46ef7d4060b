"""scripts/scoring: reading what is to be scored, normalising, counting, intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scoring.items import Item, chosen, read_items
from scoring.score import Errors, Estimate, compare, label, normaliser, ratio_interval, summarise

from voxtral_pipes.errors import BadInputError


@pytest.mark.parametrize(
    ("said", "heard", "counts"),
    [
        ("a b c", "a b c", (3, 0, 0, 0)),
        ("a b c", "a x c d", (3, 1, 0, 1)),
        ("a b c d", "b d", (4, 0, 2, 0)),
        ("", "", (0, 0, 0, 0)),
        ("", "a b", (0, 0, 0, 2)),
        ("a b", "", (2, 0, 2, 0)),
    ],
)
def test_errors_are_counted(said: str, heard: str, counts: tuple[int, int, int, int]) -> None:
    assert compare(said, heard) == Errors(*counts)


def test_rate_of_nothing_is_none() -> None:
    assert compare("", "a").rate is None
    assert compare("a b", "a").rate == 0.5


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("whisper", "Three, one FOUR!", "314"),
        ("digits", "Three, one FOUR!", "3 1 4"),
        ("digits", "Stop, zero nine nine", "stop 0 9 9"),
        ("digits", "the cat's out", "the cat is out"),
        ("digits", "", ""),
        ("none", " Three,  one ", "Three, one"),
    ],
)
def test_normalisers(name: str, text: str, expected: str) -> None:
    assert normaliser(name)(text) == expected


def test_normalisers_have_versions() -> None:
    assert "whisper_normalizer 0." in label("digits")
    with pytest.raises(ValueError, match="unknown"):
        normaliser("german")


def test_interval_of_equal_files_is_a_point() -> None:
    assert ratio_interval(np.full(50, 1.0), np.full(50, 4.0), 0) == Estimate(0.25, 0.25, 0.25)


def test_interval_is_that_of_a_proportion() -> None:
    """Of 400 files of one word with 100 errors: 1.96 sqrt(p (1 - p) / n) to each side."""
    found = ratio_interval(np.repeat((1.0, 0.0), (100, 300)), np.ones(400), 3, resamples=20_000)
    assert found.value == 0.25
    assert found.low == pytest.approx(0.25 - 0.0424, abs=0.004)
    assert found.high == pytest.approx(0.25 + 0.0424, abs=0.004)
    assert found == ratio_interval(np.repeat((1.0, 0.0), (100, 300)), np.ones(400), 3, resamples=20_000)


def test_interval_weighs_words() -> None:
    """A file of many words counts as many."""
    assert ratio_interval(np.array([1.0, 0.0]), np.array([1.0, 9.0]), 0).value == 0.1


def test_sums() -> None:
    found = summarise([Errors(3, 1, 0, 1), Errors(1, 0, 0, 0), Errors(0, 0, 0, 2)], seed=0)
    assert (found.files, found.words, found.substituted, found.deleted, found.inserted) == (3, 4, 1, 0, 3)
    assert found.word_errors.value == 1.0
    assert found.files_wrong.value == pytest.approx(2 / 3)
    assert found.said_of_nothing == 2


def test_sums_of_silence_alone() -> None:
    found = summarise([Errors(0, 0, 0, 1)], seed=0)
    assert found.word_errors == Estimate(None, None, None)
    assert str(found.word_errors) == "-"


def table(folder: Path, *rows: str, head: str = "path\tkind\ttranscript") -> Path:
    path = folder / "table.tsv"
    path.write_text("\n".join((head, *rows)) + "\n", encoding="utf-8")
    return path


def test_a_table_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / "b.opus").touch()
    items = read_items(table(tmp_path, "a.wav\tdigit\tone", "b.opus\tnoise\t"))
    assert [(item.name, item.text) for item in items] == [("a.wav", "one"), ("b.opus", "")]
    assert items[0].audio == tmp_path / "a.wav"
    assert [item.name for item in chosen(items, ["kind=noise,word"])] == ["b.opus"]
    for condition, why in (
        ("kind=x", "no recording"),
        ("kind", "COLUMN=VALUE"),
        ("size=1", "no column size"),
    ):
        with pytest.raises(BadInputError, match=why):
            chosen(items, [condition])


def test_a_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name, text in (("b.flac", "two\nwords"), ("sub/a.wav", "")):
        (tmp_path / name).touch()
        (tmp_path / name).with_suffix(".txt").write_text(text, encoding="utf-8")
    (tmp_path / "notes.txt").write_text("not beside a recording", encoding="utf-8")
    assert [(item.name, item.text) for item in read_items(tmp_path)] == [
        ("b.flac", "two words"),
        ("sub/a.wav", ""),
    ]


def test_what_cannot_be_scored(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="does not exist"):
        read_items(tmp_path / "none.tsv")
    with pytest.raises(BadInputError, match="no column transcript"):
        read_items(table(tmp_path, head="path\ttext"))
    with pytest.raises(BadInputError, match="line 2: 2 columns instead of 3"):
        read_items(table(tmp_path, "a.wav\tone"))
    with pytest.raises(BadInputError, match=r"1 recordings are missing, a\.wav"):
        read_items(table(tmp_path, "a.wav\tdigit\tone"))
    path = table(tmp_path, "a.wav\tdigit\tone")
    path.write_bytes(path.read_bytes().replace(b"one", b"n\xe9e"))
    with pytest.raises(BadInputError, match="line 2: not UTF-8"):
        read_items(path)
    (tmp_path / "a.wav").touch()
    with pytest.raises(BadInputError, match=r"a\.wav has no transcript"):
        read_items(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(BadInputError, match=r"a\.txt, line 1: not UTF-8"):
        read_items(tmp_path)
    assert Item("a", tmp_path, "one").columns == {}
