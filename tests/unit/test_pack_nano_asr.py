"""scripts/pack-nano-asr: the ends of words, Ogg streams without chance, the packed file, the same again."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from nano.accents import SPELLINGS
from nano.espeak import Espeak, Manner
from nano.flite import PHONES, VOICES, Accent, Flite
from nano.ogg import with_serial
from nano.pack import KIND, Utterance, decode, encode_opus, read_pack, write_pack
from nano.words import DIGITS, OTHERS, WORDS, is_known, voiced_span, word_ends
from preloaded import script_preloaded
from processes import ROOT

from voxtral_pipes.errors import BadInputError

DATA = ROOT.parent / "shared" / "data" / "digits" / "manifest.tsv"


def tones(*spans_ms: tuple[int, int], length_ms: int, noise: float = 3.0) -> np.ndarray:
    """Return noise with a loud tone in each span."""
    samples = np.random.default_rng(0).normal(0, noise, length_ms * 16)
    for first, last in spans_ms:
        samples[first * 16 : last * 16] += 8000 * np.sin(np.arange((last - first) * 16) / 5)
    return samples.astype(np.int16)


def test_words() -> None:
    assert len(WORDS) == len(set(WORDS)) == 35 and WORDS[:10] == DIGITS
    assert not set(OTHERS) & set(WORDS) and len(set(OTHERS)) == len(OTHERS)
    assert is_known("one cat") and is_known("") and not is_known("one apple")


@pytest.mark.parametrize("noise", [0.0, 3.0, 300.0])
def test_sound_is_found_in_noise(noise: float) -> None:
    assert voiced_span(tones((100, 400), length_ms=700, noise=noise)) == (1600, 6400)


def test_a_click_is_no_sound() -> None:
    samples = tones((100, 400), length_ms=700)
    samples[650 * 16 : 650 * 16 + 30] = 20000
    assert voiced_span(samples) == (1600, 6400)


def test_where_nothing_stands_out_all_is_sound() -> None:
    assert voiced_span(np.zeros(16, np.int16)) == (0, 16)
    assert voiced_span(np.zeros(16000, np.int16)) == (0, 16000)


def test_each_word_ends_before_the_next() -> None:
    samples = tones((50, 200), (300, 600), length_ms=700)
    assert word_ends(samples, (0, 280 * 16)) == (3200, 9600)


def test_streams_are_the_same_each_time() -> None:
    samples = tones((100, 400), length_ms=700)
    first, again, other = (
        encode_opus(samples, 16000, 7),
        encode_opus(samples, 16000, 7),
        encode_opus(samples, 16000, 8),
    )
    assert first == again != other
    assert len(decode(first)) == len(samples)
    assert (decode(first) == decode(other)).all()  # libsndfile checks the checksums
    with pytest.raises(ValueError, match="no Ogg page at 0"):
        with_serial(b"RIFF" + bytes(60), 1)
    with pytest.raises(ValueError, match="is cut"):
        with_serial(first[:-1], 1)


def test_espeak_says_the_same_by_the_seed() -> None:
    speaker = Espeak()
    assert speaker.version.startswith("1.5")
    assert "f3" in (variants := speaker.variants()) and not any("robosoft" in name for name in variants)
    manner = Manner("en-us+klatt2", words_a_minute=150)
    first = speaker.say("one two three", manner, 5)
    assert len(first.word_starts) == 3 and speaker.rate_hz / 2 < len(first.samples) < 3 * speaker.rate_hz
    assert speaker.phones("six") == ["s", "I", "k", "s"] and speaker.phones("four pound")[-3:] == [
        "aU",
        "n",
        "d",
    ]
    with pytest.raises(ValueError, match="no voice xx"):
        speaker.say("one", Manner("xx"), 5)


def utterance(**changes: object) -> Utterance:
    held = {
        "sound": "a.opus", "at": 0, "samples": 800, "text": "one", "ends": (700,), "speaker": "me", "split": "train",
        "source": "test", "licence": "none", "kind": "digit",
    }  # fmt: skip
    return Utterance(**{**held, **changes})  # type: ignore[arg-type]


def test_a_pack_is_read_as_it_was_written(tmp_path: Path) -> None:
    samples = tones((10, 90), length_ms=100)
    rows = [utterance(), utterance(at=800, text="", ends=()), utterance(at=400, ends=None)]
    path = tmp_path / "a.pack"
    write_pack(path, rows, [("a.opus", encode_opus(samples, 16000, 0))], {"model": KIND, "seed": 3})
    pack = read_pack(path)
    assert pack.utterances == rows and pack.about["seed"] == 3
    assert len(pack.audio(rows[0])) == 800
    assert (pack.audio(rows[1]) == decode(encode_opus(samples, 16000, 0))[800:1600]).all()


def test_a_bad_pack_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pack"
    with pytest.raises(BadInputError, match="not a packed training file"):
        read_pack(path)
    path.write_bytes(b"something else")
    with pytest.raises(BadInputError, match="not a packed training file"):
        read_pack(path)
    stream = encode_opus(tones((10, 90), length_ms=100), 16000, 0)
    write_pack(path, [utterance(samples=5000)], [("a.opus", stream)], {"model": KIND})
    with pytest.raises(BadInputError, match="shorter than its utterances"):
        read_pack(path)
    write_pack(path, [utterance()], [("a.opus", stream[:100])], {"model": KIND})
    with pytest.raises(BadInputError, match="cannot be decoded"):
        read_pack(path)
    write_pack(path, [], [], {"version": 9, "model": KIND})
    with pytest.raises(BadInputError, match="not training data of nano-asr, version 1"):
        read_pack(path)


def pack(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return script_preloaded("pack-nano-asr", *arguments, "--jobs", "1")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    columns = ["path", "speaker", "split", "transcript", "source", "licence", "kind"]
    rows = ["\t".join(columns)]
    for name, split, text, kind in (
        ("a.wav", "train", "one", "digit"), ("b.flac", "dev", "one two", "digits"), ("c.wav", "train", "", "noise"),
        ("d.wav", "train", "press one", "phrase"),
    ):  # fmt: skip
        soundfile.write(tmp_path / name, tones((100, 300), length_ms=400), 16000)
        rows.append("\t".join((name, "me", split, text, "test", "CC0", kind)))
    path = tmp_path / "manifest.tsv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_the_same_again(tmp_path: Path, manifest: Path) -> None:
    for name in ("one.pack", "two.pack"):
        done = pack("-o", tmp_path / name, "--voices", "1", "--foreign", "1", "--flite", "0", manifest)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "one.pack").read_bytes() == (tmp_path / "two.pack").read_bytes()
    assert "train espeak-ng digits" in done.stdout
    held = read_pack(tmp_path / "one.pack")
    recorded = [one for one in held.utterances if one.source == "test"]
    assert [(one.text, one.ends, one.split) for one in recorded] == [
        ("one", (4800,), "train"), ("one two", None, "dev"), ("", (), "train"),
    ]  # fmt: skip
    spoken = [one for one in held.utterances if one.source == "espeak-ng"]
    foreign = [one for one in held.utterances if one.source == "espeak-ng-foreign"]
    assert set(WORDS) <= {one.text for one in spoken} and not {one.speaker for one in foreign} & {
        one.speaker for one in spoken
    }
    assert set(WORDS) == {word for one in foreign for word in one.text.split()}
    for one in spoken + foreign:
        assert one.ends is not None and len(one.ends) == len(one.text.split())
        assert one.ends[0] > 0 and list(one.ends) == sorted(one.ends) and one.ends[-1] <= one.samples
    assert held.about["credits"] == {"test": "test"}
    assert held.pronunciations["seven"] == "s E v @ n" and set(WORDS) <= held.pronunciations.keys()
    assert held.phones == sorted({phone for said in held.pronunciations.values() for phone in said.split()})
    assert zipfile.ZipFile(tmp_path / "one.pack").testzip() is None


@pytest.mark.parametrize("language", SPELLINGS)
def test_foreign_voices_read_words_and_do_not_spell_them(language: str) -> None:
    """Letter by letter, or with the name of a sign, 35 words would take longer, and be other words than these."""
    speaker = Espeak()
    spoken = speaker.say(" ".join(SPELLINGS[language].values()), Manner(f"{language}+m3"))
    assert len(spoken.word_starts) == len(WORDS)
    assert len(spoken.samples) < 12 * speaker.rate_hz


def test_accents_change_phones_and_keep_words_apart() -> None:
    """Nobody's accent makes another of the words out of one, as far as phones can tell; some have none."""
    assert set(PHONES) == set(WORDS)
    accents = [Accent.drawn(random.Random(seed)) for seed in range(300)]
    assert accents[5] == Accent.drawn(random.Random(5))
    usual = {tuple(phones): word for word, phones in PHONES.items()}
    plain = sum(not (accent.heard or accent.hardens or accent.eases) for accent in accents)
    assert 10 < plain < 120
    for accent in accents:
        said = {word: tuple(accent.say(word)) for word in WORDS}
        assert all(usual.get(phones, word) == word for word, phones in said.items())
    hard = Accent({"ih": "iy", "hh": ""}, True, True)
    assert hard.say("six") == ["s", "iy", "k", "s"] and hard.say("five") == ["f", "ay", "f"]
    assert hard.say("stop") == ["eh", "s", "t", "aa", "p"] and hard.say("house") == ["aw", "s"]


