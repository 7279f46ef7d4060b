"""Weights on their way to a CUDA device: the same bytes and the same weights as on the CPU."""

from __future__ import annotations

import pytest
import torch
from asr_models import SMALL

from voxtral_pipes.formats.locate import files_at
from voxtral_pipes.models.checkpoint import AsrCheckpoint
from voxtral_pipes.models.random_model import make_asr_model
from voxtral_pipes.models.shapes import decoder_shapes, encoder_shapes
from voxtral_pipes.models.staging import staged
from voxtral_pipes.models.weights import load_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
NAMES = [*encoder_shapes(SMALL), *decoder_shapes(SMALL)]


@pytest.fixture(scope="module", params=["safetensors", "hf", "gguf-q4"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsrCheckpoint:
    home = tmp_path_factory.mktemp("loading")
    make_asr_model(home, SMALL, request.param, seed=5)
    return AsrCheckpoint(files_at(home))


@pytest.mark.parametrize("buffers", [1, 2, 4])
@pytest.mark.parametrize("buffer_bytes", [4099, 65536, 1 << 24])
def test_the_bytes(checkpoint: AsrCheckpoint, buffers: int, buffer_bytes: int) -> None:
    arrived = dict(
        staged(checkpoint, NAMES, torch.device("cuda", 0), buffer_bytes=buffer_bytes, buffers=buffers)
    )
    assert list(arrived) == NAMES
    for name, data in arrived.items():
        assert data.is_cuda
        assert data.cpu().numpy().tobytes() == bytes(checkpoint.bytes(name)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dense_weights(checkpoint: AsrCheckpoint, dtype: torch.dtype) -> None:
    here, there = (load_weights(checkpoint, NAMES, torch.device(name), dtype) for name in ("cpu", "cuda"))
    assert here.keys() == there.keys()
    for name, weight in here.items():
        other = there[name]
        assert other.device.type == "cuda"
        if isinstance(weight, torch.Tensor):
            assert isinstance(other, torch.Tensor) and torch.equal(weight, other.cpu()), name
