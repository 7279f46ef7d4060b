"""Speech synthesis on CUDA: float32 equals the CPU, Triton stays close to it, a graph is a call bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tts_models import SMALL_CODEC, SMALL_FLOW, random_codes, random_codes_of, random_rows, random_tensors

from voxtral_pipes.config import BackboneConfig, FlowConfig
from voxtral_pipes.kernels import dispatch
from voxtral_pipes.models.backbone import Backbone, Speaker
from voxtral_pipes.models.codec import Codec, frames_together
from voxtral_pipes.models.flow import Flow, Sampler
from voxtral_pipes.models.noise import frame_noise
from voxtral_pipes.models.tts_shapes import backbone_shapes, codec_shapes, flow_shapes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

BACKBONE = BackboneConfig(
    dim=96, n_layers=3, n_heads=6, n_kv_heads=2, head_dim=32, hidden_dim=160, vocab_size=300, semantic_size=50,
    acoustic_dim=7,
)  # fmt: skip
"""Heads that the Triton kernels take: their width is a power of two."""
FLOW = replace(SMALL_FLOW, head_dim=16)
VOICE, FRAMES = 9, 40


def backbone(device: str, dtype: torch.dtype = torch.float32, config: BackboneConfig = BACKBONE) -> Backbone:
    where = dispatch.pick_device(device)
    tensors = {n: t.to(where, dtype) for n, t in random_tensors(backbone_shapes(config)).items()}
    return Backbone.of(tensors, config)


def flow(device: str, dtype: torch.dtype = torch.float32, config: FlowConfig = FLOW) -> Flow:
    where = dispatch.pick_device(device)
    tensors = {n: t.to(where, dtype) for n, t in random_tensors(flow_shapes(config)).items()}
    return Flow.of(tensors, config)


def spoken(speaker: Speaker, text: int = 12, frames: int = FRAMES) -> torch.Tensor:
    """Run one utterance with given codes; return its hidden states."""
    ids = [1, 25, *[24] * VOICE, 36, *range(100, 100 + text), 35, 25]
    codes = random_codes_of(BACKBONE.semantic_size, 21, BACKBONE.acoustic_dim, frames)[0].tolist()
    states = [speaker.begin(ids, frames + 1).float().cpu()]
    states += [speaker.next(row).float().cpu() for row in codes]
    return torch.cat(states)


def speaker(device: str, dtype: torch.dtype = torch.float32) -> Speaker:
    return Speaker(backbone(device, dtype), random_rows(VOICE, BACKBONE.dim, 4), 24, FRAMES + 1)


def test_the_backbone_in_float32_equals_the_cpu() -> None:
    torch.testing.assert_close(spoken(speaker("cuda")), spoken(speaker("cpu")), atol=2e-4, rtol=0)


def test_the_backbone_in_bfloat16_stays_close_with_and_without_triton(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = spoken(speaker("cpu"))
    fast = spoken(speaker("cuda", torch.bfloat16))
    monkeypatch.setenv("VX_KERNELS", "torch")
    plain = spoken(speaker("cuda", torch.bfloat16))
    assert not torch.equal(fast, plain)  # two ways, not one
    for states in (fast, plain):
        assert float((states - exact).norm() / exact.norm()) < 0.03


def test_an_utterance_does_not_know_of_the_one_before() -> None:
    used = speaker("cuda", torch.bfloat16)
    first = spoken(used, 40)
    spoken(used, 3)
    assert torch.equal(spoken(used, 40), first)
    assert torch.equal(spoken(speaker("cuda", torch.bfloat16), 40), first)


def test_codes_in_float32_equal_those_of_the_cpu() -> None:
    hidden = random_rows(30, FLOW.input_dim, 6)
    here, there = (Sampler(flow(device), 7, 1.2) for device in ("cpu", "cuda"))
    for frame in range(len(hidden)):
        noise = frame_noise(5, 0, frame, FLOW.acoustic_dim)
        assert here(hidden[frame : frame + 1], noise) == there(hidden[frame : frame + 1], noise)


def test_a_frame_in_bfloat16_stays_close_with_and_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, noise = random_rows(30, FLOW.input_dim, 6), random_rows(30, FLOW.acoustic_dim, 7)
    exact = flow("cpu").integrate(hidden, noise, 7, 1.2)
    moved = {}
    for kernels in ("auto", "torch"):
        monkeypatch.setenv("VX_KERNELS", kernels)
        head = flow("cuda", torch.bfloat16)
        rows = [(hidden[i : i + 1].to("cuda", torch.bfloat16), noise[i : i + 1].cuda()) for i in range(30)]
        moved[kernels] = torch.cat([head.integrate(h, x, 7, 1.2) for h, x in rows]).cpu()
        assert float((moved[kernels] - exact).norm() / exact.norm()) < 0.03
    assert not torch.equal(moved["auto"], moved["torch"])


def test_a_recorded_frame_is_what_a_call_gives_bit_for_bit() -> None:
    head = flow("cuda", torch.bfloat16)
    sampler = Sampler(head, 3, 1.2)
    for frame in range(5):
        hidden, noise = random_rows(1, FLOW.input_dim, frame), frame_noise(1, 0, frame, FLOW.acoustic_dim)
        called = head.step(hidden.to(torch.bfloat16), torch.from_numpy(noise)[None], 3, 1.2)
        assert sampler(hidden.to(torch.bfloat16), noise) == called[0].tolist()
    assert sampler(hidden.to(torch.bfloat16), noise, allow_end=False)[0] != 1


def test_the_recorded_codec_equals_the_cpu_in_one_call_and_begins_anew() -> None:
    codes = random_codes(SMALL_CODEC, FRAMES)
    tensors = random_tensors(codec_shapes(SMALL_CODEC))
    here = Codec.of(tensors, SMALL_CODEC)
    device = dispatch.pick_device("cuda")
    there = Codec.of({name: tensor.to(device) for name, tensor in tensors.items()}, SMALL_CODEC)
    whole, _ = here.step(here.new_state(), codes)
    state = there.new_state()
    there.warm(state)
    runs = []
    for _ in range(2):
        state.restart()
        pieces = [there.step(state, codes[:, i : i + 1])[0].cpu() for i in range(FRAMES)]
        runs.append(torch.cat(pieces, dim=1))
    assert torch.equal(*runs)
    np.testing.assert_allclose(runs[0].numpy(), whole.numpy(), atol=1e-4)
    fresh = there.new_state()
    pieces = [there.step(fresh, codes[:, i : i + 1])[0].cpu() for i in range(FRAMES)]
    assert torch.equal(torch.cat(pieces, dim=1), runs[0])


def test_recorded_steps_of_several_codec_frames_equal_single_ones() -> None:
    """As vx-codec makes them: sizes that grow, and what is left at the end."""
    tensors = random_tensors(codec_shapes(SMALL_CODEC))
    device = dispatch.pick_device("cuda")
    codec = Codec.of({name: tensor.to(device) for name, tensor in tensors.items()}, SMALL_CODEC)
    drawn = random_codes(SMALL_CODEC, 39)
    whole, _ = Codec.of(tensors, SMALL_CODEC).step(Codec.of(tensors, SMALL_CODEC).new_state(), drawn)
    for together in (1, 2, 4, 8):
        state = codec.new_state()
        codec.warm(state, together)
        runs = []
        for _ in range(2):
            state.restart()
            pieces, done = [], 0
            while done < 39:
                size = min(frames_together(done, together), 1 << (39 - done).bit_length() - 1)
                pieces.append(codec.step(state, drawn[:, done : done + size])[0].cpu())
                done += size
            runs.append(torch.cat(pieces, dim=1))
        assert torch.equal(*runs)
        np.testing.assert_allclose(runs[0].numpy(), whole.numpy(), atol=1e-4)