def test_without_flite_there_is_a_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInputError, match="flite is not installed"):
        Flite()
    broken = tmp_path / "flite"
    broken.write_text("#!/bin/sh\necho no memory >&2\n")
    broken.chmod(0o755)
    with pytest.raises(BadInputError, match="flite cannot say 'pau w ah n pau': no memory"):
        Flite().say(PHONES["one"], "slt", stretch=1, pitch_hz=120)


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
@pytest.mark.parametrize("voice", VOICES)
def test_flite_says_phones(voice: str) -> None:
    speaker = Flite()
    once, rate_hz = speaker.say(PHONES["seven"], voice, stretch=1, pitch_hz=120)
    again, _ = speaker.say(PHONES["seven"], voice, stretch=1, pitch_hz=120)
    slow, _ = speaker.say(PHONES["seven"], voice, stretch=1.5, pitch_hz=120)
    assert rate_hz == 16000 and (once == again).all() and len(slow) > 1.2 * len(once)
    assert 0.2 * rate_hz < len(once) < 1.5 * rate_hz and np.abs(once).max() > 2000


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
def test_speakers_of_flite_say_every_word(tmp_path: Path, manifest: Path) -> None:
    """Each word alone, with an end inside of it, and some digits once more."""
    path = tmp_path / "a.pack"
    done = pack("-o", path, "--voices", "0", "--foreign", "0", "--flite", "1", manifest)
    assert done.returncode == 0, done.stderr
    said = [one for one in read_pack(path).utterances if one.source == "flite"]
    assert [one.text for one in said[:35]] == list(WORDS) and {one.text for one in said[35:]} <= set(DIGITS)
    assert len(said) == 55 and {one.speaker for one in said} == {"flite slt 0"}
    for one in said:
        assert one.ends is not None and 0 < one.ends[0] <= one.samples < 2 * 16000


