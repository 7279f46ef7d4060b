"""scripts/pack-nano-tts: what is said, the packed file at 24 kHz, the same again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from nano.pack import Utterance, encode_opus, write_pack
from nano.tts_pack import KIND, decode, read_speech
from nano.tts_speech import levelled
from nano.tts_texts import DAYS, LETTERS, MONTHS, SENTENCES, number_words, texts
from preloaded import script_preloaded

from voxtral_pipes.errors import BadInputError


def tone(length: int, rate_hz: int) -> np.ndarray:
    return (8000 * np.sin(2 * np.pi * 440 / rate_hz * np.arange(length))).astype(np.int16)


def test_numbers_are_spelt() -> None:
    assert number_words(0) == "zero" and number_words(10) == "ten" and number_words(20) == "twenty"
    assert number_words(101) == "one hundred one" and number_words(5000) == "five thousand"
    assert number_words(1234) == "one thousand two hundred thirty four"
    assert number_words(9919) == "nine thousand nine hundred nineteen"
    with pytest.raises(ValueError, match="10000"):
        number_words(10000)


def test_texts_are_the_same_each_time_and_different_ones() -> None:
    said = texts(300, 3)
    assert said == texts(300, 3) != texts(300, 4)
    lines = [one.text for one in said]
    assert len(set(lines)) == len(lines)
    assert {*SENTENCES, *LETTERS, *DAYS, *MONTHS, "zero", "ninety nine", "42", "four thousand"} <= set(lines)
    kept = [one for one in said if one.split == "dev"]
    assert 5 < len(kept) < len(said) / 10 and {one.kind for one in kept} > {"sentence", "words"}


def test_sounds_of_both_rates_are_read_at_24_khz(tmp_path: Path) -> None:
    samples = tone(4800, 24000)
    assert encode_opus(samples, 24000, 1) == encode_opus(samples, 24000, 1) != encode_opus(samples, 24000, 2)
    assert len(decode(encode_opus(samples, 24000, 1))) == 4800
    soundfile.write(tmp_path / "a.flac", tone(1600, 16000), 16000)
    again = decode((tmp_path / "a.flac").read_bytes())
    assert len(again) == 2400
    assert np.abs(again[300:-300].astype(int) - tone(2400, 24000)[300:-300]).max() < 30
    soundfile.write(tmp_path / "b.flac", tone(800, 8000), 8000)
    with pytest.raises(BadInputError, match="8000 samples a second"):
        decode((tmp_path / "b.flac").read_bytes())


def test_levels() -> None:
    loud, quiet = (
        levelled(tone(24000, 24000).astype(np.float32) * np.float32(gain / 32768)) for gain in (1.0, 0.1)
    )
    assert np.abs(loud - quiet).max() < 1e-6 and 0.09 < np.abs(loud).max() < 0.13
    assert not levelled(np.zeros(1000, np.float32)).any() and len(levelled(np.zeros(3, np.float32))) == 3


def utterance(**changes: object) -> Utterance:
    held = {
        "sound": "a.opus", "at": 0, "samples": 2400, "text": "hi", "ends": None, "speaker": "me", "split": "train",
        "source": "test", "licence": "none", "kind": "word",
    }  # fmt: skip
    return Utterance(**{**held, **changes})  # type: ignore[arg-type]


def test_a_bad_pack_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pack"
    stream = encode_opus(tone(2400, 24000), 24000, 0)
    about = {"model": KIND, "speakers": {"me": "casual_male"}}
    write_pack(path, [utterance()], [("a.opus", stream)], about)
    held = read_speech(path)
    assert held.voices == ("casual_male",) and held.voice(held.utterances[0]) == 0
    assert len(held.audio(held.utterances[0])) == 2400
    for rows in ([utterance(samples=2401)], [utterance(speaker="you")]):
        write_pack(path, rows, [("a.opus", stream)], about)
        with pytest.raises(BadInputError, match="does not hold"):
            read_speech(path)
    write_pack(path, [], [], {})
    with pytest.raises(BadInputError, match="not training data of nano-tts"):
        read_speech(path)
    path.write_bytes(b"something")
    with pytest.raises(BadInputError, match="not a packed training file"):
        read_speech(path)


def pack(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return script_preloaded("pack-nano-tts", *arguments, "--jobs", "1")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows = ["path\tspeaker\ttranscript\tsource\tlicence\tkind"]
    for name, speaker, text in (
        ("a.wav", "allison", "zero"),
        ("b.wav", "me", "one"),
        ("c.wav", "allison", ""),
    ):
        soundfile.write(tmp_path / name, tone(6400, 16000), 16000)
        rows.append("\t".join((name, speaker, text, "test", "CC0", "word")))
    path = tmp_path / "manifest.tsv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_the_same_again(tmp_path: Path, manifest: Path) -> None:
    for name in ("one.pack", "two.pack"):
        done = pack("-o", tmp_path / name, "--only", "4", manifest)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "one.pack").read_bytes() == (tmp_path / "two.pack").read_bytes()
    held = read_speech(tmp_path / "one.pack")
    assert held.voices == ("casual_female", "casual_male", "neutral_female") and held.about["credits"] == {
        "test": "test"
    }
    said = [(one.speaker, one.text) for one in held.utterances]
    assert said == [
        ("allison", "zero"), *(("espeak en-us", text) for text in ("zero", "0", "one", "1")),
        *(("espeak en-us+f5", text) for text in ("zero", "0", "one", "1")),
    ]  # fmt: skip
    assert [held.voice(one) for one in held.utterances] == [2, 1, 1, 1, 1, 0, 0, 0, 0]
    assert held.utterances[0].samples == 9600
    for one in held.utterances[1:]:
        assert 0.2 * 24000 < one.samples < 24000 and np.abs(held.audio(one)).max() > 1000


def test_what_cannot_be_packed(tmp_path: Path, manifest: Path) -> None:
    out = tmp_path / "out.pack"
    done = pack("-o", out, "--only", "1", "--max-mib", "0.001", manifest)
    assert done.returncode == 1 and "MiB of sound are more than 0.001" in done.stderr and not out.exists()
    done = pack("-o", out, "--only", "1", "--male", "xx")
    assert done.returncode == 1 and "no voice xx" in done.stderr
    manifest.write_text("path\tspeaker\ttranscript\na.wav\tallison\tone\n")
    done = pack("-o", out, "--only", "1", manifest)
    assert done.returncode == 1 and "no column 'source'" in done.stderr
