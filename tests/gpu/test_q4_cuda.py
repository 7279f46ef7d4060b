"""Q4_0 models on CUDA, by the Triton kernels in bfloat16: close to the dequantised float32 model on the CPU."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from asr_models import SMALL, random_tensors
from q4 import packed_tensors, placed
from tts_models import SMALL_FLOW, random_codes_of, random_rows
from tts_models import random_tensors as random_tts_tensors

from voxtral_pipes.config import AsrConfig, BackboneConfig
from voxtral_pipes.kernels import dispatch
from voxtral_pipes.kernels.packed import Q4CudaWeight, Q4TileWeight
from voxtral_pipes.models.backbone import Backbone, Speaker
from voxtral_pipes.models.decode import Choice, Decoder, greedy_choice
from voxtral_pipes.models.encode import Encoder
from voxtral_pipes.models.flow import Flow, Sampler
from voxtral_pipes.models.noise import frame_noise
from voxtral_pipes.models.shapes import decoder_shapes, encoder_shapes
from voxtral_pipes.models.tts_shapes import backbone_shapes, flow_shapes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

BF16 = torch.bfloat16
CONFIG = AsrConfig(
    encoder=replace(SMALL.encoder, dim=192, n_heads=3, head_dim=64, hidden_dim=320),
    decoder=replace(SMALL.decoder, dim=128, n_heads=8, n_kv_heads=2, head_dim=32, hidden_dim=352, window=300),
)
PAD = 11


def decoders(config: AsrConfig = CONFIG) -> tuple[Decoder, Decoder]:
    """Make the float32 one on the CPU and the packed one on the device."""
    tensors = random_tensors(decoder_shapes(config), 2)
    for name in tensors:
        if name.endswith(("wq.weight", "wk.weight")):
            tensors[name] /= 3  # attention that is all but a choice blows the rounding of bfloat16 up
    stored, exact = packed_tensors(tensors)
    there = Decoder.of(placed(stored, dispatch.pick_device("cuda"), BF16), config.decoder)
    assert isinstance(there.stack.blocks[0].w1.weight, Q4CudaWeight)
    return Decoder.of(exact, config.decoder), there


def test_logits_of_a_prompt_and_of_steps() -> None:
    embeds = 0.5 * torch.randn(1, 120, CONFIG.decoder.dim, generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(0, 1300, (1, 120), generator=torch.Generator().manual_seed(2))
    rows = []
    for decoder in decoders():
        state = decoder.new_state(6)
        logits, state = decoder.prefill(state, embeds[:, :39], tokens[:, :39])
        every = [logits.cpu()]
        for p in range(39, 120):
            logits, state = decoder.step(state, embeds[:, p : p + 1], tokens[:, p : p + 1])
            every.append(logits.cpu())
        rows.append(torch.cat(every))
    assert float((rows[1] - rows[0]).norm() / rows[0].norm()) < 0.03


def test_two_thousand_steps_choose_the_tokens_of_float32() -> None:
    """Far past the window; the reference says which token comes next, so that one near tie does not end the test."""
    here, there = decoders()
    states = here.new_state(6), there.new_state(6, finish=partial(greedy_choice, pad=PAD))
    generator = torch.Generator().manual_seed(5)
    token, clear, worst = torch.zeros(1, 1, dtype=torch.int64), 0, 0.0
    for _ in range(2000):
        audio = 0.5 * torch.randn(1, 1, CONFIG.decoder.dim, generator=generator)
        logits, _ = here.step(states[0], audio, token)
        choice = Choice.of(there.step(states[1], audio, token)[0][0])
        logits = logits.clone()
        logits[:, PAD] = -torch.inf
        (best, second), (token_id, _) = (each[0].tolist() for each in logits.topk(2))
        worst = max(worst, abs(choice.logit - float(logits[0, choice.id])))
        if best - second > 0.2:
            clear += 1
            assert choice.id == token_id
        token = torch.tensor([[token_id]])
    assert clear > 1000  # else it says little
    assert worst < 0.2  # the same at the end as at the beginning


@pytest.mark.parametrize("tokens", [1, 2, 25])
def test_embeddings_in_steps_of_a_few_and_of_many(tokens: int) -> None:
    stored, exact = packed_tensors(random_tensors(encoder_shapes(CONFIG), 1))
    here = Encoder.of(exact, CONFIG.encoder)
    there = Encoder.of(placed(stored, dispatch.pick_device("cuda"), BF16), CONFIG.encoder)
    mel = torch.randn(1, 8 * 50, 128, generator=torch.Generator().manual_seed(3))
    expected, _ = here.step(here.new_state(50), mel)
    state, rows = there.new_state(25), []
    for piece in mel.split(8 * tokens, dim=1):
        embeds, state = there.step(state, piece)
        rows.append(embeds.float().cpu())
    assert float((torch.cat(rows, dim=1) - expected).norm() / expected.norm()) < 0.03


def test_codes_of_the_flow_head() -> None:
    config = replace(SMALL_FLOW, head_dim=16, dim=128, hidden_dim=192, input_dim=96)
    stored, exact = packed_tensors(random_tts_tensors(flow_shapes(config)))
    here = Flow.of(exact, config)
    there = Flow.of(placed(stored, dispatch.pick_device("cuda"), BF16), config)
    assert isinstance(there.blocks[0].w1.weight, Q4TileWeight)
    hidden = random_rows(20, config.input_dim, 6)
    samplers = Sampler(here, 3, 1.2), Sampler(there, 3, 1.2)
    off = []
    for frame in range(len(hidden)):
        noise = frame_noise(5, 0, frame, config.acoustic_dim)
        rows = [
            sampler(hidden[frame : frame + 1].to(dtype), noise)
            for sampler, dtype in zip(samplers, (torch.float32, BF16), strict=True)
        ]
        off += [abs(a - b) for a, b in zip(rows[0][1:], rows[1][1:], strict=True)]
    assert np.mean(off) < 0.2  # of 21 levels


def test_hidden_states_of_the_backbone() -> None:
    config = BackboneConfig(
        dim=128, n_layers=3, n_heads=8, n_kv_heads=2, head_dim=32, hidden_dim=160, vocab_size=300, semantic_size=50,
        acoustic_dim=7,
    )  # fmt: skip
    stored, exact = packed_tensors(random_tts_tensors(backbone_shapes(config)))
    voice = random_rows(9, config.dim, 4)
    ids = [1, 25, *[24] * 9, 36, *range(100, 140), 35, 25]
    codes = random_codes_of(config.semantic_size, 21, config.acoustic_dim, 30)[0].tolist()
    states = []
    for weights in (exact, placed(stored, dispatch.pick_device("cuda"), BF16)):
        speaker = Speaker(Backbone.of(weights, config), voice, 24, 31)
        rows = [speaker.begin(ids, 31), *(speaker.next(row) for row in codes)]
        states.append(torch.cat([row.float().cpu() for row in rows]))
    assert float((states[1] - states[0]).norm() / states[0].norm()) < 0.03