def test_what_cannot_be_packed(tmp_path: Path, manifest: Path) -> None:
    out = tmp_path / "out.pack"
    done = pack("-o", out, "--voices", "0", "--foreign", "0", "--flite", "0", "--max-mib", "0.01", manifest)
    assert done.returncode == 1 and "MiB of sound are more than 0.01" in done.stderr and not out.exists()
    buffer = io.BytesIO()
    soundfile.write(buffer, tones((100, 300), length_ms=400), 8000, format="WAV")
    (tmp_path / "a.wav").write_bytes(buffer.getvalue())
    done = pack("-o", out, "--voices", "0", "--foreign", "0", "--flite", "0", manifest)
    assert done.returncode == 1 and "a.wav: a sound has 8000 samples a second" in done.stderr
    manifest.write_text("path\ttranscript\na.wav\tone\n")
    done = pack("-o", out, "--voices", "0", "--foreign", "0", "--flite", "0", manifest)
    assert done.returncode == 1 and "no column 'speaker'" in done.stderr


@pytest.mark.skipif(not DATA.is_file(), reason=f"{DATA} is not there")
def test_the_corpus_splits_by_speaker() -> None:
    speakers: dict[str, set[str]] = {}
    for line in DATA.read_text().splitlines()[1:]:
        _, speaker, split, *_ = line.split("\t")
        if speaker not in ("-", ""):
            speakers.setdefault(speaker, set()).add(split)
    assert all(len(splits) == 1 for splits in speakers.values())
