"""Kernels that begin while those before them end: what they compute is the same bits as without, however often."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from asr_models import SMALL, random_tensors
from q4 import packed_tensors, placed

from voxtral_pipes.config import AsrConfig
from voxtral_pipes.kernels import dispatch
from voxtral_pipes.kernels.packed import Q4CudaWeight
from voxtral_pipes.models.cache import Span
from voxtral_pipes.models.decode import Decoder
from voxtral_pipes.models.shapes import decoder_shapes
from voxtral_pipes.models.stack import StackState

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

BF16 = torch.bfloat16
CONFIG: AsrConfig = replace(
    SMALL,
    decoder=replace(
        SMALL.decoder,
        dim=1024,
        n_layers=12,
        n_heads=8,
        n_kv_heads=2,
        head_dim=128,
        hidden_dim=3072,
        window=60,
    ),
)
"""Large enough that one kernel's programs do not fit the device at once, small enough that gaps between them count."""
STEPS, ROUNDS = 90, 4


def decoder(packed: bool) -> Decoder:
    tensors = random_tensors(decoder_shapes(CONFIG), 2)
    stored = packed_tensors(tensors)[0] if packed else tensors
    made = Decoder.of(placed(stored, dispatch.pick_device("cuda"), BF16), CONFIG.decoder)
    assert isinstance(made.stack.blocks[0].w1.weight, Q4CudaWeight) == packed
    return made


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    audio = torch.randn(STEPS, 1, 1, CONFIG.decoder.dim, generator=generator).to(BF16)
    return audio, torch.randint(0, CONFIG.decoder.vocab_size, (STEPS, 1, 1), generator=generator)


def begun(state: StackState) -> StackState:
    state.restart()
    state.kv.keys.zero_()
    state.kv.values.zero_()
    return state


def replayed(made: Decoder, state: StackState) -> torch.Tensor:
    """Run all steps, past the window; return logits, keys and values."""
    begun(state)
    audio, tokens = inputs()
    rows = [made.step(state, audio[i], tokens[i])[0] for i in range(STEPS)]
    return torch.cat([each.flatten() for each in (*rows, state.kv.keys.float(), state.kv.values.float())])


@torch.inference_mode()
def called(made: Decoder, state: StackState) -> torch.Tensor:
    """Do the same without graphs."""
    begun(state)
    audio, tokens = (each.to(made.device) for each in inputs())
    rows = []
    for i in range(STEPS):
        turn = made.stack.rotary.at(i, 1).to(made.device)
        rows.append(state.run(audio[i], tokens[i], turn, Span.one(torch.tensor([i], device=made.device))))
    return torch.cat([each.flatten() for each in (*rows, state.kv.keys.float(), state.kv.values.float())])


@pytest.mark.parametrize("packed", [False, True])
def test_steps_that_overlap_are_the_same_bits(monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    from voxtral_pipes.kernels import early

    made = decoder(packed)
    overlapping = made.new_state(6)
    first = replayed(made, overlapping)
    with monkeypatch.context() as patch:
        patch.setattr(early, "can_overlap", lambda device: False)
        apart = replayed(made, made.new_state(6))
    assert first.isfinite().all()
    assert torch.equal(first, apart)
    assert torch.equal(called(made, overlapping), first)
    for _ in range(ROUNDS):
        assert torch.equal(replayed(made, overlapping), first)


def test_a_step_replayed_without_pause_gives_the_same_bits() -> None:
    """The steps of one position, one behind the other, as many as fit the queue."""
    made = decoder(packed=True)
    state = begun(made.new_state(6))
    audio, tokens = inputs()
    results = []
    for _ in range(500):
        state.restart()
        results.append(made.step(state, audio[0], tokens[0])[0])
    assert all(torch.equal(each, results[0]) for each in results[1:])
