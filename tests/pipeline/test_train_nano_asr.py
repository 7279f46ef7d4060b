"""scripts/train-nano-asr: a tiny model learns a batch by heart, and the real pipe hears it; runs go on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from nano.examples import LEFT_PAD, TOKEN_SAMPLES, WORD, Examples, trimmed
from nano.forward import PHONES, new_weights
from nano.listening import dev_scores, padded, word_errors, words_of
from nano.pack import KIND, Pack, Utterance, encode_opus, read_pack, write_pack
from nano.size import NANO, SMOKE
from nano.sounds import Sounds, hiss
from nano.state import State, load_beginning, load_state, save_state
from nano.training import SMOKE_SETTINGS
from nano.words import DIGITS
from preloaded import script_preloaded, scripts_preloaded, shell_preloaded
from processes import ROOT

from voxtral_pipes.errors import BadInputError

CPU = torch.device("cpu")
WAIT_S = 400
SEED = 9
"""Of a batch that has no silent example: where nothing is heard, nothing tells where the end is."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two synthetic voices, and a recording that nobody trains with."""
    folder = tmp_path_factory.mktemp("pack")
    draw = np.random.default_rng(0)
    rows = ["path\tspeaker\tsplit\ttranscript\tsource\tlicence\tkind"]
    for name, split, text, kind in (("a.wav", "dev", "one", "digit"), ("n.wav", "train", "", "noise")):
        soundfile.write(folder / name, draw.normal(0, 900, 20000).astype(np.int16), 16000)
        rows.append(f"{name}\tme\t{split}\t{text}\ttest\tCC0\t{kind}")
    (folder / "manifest.tsv").write_text("\n".join(rows) + "\n")
    path = folder / "nano.pack"
    voices = ("--voices", "2", "--foreign", "1", "--flite", "0")
    done = script_preloaded("pack-nano-asr", "-o", path, *voices, "--jobs", "1", folder / "manifest.tsv")
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def trained(packed: Path) -> Path:
    """A run on the CPU that learnt its batch by heart."""
    folder = packed.parent / "run"
    done = script_preloaded(
        "train-nano-asr", "--smoke", "--seed", str(SEED), "--device", "cpu", packed, folder
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_a_batch_is_learnt_by_heart(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] > lines[-2]["loss"] and lines[-2]["loss"] < 0.01
    assert lines[0]["phones"] > lines[-2]["phones"]
    assert lines[-1]["dev"]["by heart"]["rate"] == 0 and lines[-1]["dev"]["by heart"]["words"] > 3


@pytest.mark.parametrize("packing", ["bf16", "q4_0"])
def test_the_pipe_hears_what_was_learnt(tmp_path: Path, packed: Path, trained: Path, packing: str) -> None:
    """The same words by the commands, from the model as written; packed weights are only asked to run."""
    settings = SMOKE_SETTINGS
    pack = read_pack(packed)
    plan = Examples(pack, tokens=settings.tokens, batch=settings.batch, seed=SEED, cuts=False).plan(0)
    sound = Sounds(pack, tokens=settings.tokens, device=CPU, disturbed=False)(plan, 0).numpy()
    model = trained / "model"
    if packing == "q4_0":
        model = tmp_path / "packed" / "nano.gguf"
        done = script_preloaded("quantize", "asr", trained / "model", "-o", model)
        assert done.returncode == 0, done.stderr
    wordy = [row for row in range(settings.batch) if (plan.targets[row] == WORD).any()]
    for row in wordy[:2] if packing == "bf16" else wordy[:1]:
        delay = int(plan.delays[row])
        audio = sound[row, LEFT_PAD * TOKEN_SAMPLES : (settings.tokens - delay - 11) * TOKEN_SAMPLES]
        soundfile.write(tmp_path / "a.wav", audio, 16000, subtype="FLOAT")
        line = f"vx-mel --delay-ms {80 * delay} a.wav | vx-encode --device cpu | vx-decode --device cpu | vx-detok"
        done_pipe = shell_preloaded(line, model, cwd=tmp_path)
        assert done_pipe.returncode == 0, done_pipe.stderr.decode()
        if packing == "bf16":
            said = words_of(plan.targets[row, LEFT_PAD + delay :].tolist())
            assert done_pipe.stdout.decode().split() == said


def test_a_run_goes_on(tmp_path: Path, packed: Path) -> None:
    arguments = ("--device", "cpu", "--smoke", "--steps", "4", "--log-steps", "1", packed, tmp_path / "run")
    first = script_preloaded("train-nano-asr", "--minutes", "0", *arguments)
    assert first.returncode == 0 and "step 1 of 4: to be gone on with" in first.stderr, first.stderr
    second = script_preloaded("train-nano-asr", *arguments)
    assert second.returncode == 0 and "step 4 of 4: over" in second.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    again, other = scripts_preloaded("train-nano-asr", arguments, ("--seed", "1", *arguments))
    assert again.returncode == 0 and again.stdout == ""
    assert other.returncode == 1 and "other settings" in other.stderr


def test_the_real_size_takes_a_step(tmp_path: Path, packed: Path) -> None:
    """Disturbed sounds, examples drawn by workers, dev scores: all that the smoke run leaves out."""
    arguments = ("--device", "cpu", "--steps", "2", "--batch", "2", "--log-steps", "1", "--workers", "1")
    done = script_preloaded("train-nano-asr", *arguments, packed, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["dev"].keys() == {"test digit", "silence and noise"}
    assert (tmp_path / "run" / "state.safetensors").stat().st_size < 16 << 20
    assert (tmp_path / "run" / "model" / "consolidated.safetensors").stat().st_size < 6 << 20


def test_a_run_begins_with_a_model_or_a_run(tmp_path: Path, packed: Path) -> None:
    """The embedded one: before anything is learnt it is that model; one of another size is refused."""
    model = ROOT / "voxtral_pipes" / "nano" / "asr"
    name = "consolidated.safetensors"
    arguments = [
        "--device",
        "cpu",
        "--steps",
        "1",
        "--batch",
        "1",
        "--log-steps",
        "1",
        "--workers",
        "1",
        "--rate",
        "0",
    ]
    done, small, none = scripts_preloaded(
        "train-nano-asr",
        ("--from", model, *arguments, packed, tmp_path / "run"),
        ("--smoke", "--from", model, *arguments, packed, tmp_path / "smoke"),
        ("--from", tmp_path, *arguments, packed, tmp_path / "none"),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model" / name).read_bytes() == (model / name).read_bytes()
    assert small.returncode == 1 and "is no weight of a model of this size" in small.stderr
    assert none.returncode == 1 and "not a model" in none.stderr
    state = load_state(tmp_path / "run" / "state.safetensors")
    weights, squares = load_beginning(tmp_path / "run", state.weights)
    assert weights.keys() == state.weights.keys() and f"{PHONES}.weight" in weights and squares
    assert all(torch.equal(weights[key], value) for key, value in state.mean.items())
    assert load_beginning(model, state.weights)[1] == {}


def test_a_state_is_kept(tmp_path: Path) -> None:
    weights = new_weights(SMOKE, 0)
    squares = {name: torch.rand(value.shape) ** 8 * 1e-3 for name, value in weights.items()}
    mean = {name: value + 1e-3 * torch.randn(value.shape) for name, value in weights.items()}
    save_state(tmp_path / "state", State(7, 1.5, {"seed": 0}, weights, mean, squares))
    found = load_state(tmp_path / "state")
    assert (found.step, found.seconds, found.settings) == (7, 1.5, {"seed": 0})
    for name, value in weights.items():
        assert torch.equal(found.weights[name], value)
        most = (mean[name] - value).abs().max()
        assert (found.mean[name] - mean[name]).abs().max() < most / 200
        assert torch.allclose(found.squares[name], squares[name], rtol=0.1, atol=1e-17)
    (tmp_path / "state").write_bytes(b"no state")
    with pytest.raises(BadInputError, match="not the state"):
        load_state(tmp_path / "state")


def test_examples_depend_on_seed_and_step_alone(packed: Path) -> None:
    pack = read_pack(packed)
    one, two, other = (Examples(pack, tokens=160, batch=8, seed=seed) for seed in (0, 0, 1))
    first, again = one.plan(5), two.plan(5)
    assert all((getattr(first, name) == getattr(again, name)).all() for name in first.__slots__)
    assert len(first.row) != len(other.plan(5).row) or (first.at != other.plan(5).at).any()
    sounds = Sounds(pack, tokens=160, device=CPU)
    heard = sounds(first, 3)
    assert torch.equal(heard, sounds(first, 3)) and heard.isfinite().all() and heard.abs().max() <= 1
    assert not heard[:, : LEFT_PAD * TOKEN_SAMPLES].any()
    for row, delay in enumerate(first.delays.tolist()):
        assert not heard[row, -(delay + 11) * TOKEN_SAMPLES :].any()


def test_hiss_lasts_as_long_as_its_recording(packed: Path) -> None:
    """Some 100 ms around each, over all of it, between 10 and 45 dB below what is said in the row."""
    pack = read_pack(packed)
    plan = Examples(pack, tokens=160, batch=32, seed=0).plan(1)
    speech = Sounds(pack, tokens=160, device=CPU, disturbed=False)(plan, 0)
    noise = hiss(plan, speech, torch.Generator().manual_seed(0)).numpy()
    near = np.zeros(noise.shape, bool)
    margin = int(0.12 * 16000)
    hissing = np.abs(noise).max(axis=1) > 0
    assert 8 < hissing.sum() < 24
    for row, at, length, speed in zip(plan.row, plan.at, plan.length, plan.speed, strict=True):
        near[row, max(0, at - margin) : at + int(length / speed) + margin] = True
        if hissing[row]:
            inside = noise[row, at + 200 : at + int(length / speed) - 200]
            assert (inside != 0).mean() > 0.999
    assert not noise[~near].any()
    for row in np.flatnonzero(hissing):
        said = speech[row].numpy()
        levels = [np.square(part).mean() for part in (said[abs(said) > 1e-3], noise[row][noise[row] != 0])]
        assert 9.5 < 10 * np.log10(levels[0] / levels[1]) < 45.5


def test_murmurs_are_not_to_be_heard(packed: Path) -> None:
    """In some rows where something is said there is more, 20 to 36 dB below it, anywhere; it is not to be written."""
    pack = read_pack(packed)
    plan = Examples(pack, tokens=160, batch=64, seed=0).plan(0)
    murmured = plan.gain < 10 ** (-20 / 20)
    rows, counts = np.unique(plan.row[murmured], return_counts=True)
    assert 10 < len(rows) < 35 and counts.max() <= 4 and set(counts) > {1}
    assert plan.gain[murmured].min() >= 10 ** (-36 / 20) and not plan.share[murmured].any()
    for row in range(64):
        loud = plan.row[~murmured] == row
        words = words_of(plan.targets[row, LEFT_PAD + int(plan.delays[row]) :].tolist())
        # Other voices say digits, some of them in strings; nothing is heard of what is not loud.
        assert loud.any() or (not words and row not in rows)
    assert plan.at[murmured].min() >= LEFT_PAD * TOKEN_SAMPLES
    undisturbed = Examples(pack, tokens=160, batch=64, seed=0, cuts=False).plan(0)
    assert undisturbed.gain.min() > 10 ** (-20 / 20)


def test_some_noise_swells(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In rows in which nothing is said, whose noise is even without it."""
    pack = read_pack(packed)
    plan = Examples(pack, tokens=90, batch=48, seed=0).plan(0)
    silent = np.setdiff1d(np.arange(48), plan.row)
    assert len(silent) >= 2

    def spread(share: float) -> np.ndarray:
        """Return how much the level of each row varies over tenths of a second, in decibels."""
        monkeypatch.setattr("nano.sounds.UNEVEN", share)
        heard = Sounds(pack, tokens=90, device=CPU)(plan, 0).numpy()[silent, LEFT_PAD * TOKEN_SAMPLES :]
        levels = [
            np.square(row[row != 0][: len(row) // 3 // 1600 * 1600]).reshape(-1, 1600).mean(1)
            for row in heard
        ]
        return np.array([np.std(10 * np.log10(level + 1e-12)) for level in levels])

    even, uneven = spread(0), spread(1)
    assert (uneven > even - 0.1).all() and uneven.max() > even.max() + 2


def test_partners_say_the_same_word_at_the_same_time(packed: Path) -> None:
    """Some single words have one, as loud, whose sound begins and ends with theirs; alone nothing else changes."""
    pack = read_pack(packed)
    plan = Examples(pack, tokens=160, batch=32, seed=0).plan(0)
    said: dict[int, str] = {}
    total = 0
    for name, samples in pack.sounds.items():
        for one in pack.utterances:
            if one.sound == name:
                said |= dict.fromkeys(range(total + one.at, total + one.at + one.samples), one.text)
        total += len(samples)
    having = plan.share > 0
    assert 0.1 < having.mean() < 0.5 and plan.share.max() <= 0.7
    alone = [getattr(plan, name)[~having] for name in ("source", "length", "at", "speed", "gain")]
    theirs = [getattr(plan.partners, name)[~having] for name in ("source", "length", "at", "speed", "gain")]
    assert all((one == other).all() for one, other in zip(alone, theirs, strict=True))
    sounds = Sounds(pack, tokens=160, device=CPU, disturbed=False)
    own, partner = (one.numpy() for one in sounds.with_partners(plan, 0))
    shares = sounds.shares(plan, 160).numpy()
    assert shares.shape == (32, 1280) and shares.max() <= 1
    heard = plan.heard
    for i in np.flatnonzero(having):
        assert (
            said[int(plan.source[i] + plan.length[i] // 2)]
            == said[int(plan.partner_source[i] + plan.partner_length[i] // 2)]
        )
        begin, end = int(plan.at[i]), int(plan.at[i] + heard[i])
        assert begin - 800 < plan.partner_at[i] and plan.partners.heard[i] < heard[i] + 1600
        assert shares[plan.row[i], begin // 160 + 1 : end // 160 - 1].min() > 0
        ratio = (
            np.square(partner[plan.row[i], begin:end]).sum() / np.square(own[plan.row[i], begin:end]).sum()
        )
        assert 0.25 < ratio < 4
    for row in set(range(32)) - set(plan.row[having].tolist()):
        assert (own[row] == partner[row]).all() and not shares[row].any()


def test_examples_tell_the_phones_of_all_that_is_said(packed: Path) -> None:
    pack = read_pack(packed)
    plan = Examples(pack, tokens=160, batch=32, seed=0).plan(0)
    assert plan.spelt.tolist() == list(range(32)) and plan.n_phones.sum() == len(plan.phones)
    ends = plan.n_phones.cumsum()
    for row, (first, last) in enumerate(zip((0, *ends), ends, strict=False)):
        spelt = " ".join(pack.phones[phone - 1] for phone in plan.phones[first:last])
        at = 0
        for word in words_of(plan.targets[row, LEFT_PAD + int(plan.delays[row]) :].tolist()):
            at = spelt.index(pack.pronunciations[word], at)
    digits = {word: pack.pronunciations[word] for word in DIGITS}
    some = replace(pack, about={**pack.about, "phones": digits})
    fewer = Examples(some, tokens=160, batch=32, seed=0).plan(0)
    assert 0 < len(fewer.spelt) < 32 and 0 < max(fewer.phones) <= len(some.phones)


def test_a_trimmer_takes_what_is_quiet() -> None:
    """A loud tone between quiet ones, as of fricatives: cut at the start, and sometimes at the end."""
    levels = np.repeat([0, 300, 9000, 9000, 500, 0], 1600)
    sound = (levels * np.sin(np.arange(len(levels)))).astype(np.int16)
    one = Utterance("a", 50, len(sound), "four five", (3000, 8000), "me", "train", "test", "CC0", "digits")
    seen = set()
    for seed in range(40):
        cut = trimmed(one, sound, np.random.default_rng(seed))
        first, last = cut.at - one.at, cut.at - one.at + cut.samples
        seen.add((first, last))
        assert cut.ends is not None and cut.ends[0] == max(3000 - first, 0) and cut.ends[1] <= cut.samples
    starts, ends = {first for first, _ in seen}, {last for _, last in seen}
    assert starts == {1600, 3200} and ends == {6400, 8000, 9600}
    silent = trimmed(one, np.zeros(9600, np.int16), np.random.default_rng(0))
    assert silent == one and trimmed(replace(one, ends=None), sound, np.random.default_rng(0)).ends is None


def test_a_pack_without_words_cannot_train(tmp_path: Path) -> None:
    row = Utterance("a", 0, 16000, "", (), "me", "train", "test", "CC0", "noise")
    write_pack(
        tmp_path / "a.pack", [row], [("a", encode_opus(np.zeros(16000, np.int16), 16000, 0))], {"model": KIND}
    )
    with pytest.raises(BadInputError, match="no words"):
        for step in range(20):
            Examples(read_pack(tmp_path / "a.pack"), tokens=160, batch=4, seed=0).plan(step)


def test_word_errors() -> None:
    assert word_errors(["a", "b"], ["a", "b"]) == 0
    assert word_errors([], ["a"]) == word_errors(["a"], []) == word_errors(["a"], ["b"]) == 1
    assert word_errors(list("kitten"), list("sitting")) == 3


def test_dev_streams_are_padded_as_the_pipe_pads(packed: Path) -> None:
    assert len(padded(np.ones(1281, np.int16), 6)) == (32 + 2 + 6 + 11) * 1280
    pack: Pack = read_pack(packed)
    scores = dev_scores(new_weights(SMOKE, 0), SMOKE, pack, CPU, most=1)
    assert scores["test digit"]["words"] == 1 and scores["silence and noise"]["files"] == 1
    assert NANO.decoder.window < 160
