"""scripts/scoring for scripts/listen-back: what is said, what counts as silence, how it is summed; and pocketsphinx."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from nano.tts_texts import SENTENCES
from scoring import judges
from scoring.chain import run_chain
from scoring.judges import hear, is_silent, prepared
from scoring.kept import place_for
from scoring.listening import Row, row_of, sums
from scoring.listening_report import sum_line, table
from scoring.pipes import Heard
from scoring.rendering import render
from scoring.score import Estimate, compare, normaliser, summarise
from scoring.speech import Spoken
from scoring.texts import EVERYDAY, Text, numbers, sentences

from voxtral_pipes.errors import BadInputError


def test_of_the_everyday_sentences_the_first_ten_are_learnt_from() -> None:
    found = [one.text for one in sentences(EVERYDAY)]
    assert len(found) == len(set(found)) == 50
    assert [text in SENTENCES for text in found] == [True] * 10 + [False] * 40


def test_sentences_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "said.txt"
    file.write_bytes("\ufeff# none\r\n one  two\t\r\n\n \nthree\u2028four # five".encode())
    assert sentences(file) == [Text("sentences", "one two"), Text("sentences", "three four # five")]


@pytest.mark.parametrize(
    ("data", "why"), [(b"# none\n\n", "no sentence"), (b"\xff", "not UTF-8"), (None, "No such")]
)
def test_no_sentences(tmp_path: Path, data: bytes | None, why: str) -> None:
    file = tmp_path / "said.txt"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(BadInputError, match=why):
        sentences(file)


def test_numbers_are_seeded_and_of_every_length() -> None:
    found = numbers(200, 3)
    assert found == numbers(200, 3) != numbers(200, 4)
    assert {len(one.text.split()) for one in found} == {1, 2, 3, 4, 5, 6}
    assert {word for one in found for word in one.text.split()} == set(normal_digits())


def normal_digits() -> list[str]:
    """Number words, which the normaliser takes for the digits that they are."""
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert normaliser("digits")(" ".join(words)) == "0 1 2 3 4 5 6 7 8 9"
    return words


@pytest.mark.parametrize(
    ("samples", "silent"),
    [
        (np.zeros(0), True),
        (np.zeros(9), True),
        (np.full(24000, 1e-3), True),
        (np.full(3, 0.03), True),  # a faint click, whose block is filled up with silence
        (np.concatenate([np.zeros(23000), np.full(1000, 0.1)]), False),
    ],
)
def test_silence(samples: np.ndarray, silent: bool) -> None:
    assert is_silent(samples.astype(np.float32), 24000) is silent


def test_no_silence_is_quite_silent_for_pocketsphinx() -> None:
    tone = (np.sin(np.arange(24000) / 10) * 0.01).astype(np.float32)
    loud, quiet = prepared(tone, 24000), prepared((tone / 8).astype(np.float32), 24000)
    assert len(loud) == 16000 + 2 * 3200 and loud.dtype == np.int16
    assert 16000 < np.abs(loud).max() < 17000
    assert np.abs(loud.astype(int) - quiet).max() <= 1  # the level of what is spoken does not matter
    assert 20 < loud[:3200].astype(float).std() < 50  # -60 dBFS
    assert len(prepared(np.zeros(0, np.float32), 24000)) == 2 * 3200


def row(
    number: int, said: str, heard: str, *, speaker: str = "anna", kind: str = "sentences", frames: int = 10,
    ended: bool = True, error: str | None = None,
) -> Row:  # fmt: skip
    spoken = Spoken(number, None, frames, ended, error)
    what = Heard(number, heard, error)
    return row_of(
        "judge", (speaker, number), Text(kind, said), spoken, what, frames == 0, normaliser("digits")
    )


def test_sums_of_every_kind_of_speech() -> None:
    """One right, one wrong and endless, one empty, one that failed and does not count; the judge heard a word more."""
    rows = [
        row(0, "the sky is blue", "The sky is blue too."),
        row(1, "one two", "one nine", frames=250, ended=False),
        row(2, "go home", "", frames=0),
        row(3, "lost", "", error="it broke"),
    ]
    assert [one.end for one in rows[:3]] == ["ended", "limit", "empty"]
    (found,) = sums(rows, 0)
    assert (found.texts.files, found.texts.words) == (3, 8)
    assert (found.texts.substituted, found.texts.deleted, found.texts.inserted) == (1, 2, 1)
    assert found.texts.word_errors.value == 4 / 8
    assert found.coverage.value == 5 / 8
    assert found.texts.files_wrong.value == 1
    assert (found.not_ended, found.empty, found.times_baseline) == (1, 1, None)
    assert found.texts == summarise([one.errors for one in rows[:3]], 0)
    lines = list(table(rows))
    assert len(lines) == 4
    assert lines[2].split("\t")[3:] == ["1", "2", "1", "0", "0", "50.0", "20.00", "limit", "1 2", "1 9"]


def test_a_judge_that_hears_nothing_hears_no_word() -> None:
    (found,) = sums([row(number, "a b c", "") for number in range(4)], 0)
    assert found.coverage == Estimate(0, 0, 0) and found.texts.word_errors == Estimate(1, 1, 1)


def test_errors_are_compared_over_the_same_texts() -> None:
    """The text that only one of them has spoken is left out of the ratio; kinds are kept apart."""
    rows = [
        row(0, "a b c d", "a x y z"),
        row(1, "a b c d", "a b c x", error=None),
        row(2, "a b c d", "", error="it broke"),
        row(3, "one", "one", kind="numbers"),
        *(row(number, "a b c d", "a b x y", speaker="espeak") for number in range(3)),
        row(3, "one", "one", speaker="espeak", kind="numbers"),
    ]
    found = {(one.speaker, one.kind): one for one in sums(rows, 0, "espeak")}
    times = found["anna", "sentences"].times_baseline
    assert times is not None and times.value == (3 + 1) / (2 + 2)
    assert times.low == 0.5 and times.high == 1.5
    assert found["espeak", "sentences"].times_baseline is None
    assert found["anna", "numbers"].times_baseline == Estimate(None, None, None)
    assert "errors 1.00 times those of espeak [0.50, 1.50]" in sum_line(found["anna", "sentences"], "espeak")
    assert sum_line(found["anna", "numbers"], "espeak").endswith("espeak has no errors to compare with")
    assert "times" not in sum_line(found["espeak", "sentences"], "espeak")


def test_a_chain_of_commands() -> None:
    shout = [sys.executable, "-c", "import sys; print(sys.stdin.read().upper(), end='')"]
    assert run_chain([["cat"], shout], 1, "hi\n") == b"HI\n"
    assert run_chain([["cat"]], 2) == b""


@pytest.mark.parametrize(
    ("commands", "why"),
    [
        ([["sh", "-c", "echo first >&2; exit 1"], ["cat"]], "^first$"),
        ([["cat"], ["false"]], r"ended with \[0, 1\]"),
        ([["cat"], ["/none/command"]], "/none/command cannot be started: No such file"),
    ],
)
def test_a_chain_that_fails(commands: list[list[str]], why: str) -> None:
    with pytest.raises(BadInputError, match=why):
        run_chain(commands, 1)


def test_recordings_are_not_laid_over_others(tmp_path: Path) -> None:
    with place_for(tmp_path / "a" / "b") as folder:
        (folder / "file").touch()
    for kept, why in ((tmp_path / "a" / "b", "not empty"), (tmp_path / "a" / "b" / "file", "File exists")):
        with pytest.raises(BadInputError, match=why), place_for(kept):
            pass
    with place_for(None) as folder:
        assert folder.is_dir()
    assert not folder.exists()


def test_espeak_has_no_such_voice(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no voice nobody"):
        render(["hello"], "nobody", tmp_path)


def test_pocketsphinx_understands_espeak(tmp_path: Path) -> None:
    """Most words of plain sentences, in whichever order and number of processes; nothing of silence."""
    pytest.importorskip("pocketsphinx", reason="pocketsphinx is not installed")
    texts = [
        "the sky is blue",
        "the train is late",
        "she has two sisters and one brother",
        "what is your name",
    ]
    files = [one.audio for one in render(texts, "en-us", tmp_path) if one.audio is not None]
    heard = list(hear(files, 1))
    assert [one.index for one in heard] == [0, 1, 2, 3]
    normalise = normaliser("digits")
    found = summarise(
        [compare(normalise(text), normalise(what.text)) for text, what in zip(texts, heard, strict=True)], 0
    )
    assert found.word_errors.value is not None and found.word_errors.value < 0.5
    again = sorted(hear(files[::-1], 2), key=lambda one: one.index)
    assert [one.text for one in again] == [one.text for one in heard[::-1]]
    soundfile.write(tmp_path / "silence.wav", np.zeros(16000, np.int16), 16000)
    assert len(next(hear([tmp_path / "silence.wav"], 1)).text.split()) < 2


def test_pocketsphinx_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(ImportError, match="pocketsphinx"):
        judges.sphinx_label()
