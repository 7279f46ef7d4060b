"""scripts/nano: what is trained is what the pipe computes; the nano vocabulary; answers are where they belong."""

from __future__ import annotations

from itertools import groupby, product
from pathlib import Path

import numpy as np
import pytest
import torch
from asr_models import SMALL, random_tensors
from nano.examples import EOS, PAD, WORD, answers, fed
from nano.forward import PHONES, adapt, decode, encode, hear, new_weights, phones_heard, phones_loss
from nano.front import Front
from nano.rounding import as_q4_0, rounded
from nano.size import NANO, SMOKE
from nano.vocabulary import N_SPECIAL, PIECES, VOCAB_SIZE, write_vocabulary
from nano.words import WORDS

from voxtral_pipes.config import AsrConfig, AudioConfig
from voxtral_pipes.formats.gguf_writer import encode as encode_gguf
from voxtral_pipes.formats.tekken import Tekken
from voxtral_pipes.kernels.packed import PackedWeight
from voxtral_pipes.kernels.reference import dequantize
from voxtral_pipes.models.decode import Decoder
from voxtral_pipes.models.encode import Encoder
from voxtral_pipes.models.mel import MelFilters, MelState, step
from voxtral_pipes.models.shapes import decoder_shapes, encoder_shapes

CPU = torch.device("cpu")


def noise(batch: int, tokens: int) -> torch.Tensor:
    draw = np.random.default_rng(3)
    samples = draw.normal(0, 0.1, (batch, tokens * 1280)) * draw.uniform(0, 1, (batch, tokens * 1280)) ** 4
    samples[0, : 10 * 1280] = 0
    return torch.from_numpy(samples.astype(np.float32))


def test_the_front_end_is_ours() -> None:
    config = AudioConfig()
    samples = noise(2, 30)
    mel = Front(config, CPU)(samples)
    assert mel.shape == (2, 240, 128)
    for row, ours in zip(samples.numpy(), mel.numpy(), strict=True):
        expected, _ = step(
            MelFilters.new(config), MelState.new(config), np.concatenate([row, np.zeros(40, np.float32)])
        )
        assert np.abs(ours - expected).max() < 2e-5


@pytest.mark.parametrize("config", [SMALL, SMOKE, NANO], ids=["small", "smoke", "nano"])
def test_the_forward_pass_is_the_pipes(config: AsrConfig) -> None:
    """Past both windows, with delays of each row, against the modules that the commands run, step by step."""
    tensors = random_tensors(encoder_shapes(config), 1) | random_tensors(decoder_shapes(config), 2)
    tokens = 110
    mel = Front(config.audio, CPU)(noise(2, tokens))
    embeds = encode(tensors, config, mel)
    encoder = Encoder.of(tensors, config.encoder)
    state = encoder.new_state(10, batch=2)
    steps = []
    for at in range(0, tokens, 10):
        row, state = encoder.step(state, mel[:, 8 * at : 8 * at + 80])
        steps.append(row)
    assert torch.allclose(embeds, torch.cat(steps, 1), atol=1e-4, rtol=1e-4)
    fed = torch.randint(0, config.decoder.vocab_size, (2, tokens), generator=torch.Generator().manual_seed(0))
    delays = torch.tensor([3, 12])
    logits = decode(tensors, config, embeds, fed, delays)
    decoder = Decoder.of(tensors, config.decoder)
    for number, delay in enumerate(delays.tolist()):
        ring = decoder.new_state(delay)
        for at in range(tokens):
            here = slice(number, number + 1), slice(at, at + 1)
            expected, ring = decoder.step(ring, embeds[here], fed[here])
            assert torch.allclose(logits[number, at], expected[0], atol=1e-3, rtol=1e-3), at


def test_every_weight_is_trained() -> None:
    weights = {name: tensor.requires_grad_() for name, tensor in new_weights(SMOKE, 0, 5).items()}
    extra = {f"{PHONES}.{part}" for part in ("weight", "bias")}
    assert weights.keys() - extra == (encoder_shapes(SMOKE) | decoder_shapes(SMOKE)).keys()
    frames = hear(weights, SMOKE, Front(SMOKE.audio, CPU)(noise(1, 50)))
    embeds = adapt(weights, SMOKE, frames)
    logits = decode(weights, SMOKE, embeds, torch.zeros(1, 50, dtype=torch.int64), torch.tensor([6]))
    heard = phones_loss(phones_heard(weights, frames), torch.tensor([1, 5, 2]), torch.tensor([3]))
    (heard + logits.logsumexp(-1).sum()).backward()
    for name, tensor in weights.items():
        assert tensor.grad is not None and tensor.grad.abs().sum() > 0, name


