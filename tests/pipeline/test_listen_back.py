"""scripts/listen-back through real pipes of tiny random models: what it counts is right, whatever they say."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import soundfile
import torch
from preloaded import path_preloaded, script_preloaded, shell_preloaded
from scoring.score import compare, normaliser
from scoring.speech import Manner, speak

TEXTS = ("hello there", "the sky is blue", "one two three")


def listen(*arguments: str | int | Path) -> subprocess.CompletedProcess[str]:
    return script_preloaded("listen-back", *arguments, "--device", "cpu")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("said") / "said.txt"
    file.write_text("# of these tests\n" + "".join(f"{text}\n" for text in TEXTS))
    return file


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes started here find the commands and no model of the user's."""
    monkeypatch.setenv("PATH", path_preloaded())
    monkeypatch.delenv("VX_TTS_MODEL", raising=False)


def manner(model: Path, voice: str, **more: int) -> Manner:
    counts = {"steps": 1, "seed": 7, "max_frames": 20, "jobs": 2, "texts_per_pipe": 2, **more}
    return Manner(
        str(model), voice, counts["steps"], counts["seed"], counts["max_frames"], "cpu", "auto", counts["jobs"],
        counts["texts_per_pipe"],
    )  # fmt: skip


def test_what_our_own_judge_hears(tmp_path: Path, said: Path, tiny_model: Path, tiny_tts_model: Path) -> None:
    """Each text, by each voice, has the sound of its place in its pipe, and of that what a pipe hears."""
    kept = tmp_path / "kept"
    done = listen(
        "--tts", tiny_tts_model, "-m", tiny_model, "--judge", "asr", "--voice", "casual_male", "--voice", "de_male",
        "--sentences", said, "--numbers", 1, "--seed", 5, "-n", 2, "--max-frames", 15, "--texts-per-pipe", 2,
        "--against", "espeak", "--jobs", 2, "--keep", kept, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["judges"] == {"asr": str(tiny_model)} and "whisper_normalizer" in report["normalizer"]
    rows = report["texts"]
    assert [row["voice"] for row in rows] == ["casual_male"] * 4 + ["de_male"] * 4 + ["espeak-ng"] * 4
    assert [row["number"] for row in rows] == [0, 1, 2, 3] * 3
    assert [row["said"] for row in rows[:3]] == list(TEXTS) and rows[3]["kind"] == "numbers"
    normalise = normaliser("digits")
    for row in rows:
        sound = kept / row["voice"] / f"{row['number']:05}.wav"
        samples, rate_hz = soundfile.read(sound, dtype="int16")
        assert row["seconds"] == pytest.approx(len(samples) / rate_hz, abs=0.08)
        errors = compare(normalise(row["said"]), normalise(row["heard"]))
        assert (errors.words, errors.total) == (
            row["words"],
            row["substituted"] + row["deleted"] + row["inserted"],
        )
    # The second pipe of the second voice, by hand.
    pair = rows[6:8]
    line = 'vx-tokenize -q -m "$0" | vx-backbone -q -m "$0" --device cpu --voice de_male --max-frames 15 | '
    line += 'vx-flow -q -m "$0" --device cpu -n 2 --seed 7 | vx-codec -q -m "$0" --device cpu --out-dir alone'
    lines = "".join(f"{row['said']}\n" for row in pair)
    shell_preloaded(line.replace("$0", str(tiny_tts_model)), data=lines.encode(), cwd=tmp_path)
    for stream, row in enumerate(pair):
        alone = soundfile.read(tmp_path / "alone" / f"{stream:05}.wav")[0]
        assert (alone == soundfile.read(kept / "de_male" / f"{row['number']:05}.wav")[0]).all()
    line = "vx-mel -q alone/00000.wav | vx-encode -q --device cpu | vx-decode -q --device cpu | vx-detok -q"
    assert shell_preloaded(line, tiny_model, cwd=tmp_path).stdout.decode().strip() == pair[0]["heard"]
    table = (kept / "manifest.tsv").read_text().splitlines()
    assert len(table) == 13 and table[2] == "casual_male/00001.wav\tcasual_male\tsentences\tthe sky is blue"
    assert [(one["speaker"], one["kind"], one["times_baseline"] is None) for one in report["sums"]] == [
        (voice, kind, voice == "espeak-ng")
        for voice in ("casual_male", "de_male", "espeak-ng")
        for kind in ("sentences", "numbers")
    ]


def test_how_speech_ends(tmp_path: Path, commands: None, tiny_tts_model: Path) -> None:
    """As long as the model likes, or as the limit lets it; jobs change nothing, the limit only the end."""
    texts = [f"this is text {n}" for n in range(4)]
    found = {}
    for name, jobs, frames in (("free", 1, 100), ("more", 2, 100), ("short", 2, 10)):
        (tmp_path / name).mkdir()
        spoken = speak(
            texts, manner(tiny_tts_model, "casual_male", jobs=jobs, max_frames=frames), tmp_path / name
        )
        found[name] = sorted(spoken, key=lambda one: one.index)
    assert [one.index for one in found["free"]] == list(range(4))
    assert any(one.ended and one.frames > 10 for one in found["free"])
    for free, more, short in zip(found["free"], found["more"], found["short"], strict=True):
        assert free.audio and more.audio and short.audio and free.error is None
        assert free.audio.read_bytes() == more.audio.read_bytes()
        samples = soundfile.read(free.audio, dtype="int16")[0]
        assert len(samples) == 1920 * free.frames
        assert short.frames == min(free.frames, 10) and short.ended == (free.ended and free.frames < 10)
        assert (soundfile.read(short.audio, dtype="int16")[0] == samples[: 1920 * short.frames]).all()


def test_a_model_that_says_nothing(tmp_path: Path, commands: None, said: Path, tiny_model: Path) -> None:
    """Speech that ends at its first frame is empty, its words are missing, and no judge is asked."""
    from voxtral_pipes.models.random_tts import make_tts_model, tiny_tts_config

    # The row that ends is so large that it wins wherever it is positive.
    model = make_tts_model(tmp_path / "model", tiny_tts_config(), end_gain=30.0)
    done = listen(
        "--tts", model, "-m", tiny_model, "--judge", "asr", "--sentences", said, "--json", "--jobs", 1
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    empty = [row for row in report["texts"] if row["end"] == "empty"]
    assert empty and report["sums"][0]["empty"] == len(empty)
    for row in empty:
        assert row["seconds"] == 0 and row["heard"] == "" and row["deleted"] == row["words"]


def test_a_pipe_that_fails_is_of_one_text(tmp_path: Path, commands: None, tiny_tts_model: Path) -> None:
    """A text that has more tokens than the model has positions; the other one in its pipe is spoken."""
    texts = ["hello", "ab" * 5000]
    spoken = sorted(speak(texts, manner(tiny_tts_model, "casual_male"), tmp_path), key=lambda one: one.index)
    assert spoken[0].error is None and spoken[0].audio is not None
    assert spoken[1].audio is None and "vx-" in str(spoken[1].error)


def test_what_pocketsphinx_hears(said: Path, tiny_tts_model: Path) -> None:
    """espeak-ng is understood, noise is not; the ratio of their errors says so."""
    pytest.importorskip("pocketsphinx", reason="pocketsphinx is not installed")
    done = listen(
        "--tts", tiny_tts_model, "--sentences", said, "--against", "espeak", "--max-frames", 12, "-n", 1, "--jobs", 1
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("judge\tvoice\tkind\ttext\t") and len(lines) == 1 + 6 + 1 + 1 + 2
    assert lines[5].startswith("pocketsphinx\tespeak-ng\tsentences\t1\t4\t0\t0\t0\t0.0\t")
    assert "pocketsphinx 5." in lines[8]
    model, espeak = lines[9:]
    assert model.startswith("pocketsphinx, casual_female, sentences: 3 texts, 9 words; words heard ")
    assert "espeak-ng" in model.rpartition("; ")[2]  # how many times its errors, or that it has none
    assert "not ended 0; empty 0" in espeak


def test_silence_is_empty(tmp_path: Path, said: Path, tiny_model: Path) -> None:
    """A model whose codec makes nothing but silence."""
    from voxtral_pipes.models.random_tts import make_tts_model, tiny_tts_config

    model = make_tts_model(tmp_path / "model", tiny_tts_config())
    silence(model / "consolidated.safetensors")
    done = listen(
        "--tts", model, "-m", tiny_model, "--judge", "asr", "--sentences", said, "--max-frames", 5, "--json",
        "--normalizer", "none",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["sums"][0]["empty"] == 3 and report["sums"][0]["texts"]["deleted"] == 9
    assert report["sums"][0]["coverage"] == {"value": 0, "low": 0, "high": 0}
    assert {row["end"] for row in report["texts"]} == {"empty"}


def silence(weights: Path) -> None:
    """Set the weights of the codec's last convolution to nothing."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    for name, tensor in tensors.items():
        if name.endswith("output_proj.conv.parametrizations.weight.original0"):
            tensors[name] = torch.zeros_like(tensor)
            break
    else:
        raise AssertionError([name for name in tensors if "output_proj" in name])
    save_file(tensors, weights)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--tts", "/none"), "/none"),
        (("--tts", "MODEL", "--sentences", "/none/said.txt"), "No such file"),
        (("--tts", "MODEL", "--voice", "nobody"), "--voice nobody: the model has: casual_female, "),
        (("--tts", "MODEL", "--judge", "both", "-m", "/none"), "/none"),
        (("--tts", "MODEL", "--against", "espeak", "--espeak-voice", "nobody"), "no voice nobody"),
        (("--tts", "MODEL", "--keep", "FULL"), "not empty"),
    ],
)
def test_what_cannot_be_done(
    tmp_path: Path, tiny_tts_model: Path, arguments: tuple[str, ...], why: str
) -> None:
    (tmp_path / "file").touch()
    named = {"MODEL": tiny_tts_model, "FULL": tmp_path}
    done = listen(*(named.get(argument, argument) for argument in arguments))
    assert done.returncode in (1, 2) and done.stdout == ""
    assert done.stderr.startswith("listen-back: ") and why in done.stderr
    assert len(done.stderr.splitlines()) == 1
