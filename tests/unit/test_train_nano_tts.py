"""scripts/train-nano-tts: batches, checkpoints, and a model of a few steps that the commands take."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from nano import tts_forward
from nano.pack import Utterance, encode_opus, write_pack
from nano.tts_codec import SUM, USAGE
from nano.tts_descent import Descent
from nano.tts_examples import Line, batch_of, collate, padded
from nano.tts_losses import wave_losses
from nano.tts_pack import KIND
from nano.tts_size import NANO, NANO_ENCODER, SMOKE, SMOKE_ENCODER, VOICE_ROWS
from nano.tts_state import Training, learning_rate
from nano.tts_steps import CodecPhase, SpeechPhase
from nano.tts_weights import VOICES, codec_weights, speech_weights
from preloaded import scripts_preloaded, shell_preloaded
from tts_models import random_codes_of, random_rows

from voxtral_pipes.errors import BadInputError
from voxtral_pipes.formats.locate import locate_model
from voxtral_pipes.models.checkpoint import TtsCheckpoint
from voxtral_pipes.models.codes import CODE_OFFSET
from voxtral_pipes.models.tts_shapes import FLOW, tts_shapes

CPU = torch.device("cpu")


def lines() -> list[Line]:
    codes = random_codes_of(SMOKE.codec.semantic_size, 21, 36, 9)[0]
    return [Line("hi", 0, codes[:3]), Line("hello world", 1, codes)]


def test_a_batch_has_the_prompt_of_the_backbone() -> None:
    batch = collate(lines(), 2)
    assert batch.ids[0, :10].tolist() == [1, 25, 24, 24, 36, 64 + ord("h"), 64 + ord("i"), 35, 25, 0]
    assert batch.frame[0, 8:13].tolist() == [-1, 0, 1, 2, -1]
    assert batch.reads[0, :4].tolist() == [8, 9, 10, 11] and batch.reads[1].tolist() == list(range(17, 27))
    assert batch.ids.shape[1] == 27 and batch.lengths.tolist() == [3, 9]
    again = batch_of(lines(), 3, 2, 5)
    assert (again.ids == batch_of(lines(), 3, 2, 5).ids).all() and len(again.ids) == 3
    assert padded(np.zeros(5, np.int16), 4).shape == (8,)


def test_the_same_wave_has_no_loss() -> None:
    samples = 0.1 * random_rows(2, 9600, 0)
    same, other = wave_losses(samples, samples), wave_losses(samples * 0.5, samples)
    assert float(same["total"]) == 0 and all(float(term) > 0 for term in other.values())
    assert float(wave_losses(torch.zeros(1, 9600), torch.zeros(1, 9600))["total"]) == 0


def test_padding_and_drawn_numbers_leave_the_loss_alone() -> None:
    weights, phase = speech_weights(SMOKE, 2, VOICE_ROWS, 0), SpeechPhase(SMOKE)
    both = phase.loss(weights, collate(lines(), VOICE_ROWS), 3, noisy=False)[1]
    alone = [phase.loss(weights, collate([line], VOICE_ROWS), 3, noisy=False)[1] for line in lines()]
    # Of each: its frames, and the end.
    mean = (4 * alone[0]["semantic"] + 10 * alone[1]["semantic"]) / 14
    assert abs(float(both["semantic"] - mean)) < 1e-5
    first, again = (phase.loss(weights, collate(lines(), VOICE_ROWS), 3)[0] for _ in range(2))
    assert float(first) == float(again)


def test_the_flow_leads_to_the_mean() -> None:
    """Two answers are right for one hidden state: from any noise the head flows to what lies between."""
    torch.manual_seed(0)
    phase, config = SpeechPhase(SMOKE), SMOKE.flow
    weights = {
        name: w for name, w in speech_weights(SMOKE, 2, VOICE_ROWS, 0).items() if name.startswith(FLOW)
    }
    training = Training.new(weights, (), 250, 4e-3, CPU)
    hidden = random_rows(1, config.input_dim, 0).expand(64, -1)
    codes = torch.tensor([4, 16]).repeat(32)[:, None].expand(-1, config.acoustic_dim)  # -0.8 and 0.4
    for seed in range(250):
        training.learn(phase.flow_loss(training.weights, hidden, codes, torch.Generator().manual_seed(seed)))
    x = random_rows(64, config.acoustic_dim, 9)
    kept = torch.ones(64, dtype=torch.bool)
    with torch.no_grad():
        for step in range(3):
            x = (
                x
                + tts_forward.velocity(training.weights, config, x, torch.full((64,), step / 3), hidden, kept)
                / 3
            )
    assert (x.mean() + 0.2).abs() < 0.05 and x.std() < 0.2  # that of the answers is 0.6


def test_some_codes_are_its_own() -> None:
    weights, phase = speech_weights(SMOKE, 2, VOICE_ROWS, 0), SpeechPhase(SMOKE)
    batch = collate(lines() * 40, VOICE_ROWS)
    own = phase.own_codes(weights, batch, torch.Generator().manual_seed(0))
    assert own.shape == batch.codes.shape and own.min() >= CODE_OFFSET
    assert (
        own[..., 1:].max() < CODE_OFFSET + 21 and own[..., 0].max() < CODE_OFFSET + SMOKE.codec.semantic_size
    )
    kept = (own == batch.codes).all(dim=-1)[:, :3].float().mean(dim=1)  # three frames of each are no filling
    assert (kept == 1).sum() > 10 and (kept == 0).sum() > 3 and ((kept > 0) & (kept < 1)).sum() > 10


def test_learning_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    phase = CodecPhase(SMOKE.codec, SMOKE_ENCODER)
    weights = codec_weights(SMOKE.codec, SMOKE_ENCODER, 0)
    samples = 0.1 * random_rows(2, 4 * SMOKE.codec.frame_samples, 0)

    def new(steps: int = 40) -> Training:
        return Training.new(weights, (SUM, USAGE), steps, 1e-3, CPU)

    training = new()
    totals = []
    descent = Descent(training, lambda rows, draw: phase.loss(training.weights, rows, draw))
    for seed in range(8):
        terms = descent(samples, seed)
        totals.append(float(terms["total"]))
        if seed == 5:
            training.save(tmp_path / "a.ckpt")
    assert totals[-1] < totals[0]
    resumed = new()
    resumed.load(tmp_path / "a.ckpt")
    assert resumed.step == 6
    for seed in (6, 7):
        loss, terms = phase.loss(resumed.weights, samples, torch.Generator().manual_seed(seed))
        resumed.learn(loss)
        assert abs(float(terms["total"]) - totals[seed]) < 0.01 * totals[seed]
    with pytest.raises(BadInputError, match="of 40 steps, not 41"):
        new(41).load(tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(b"no")
    with pytest.raises(BadInputError, match="not a checkpoint"):
        new().load(tmp_path / "b.ckpt")


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(step, 1000) for step in range(1000)]
    assert rates[0] < 0.02 and max(rates) == 1 and rates[-1] < 1e-4


def test_sizes_keep_to_what_may_be_sent_and_shipped() -> None:
    codec = sum(w.numel() for w in codec_weights(NANO.codec, NANO_ENCODER, 0).values())
    speech = sum(w.numel() for w in speech_weights(NANO, 2, VOICE_ROWS, 0).values())
    assert 8 * max(codec, speech) < 16 * 2**20  # float32, and two moments of half the size
    assert sum(int(np.prod(shape)) for shape in tts_shapes(NANO).values()) < 2.8e6


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    rows, sounds = [], []
    for number, (speaker, text) in enumerate((("she", "hi"), ("he", "ho"))):
        wave = (3000 * np.sin(np.arange(12000) * (0.05 + 0.02 * number))).astype(np.int16)
        sounds.append((f"{number}.opus", encode_opus(wave, 24000, number)))
        rows.append(
            Utterance(f"{number}.opus", 0, 12000, text, None, speaker, "train", "test", "none", "word")
        )
    about = {"model": KIND, "speakers": {"she": "casual_female", "he": "casual_male"}}
    write_pack(tmp_path / "tts.pack", rows, sounds, about)
    return tmp_path / "tts.pack"


def train(*runs: tuple[str | Path, ...]) -> list[subprocess.CompletedProcess[str]]:
    """Do what each of `runs` asks for, one after the other."""
    return scripts_preloaded(
        "train-nano-tts", *((*arguments, "--smoke", "--device", "cpu", "--steps", "3") for arguments in runs)
    )


def test_the_commands_take_what_was_trained(tmp_path: Path, packed: Path) -> None:
    """Whatever goes on from a file is another process than the one that wrote it."""
    work, model = tmp_path / "work", tmp_path / "model"
    codec, speech, export = ((phase, packed, work) for phase in ("codec", "speech", "export"))
    early, first = train(speech, codec)
    assert early.returncode == 1 and "codec.ckpt: not a checkpoint" in early.stderr
    assert first.returncode == 0, first.stderr
    over, second = train(codec, speech)
    assert over.stdout.startswith("codec")  # and has nothing left to do
    assert second.returncode == 0, second.stderr
    over, nowhere, done = train(speech, export, (*export, "--out", model))
    assert over.stdout.startswith("speech")
    assert nowhere.returncode == 1
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in told] == ["codec", "codec", "speech", "speech"]
    assert all(line["step"] == 3 and line["split"] == "dev" for line in told)
    checkpoint = TtsCheckpoint(locate_model(str(model)))
    assert checkpoint.config == SMOKE and checkpoint.names == set(tts_shapes(SMOKE))
    spoken = shell_preloaded(
        f'printf "hi" | vx-tokenize -m "{model}" | vx-backbone -m "{model}" --voice casual_male --max-frames 3'
        f' | vx-flow -m "{model}" -n 1 --seed 1 | vx-codec -m "{model}" --format raw',
    )
    assert spoken.returncode == 0, spoken.stderr
    assert len(spoken.stdout) <= 3 * 2 * 1920 and len(spoken.stdout) % 3840 == 0
    held = torch.load(work / "speech.ckpt", weights_only=True)
    assert held["weights"][VOICES].shape == (2, VOICE_ROWS, SMOKE.backbone.dim)