def test_phones_may_come_at_any_time_in_their_order() -> None:
    """Against the sum over all ways to spread them over the frames; rows without phones count as well."""
    weights = {f"{PHONES}.weight": torch.eye(3), f"{PHONES}.bias": torch.tensor([0.1, -0.2, 0.0])}
    frames = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0))
    said = [[1, 2], [], [2, 2]]
    expected = 0.0
    for row, phones in zip(frames, said, strict=True):
        chances = (row + weights[f"{PHONES}.bias"]).softmax(-1)
        total = 0.0
        for path in product(range(3), repeat=4):
            if [phone for phone, _ in groupby(path) if phone] == phones:
                total += float(chances[range(4), path].prod())
        expected -= np.log(total) / 4
    ours = phones_loss(phones_heard(weights, frames), torch.tensor([1, 2, 2, 2]), torch.tensor([2, 0, 2]))
    assert abs(float(ours) - expected) < 1e-5
    nothing = torch.zeros(0, dtype=torch.int64)
    assert float(phones_loss(frames[:0], nothing, nothing)) == 0


def test_rounding_is_that_of_the_file() -> None:
    """Bit for bit what is read from a packed matrix; with ends of both signs, zeros and tiny blocks."""
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    weight[3, :32], weight[4, :64] = 0, weight[4, :64] * 1e-6
    blocks = torch.from_numpy(encode_gguf(weight.numpy(), "Q4_0").copy()).view(64, 3, 18)
    assert torch.equal(as_q4_0(weight), dequantize(PackedWeight("q4_0", blocks), torch.float32))


def test_rounded_weights_learn_as_if_they_were_not() -> None:
    held = {"norm": torch.ones(32), "matrix": torch.randn(4, 32).requires_grad_()}
    for whether in (0.0, 1.0):
        used = rounded(held, torch.tensor(whether))
        expected = as_q4_0(held["matrix"]) if whether else held["matrix"].detach()
        assert torch.allclose(used["matrix"], expected, atol=1e-6) and used["norm"] is held["norm"]
        (gradient,) = torch.autograd.grad(used["matrix"].sum(), held["matrix"])
        assert (gradient == 1).all()


def test_new_weights_say_nothing_yet() -> None:
    """The loss begins near that of a guess, so nothing has to be unlearnt."""
    weights = new_weights(NANO, 0)
    assert 2.3e6 < sum(tensor.numel() for tensor in weights.values()) < 2.5e6
    logits = decode(weights, NANO, torch.randn(1, 20, 192), torch.full((1, 20), PAD), torch.tensor([6]))
    loss = torch.nn.functional.cross_entropy(logits[0], torch.arange(20))
    assert float(loss) < 2 * np.log(VOCAB_SIZE)


def test_the_vocabulary(tmp_path: Path) -> None:
    write_vocabulary(tmp_path / "tekken.json", NANO.audio)
    tekken = Tekken.read(tmp_path / "tekken.json")
    assert (tekken.n_special, tekken.vocab_size) == (N_SPECIAL, VOCAB_SIZE)
    for word in WORDS:
        (token,) = tekken.encode(f" {word}")
        assert tekken.token_bytes(token) == f" {word}".encode() and token == N_SPECIAL + PIECES.index(
            f" {word}".encode()
        )
    assert len(tekken.encode(" one two three")) == 3
    odd = "né 語 zeroes"
    assert b"".join(map(tekken.token_bytes, tekken.encode(odd))).decode() == odd


def test_silence_may_be_fed_as_an_end() -> None:
    """Words stay as they are; most examples have no such end, some have many."""
    answered = np.full(60, PAD)
    answered[20:22] = WORD, N_SPECIAL + 5
    ends = []
    for seed in range(200):
        out = fed(answered, np.random.default_rng(seed))
        changed = out != answered
        assert (out[changed] == EOS).all() and not changed[20:22].any()
        ends.append(int(changed.sum()))
    assert 100 < ends.count(0) < 180 and max(ends) > 30


def test_answers() -> None:
    """A word is written when its last sample has been heard and the delay is over; words do not overlap."""
    one, two = (N_SPECIAL + PIECES.index(word) for word in (b" one", b" two"))
    out = answers([(1280, "one"), (1281, "two"), (20 * 1280, "one")], 6, 20)
    assert len(out) == 31
    assert out[:5].tolist() == [WORD, one, WORD, two, PAD]
    assert out[19:21].tolist() == [WORD, one]
    assert out[-1] == EOS and (out[21:-1] == PAD).all()
    assert answers([], 6, 4).tolist() == [PAD] * 14 + [EOS]
