"""From samples to the last token, against transformers: the whole speech path in one process, on random weights."""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import soxr
import torch
from asr_models import SMALL, ids_of, joined, random_decoder, random_encoder
from reference_models import as_state_dict, reference_config, reference_of
from transformers import VoxtralRealtimeForConditionalGeneration

from voxtral_pipes.formats.frame import Frame
from voxtral_pipes.formats.locate import files_at
from voxtral_pipes.kernels.packed import PackedWeight
from voxtral_pipes.models.checkpoint import AsrCheckpoint
from voxtral_pipes.models.decode import Decoder
from voxtral_pipes.models.encode import Encoder
from voxtral_pipes.models.random_model import make_asr_model
from voxtral_pipes.models.shapes import decoder_shapes, encoder_shapes
from voxtral_pipes.models.weights import load_weights
from voxtral_pipes.stages.base import Drive, Outgoing
from voxtral_pipes.stages.decode import DecodeOptions, DecodeStage
from voxtral_pipes.stages.encode import EncodeStage
from voxtral_pipes.stages.mel import MelStage, Source, source_frames

pytestmark = pytest.mark.filterwarnings("ignore:Using the model-agnostic default:UserWarning")

CLIP = Path(__file__).parents[1] / "data" / "followme-options.wav"
DELAYS = {80: 1, 480: 6, 960: 12, 2400: 30}


Stages = tuple[EncodeStage, DecodeStage, Any]


@cache
def stages() -> Stages:
    options = DecodeOptions(stop_at_eos=False, logprobs=True)
    return (
        EncodeStage(random_encoder(), SMALL),
        DecodeStage(random_decoder(), SMALL, options=options),
        reference_of(SMALL),
    )


@cache
def extractor() -> Any:
    from transformers.models.voxtral_realtime.feature_extraction_voxtral_realtime import (
        VoxtralRealtimeFeatureExtractor,
    )

    return VoxtralRealtimeFeatureExtractor()


@dataclass
class Result:
    mel: np.ndarray
    embeds: np.ndarray
    ids: list[int]
    logprobs: np.ndarray


def as_wav(samples: np.ndarray, rate: int) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return out.getvalue()


def ours(data: bytes, delay: int, live: bool = False, model: Stages | None = None) -> Result:
    encode, decode, _ = model or stages()
    stage = MelStage(SMALL.audio, delay_tokens=delay, left_pad_tokens=32)
    outgoing = Outgoing("vx-mel")
    source = Source(name="test", live=live, warn=lambda line: None)
    pieces = [data[i : i + 999] for i in range(0, len(data), 999)]
    mel = [
        outgoing.hello(stage.hello(), 16000),
        *source_frames(stage, source, pieces, 0, outgoing),
        Frame("end"),
    ]
    embeds = list(Drive(encode, mel).run())
    ids = list(Drive(decode, embeds).run())
    return Result(joined(mel, "mel"), joined(embeds, "embeds"), ids_of(ids), joined(ids, "logprob"))


def theirs(samples: np.ndarray, rate: int, delay: int, model: Any = None) -> Result:
    """asr.md section 4 in numpy, transformers' features, encoder and greedy decoding, its last position by hand."""
    audio = samples.astype(np.float32) / 32768
    if rate != 16000:
        audio = soxr.resample(audio, rate, 16000, quality="HQ")
    right = -len(audio) % 1280 + 1280 * (delay + 11)
    padded = np.concatenate([np.zeros(40960, np.float32), audio, np.zeros(right, np.float32)])
    features = extractor()(padded, sampling_rate=16000, return_tensors="pt")["input_features"]
    model, prompt = model or stages()[2], [1] + [32] * (32 + delay)
    with torch.no_grad():
        embeds = model.get_audio_features(features, return_dict=True).pooler_output[0]
        generated = model.generate(
            input_ids=torch.tensor([prompt]), input_features=features, num_delay_tokens=delay, do_sample=False,
            eos_token_id=None, pad_token_id=11,
        )[0]  # fmt: skip
        n = embeds.shape[0]
        assert len(generated) == n  # it stops one position early (asr.md section 11.3)
        logits = model(input_ids=generated[None], input_features=features, num_delay_tokens=delay).logits[0]
    logprobs = logits[len(prompt) - 1 :].log_softmax(-1)
    ids = [*generated[len(prompt) :].tolist(), int(logprobs[-1].argmax())]
    margins = logprobs.topk(2).values
    assert (margins[:, 0] - margins[:, 1]).min() > 1e-4  # equality of tokens is decided by no tie
    return Result(
        features[0].T.numpy(),
        embeds.numpy(),
        ids,
        logprobs[torch.arange(len(ids)), torch.tensor(ids)].numpy(),
    )


