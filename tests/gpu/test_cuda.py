"""The same functions on a CUDA device: float32 equals the CPU, bfloat16 stays close, cutting changes no byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from asr_models import (
    SMALL,
    ids_of,
    joined,
    pipe_of,
    random_decoder,
    random_encoder,
    random_tensors,
    rows_as_frames,
    settings,
    windows,
)

from voxtral_pipes.formats.frame import encode
from voxtral_pipes.kernels import dispatch
from voxtral_pipes.kernels import reference as ref
from voxtral_pipes.kernels.packed import PackedWeight, StoredWeight
from voxtral_pipes.models.decode import Decoder
from voxtral_pipes.models.encode import Encoder
from voxtral_pipes.models.shapes import decoder_shapes, encoder_shapes
from voxtral_pipes.stages.base import Drive
from voxtral_pipes.stages.decode import DecodeOptions, DecodeStage
from voxtral_pipes.stages.encode import EncodeStage

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def placed(shapes, seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    device = dispatch.pick_device("cuda")
    return {name: t.to(device, dtype) for name, t in random_tensors(shapes, seed).items()}


def stages(dtype: torch.dtype) -> tuple[EncodeStage, DecodeStage]:
    encoder = Encoder.of(placed(encoder_shapes(SMALL), 1, dtype), SMALL.encoder)
    decoder = Decoder.of(placed(decoder_shapes(SMALL), 2, dtype), SMALL.decoder)
    return EncodeStage(encoder, SMALL), DecodeStage(decoder, SMALL, options=DecodeOptions(logprobs=True))


def mel() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((8 * 150, 128)).astype(np.float32)


def mel_pipe(cuts=(), live: bool = False):
    return pipe_of("mel", rows_as_frames("mel", mel(), cuts, settings(live=live), row_ticks=160))


def test_float32_equals_the_cpu_past_both_windows() -> None:
    encode_stage, decode_stage = stages(torch.float32)
    here = list(Drive(EncodeStage(random_encoder(), SMALL), mel_pipe()).run())
    there = list(Drive(encode_stage, mel_pipe()).run())
    np.testing.assert_allclose(joined(there, "embeds"), joined(here, "embeds"), atol=1e-4, rtol=0)
    cpu_stage = DecodeStage(random_decoder(), SMALL, options=DecodeOptions(logprobs=True))
    cpu, cuda = list(Drive(cpu_stage, here).run()), list(Drive(decode_stage, here).run())
    np.testing.assert_allclose(joined(cuda, "logprob"), joined(cpu, "logprob"), atol=1e-3, rtol=0)
    assert ids_of(cuda) == ids_of(cpu)


def test_bfloat16_embeddings_stay_close() -> None:
    here = joined(Drive(EncodeStage(random_encoder(), SMALL), mel_pipe()).run(), "embeds")
    there = joined(Drive(stages(torch.bfloat16)[0], mel_pipe()).run(), "embeds")
    assert np.linalg.norm(there - here) / np.linalg.norm(here) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("live", [False, True])
def test_any_cutting_gives_the_same_bytes(dtype: torch.dtype, live: bool) -> None:
    encode_stage, decode_stage = stages(dtype)

    def run(cuts) -> bytes:
        embeds = list(Drive(encode_stage, mel_pipe(cuts, live)).run())
        return b"".join(encode(f) for f in [*embeds, *Drive(decode_stage, embeds).run()])

    assert run(()) == run(range(0, 1200, 7)) == run((1, 8, 700, 1199))


def test_the_head_of_bfloat16_weights_is_float32() -> None:
    draw = torch.Generator().manual_seed(3)
    weight, x = (
        torch.randn(9000, 64, generator=draw).bfloat16(),
        torch.randn(1, 64, generator=draw).bfloat16(),
    )
    logits = ref.head(x.cuda(), weight.cuda())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.cpu().double(), x.double() @ weight.double().T, atol=1e-4, rtol=0)


def random_packed(rows: int, width: int, seed: int) -> PackedWeight:
    """Make Q4_0 blocks without a quantiser: any nibbles, scales that keep the values near 1 / sqrt(width)."""
    draw = torch.Generator().manual_seed(seed)
    scale = torch.randn(rows, width // 32, 1, generator=draw) / (4 * width**0.5)
    nibbles = torch.randint(0, 256, (rows, width // 32, 16), generator=draw, dtype=torch.uint8)
    return PackedWeight("q4_0", torch.cat((scale.half().view(torch.uint8), nibbles), dim=2))


def packed_decoder(device: torch.device) -> Decoder:
    shapes = decoder_shapes(SMALL)
    tensors: dict[str, StoredWeight] = dict(random_tensors(shapes, 2))
    for number, (name, shape) in enumerate(shapes.items()):
        if len(shape) == 2 and shape[1] % 32 == 0:
            tensors[name] = random_packed(*shape, seed=number)
    return Decoder.of({name: t.to(device) for name, t in tensors.items()}, SMALL.decoder)


def test_packed_weights_decode_as_on_the_cpu() -> None:
    embeds = 0.5 * torch.randn(1, 60, SMALL.decoder.dim, generator=torch.Generator().manual_seed(1))
    rows = []
    for device in ("cpu", "cuda"):
        decoder = packed_decoder(dispatch.pick_device(device))
        state, logits = decoder.new_state(6), []
        for p in range(60):
            step, state = decoder.step(state, embeds[:, p : p + 1], torch.tensor([[p]]))
            logits.append(step.cpu())
        rows.append(torch.cat(logits))
    torch.testing.assert_close(rows[1], rows[0], atol=1e-3, rtol=0)


def test_steps_across_the_sizes_that_graphs_are_recorded_for() -> None:
    """Past 1024 positions another graph takes over, and past the window slots are written a second time."""
    config = windows(45, 1200)
    shapes = decoder_shapes(config)
    here = Decoder.of(random_tensors(shapes, 2), config.decoder)
    there = Decoder.of(placed(shapes, 2, torch.float32), config.decoder)
    embeds = 0.5 * torch.randn(1, 1400, config.decoder.dim, generator=torch.Generator().manual_seed(2))
    tokens = torch.randint(0, 1300, (1, 1400), generator=torch.Generator().manual_seed(3))
    states = [here.new_state(6), there.new_state(6)]
    there.warm(states[1], 3)
    for p in range(1400):
        rows = [
            decoder.step(state, embeds[:, p : p + 1], tokens[:, p : p + 1])[0].cpu()
            for decoder, state in zip((here, there), states, strict=True)
        ]
        if p in (0, 1, 2, 1000, 1022, 1023, 1024, 1025, 1026, 1198, 1199, 1200, 1201, 1398, 1399):
            torch.testing.assert_close(rows[1], rows[0], atol=1e-3, rtol=0)


def test_streams_that_record_graphs_in_between_do_not_touch() -> None:
    encode_stage, decode_stage = stages(torch.bfloat16)
    single = [rows_as_frames("mel", mel(), (), settings(live=True), row_ticks=160, stream=s) for s in (1, 2)]
    mixed = [frame for pair in zip(*single, strict=True) for frame in pair]

    def run(*streams) -> dict[int, bytes]:
        embeds = list(Drive(encode_stage, pipe_of("mel", *streams)).run())
        ids = list(Drive(decode_stage, embeds).run())
        return {s: b"".join(encode(f) for f in [*embeds, *ids] if f.stream == s) for s in (1, 2)}

    both, alone = run(mixed), run(*single)
    assert both == alone
