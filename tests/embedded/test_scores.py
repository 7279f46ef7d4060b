"""What the embedded models score, against what their card says: on people who are in no training data, and on speech.

Limits leave room for another machine's rounding, not for a worse model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from preloaded import script_preloaded
from processes import ROOT

DATA = ROOT.parent / "shared" / "data" / "digits" / "manifest.tsv"
STRINGS = "digits-mixed-speakers,words"
TEXTS = (
    "hello world", "hi", "how are you today", "the quick brown fox", "good morning", "what time is it",
    "we will see you on friday", "the train is late again", "my brother has a blue car",
)  # fmt: skip


def report(name: str, *arguments: str | int | Path) -> dict[str, Any]:
    done = script_preloaded(name, *arguments, "--device", "cpu", "--json", "--jobs", 1)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def errors_of_strings(model: str, delay_ms: int) -> float:
    arguments = (
        "-m",
        model,
        "--delay-ms",
        delay_ms,
        "--where",
        "split=dev",
        "--where",
        f"kind={STRINGS}",
        DATA,
    )
    rate: float = report("wer", *arguments)["sums"]["all"]["word_errors"]["value"]
    return rate


@pytest.mark.skipif(
    not DATA.is_file(), reason=f"{DATA} is not there: word errors of unknown people not checked"
)
def test_strings_of_words_of_unknown_people() -> None:
    """214 words, of 17 and more people: packed within one and a half points, early and late as well."""
    usual = errors_of_strings("nano", 480)
    assert usual < 0.12
    assert abs(errors_of_strings("nano-q4", 480) - usual) < 0.015
    assert all(errors_of_strings("nano", delay_ms) < usual + 0.03 for delay_ms in (240, 960))


@pytest.mark.parametrize("voice", ["casual_female", "casual_male"])
def test_digits_are_heard_back(voice: str) -> None:
    found = report(
        "listen-back", "--tts", "nano", "--voice", voice, "--judge", "asr", "-m", "nano", "--numbers", 12
    )
    (one,) = found["sums"]
    assert one["texts"]["files"] == 12 and one["not_ended"] == one["empty"] == 0
    assert one["texts"]["word_errors"]["value"] < 0.05


def test_sentences_are_understood_by_somebody_else(tmp_path: Path) -> None:
    """By pocketsphinx, which makes out seven words of ten of espeak-ng's own sentences."""
    said = tmp_path / "said.txt"
    said.write_text("".join(f"{text}\n" for text in TEXTS))
    found = report("listen-back", "--tts", "nano", "--voice", "casual_male", "--sentences", said)
    (one,) = found["sums"]
    assert one["not_ended"] == one["empty"] == 0
    assert one["coverage"]["value"] > 0.5