def compare(mine: Result, reference: Result) -> None:
    assert mine.mel.shape == reference.mel.shape
    np.testing.assert_allclose(mine.mel, reference.mel, atol=2e-5, rtol=0)
    np.testing.assert_allclose(mine.embeds, reference.embeds, atol=1e-4, rtol=0)
    np.testing.assert_allclose(mine.logprobs, reference.logprobs, atol=1e-3, rtol=0)
    assert mine.ids == reference.ids


def clip(seconds: float, rate: int = 16000) -> np.ndarray:
    """Return real speech, made to `rate` by ear-grade resampling before the test begins."""
    with wave.open(str(CLIP)) as file:
        samples = np.frombuffer(file.readframes(int(seconds * 16000)), "<i2").astype(np.float32)
    return samples if rate == 16000 else soxr.resample(samples, 16000, rate).clip(-32768, 32767)


@pytest.mark.parametrize("delay_ms", DELAYS)
def test_speech_past_both_windows_at_every_delay(delay_ms: int) -> None:
    samples = clip(3.5).astype(np.int16)
    delay = DELAYS[delay_ms]
    mine, reference = ours(as_wav(samples, 16000), delay), theirs(samples, 16000, delay)
    assert len(mine.embeds) > 2 * SMALL.encoder.window // 4 and len(mine.embeds) > SMALL.decoder.window
    assert len(set(mine.ids)) > 8  # a constant output would prove nothing
    compare(mine, reference)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_speech_at_other_rates(rate: int) -> None:
    samples = clip(2.0, rate).astype(np.int16)
    compare(ours(as_wav(samples, rate), 6), theirs(samples, rate, 6))


@pytest.mark.parametrize("n_samples", [1, 1279, 1280, 1281])
@pytest.mark.parametrize("delay_ms", DELAYS)
def test_lengths_around_one_token(n_samples: int, delay_ms: int) -> None:
    """asr.md section 4: ceil(n / 1280) + 11 outputs whatever the delay."""
    samples = clip(0.2)[400 : 400 + n_samples].astype(np.int16)
    delay = DELAYS[delay_ms]
    mine = ours(as_wav(samples, 16000), delay)
    assert len(mine.ids) == -(-n_samples // 1280) + 11
    compare(mine, theirs(samples, 16000, delay))


def test_no_samples_no_output() -> None:
    assert ours(as_wav(np.empty(0), 16000), 6).ids == []


@pytest.mark.parametrize("rate", [16000, 44100])
def test_live_equals_file(rate: int) -> None:
    data = as_wav(clip(2.0, rate), rate)
    live, file = ours(data, 6, live=True), ours(data, 6)
    np.testing.assert_allclose(live.embeds, file.embeds, atol=1e-5, rtol=0)
    assert live.ids == file.ids


def test_packed_weights_equal_transformers_on_the_same_weights_unpacked(tmp_path: Path) -> None:
    """A Q4_0 file, run packed, against transformers on what the gguf package reads and unpacks from it."""
    path = make_asr_model(tmp_path, SMALL, "gguf-q4")
    checkpoint = AsrCheckpoint(files_at(path))
    parts = [
        load_weights(checkpoint, shapes(SMALL), torch.device("cpu"), torch.float32)
        for shapes in (encoder_shapes, decoder_shapes)
    ]
    assert sum(isinstance(t, PackedWeight) for part in parts for t in part.values()) > 40
    unpacked = {
        tensor.name: torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        for tensor in gguf.GGUFReader(next(path.glob("*.gguf"))).tensors
    }
    reference = VoxtralRealtimeForConditionalGeneration(reference_config(SMALL)).float().eval()
    reference.load_state_dict(as_state_dict(unpacked, SMALL), strict=True)
    packed = (
        EncodeStage(Encoder.of(parts[0], SMALL.encoder), SMALL),
        DecodeStage(Decoder.of(parts[1], SMALL.decoder), SMALL, options=DecodeOptions(logprobs=True)),
        reference,
    )
    samples = clip(3.5).astype(np.int16)
    mine = ours(as_wav(samples, 16000), 6, model=packed)
    assert len(set(mine.ids)) > 8
    compare(mine, theirs(samples, 16000, 6, reference))
