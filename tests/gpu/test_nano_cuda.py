"""Training on a CUDA device: steps replayed as one graph are the steps as they come."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("soundfile", reason="scripts of the nano models need '.[nano]'")

from nano.tts_codec import SUM, USAGE
from nano.tts_descent import Descent
from nano.tts_size import SMOKE, SMOKE_ENCODER
from nano.tts_state import Training
from nano.tts_steps import CodecPhase
from nano.tts_weights import codec_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")
STEPS, RATE = 12, 1e-3


def test_a_graph_takes_the_same_steps(tmp_path: Path) -> None:
    """Each step from the same weights: over several, a code that is chosen otherwise changes all that follows."""
    phase = CodecPhase(SMOKE.codec, SMOKE_ENCODER)
    weights = codec_weights(SMOKE.codec, SMOKE_ENCODER, 0)
    rows = [
        0.1 * torch.randn(2, 4 * SMOKE.codec.frame_samples, generator=torch.Generator().manual_seed(step))
        for step in range(STEPS)
    ]
    replayed, plain = (Training.new(weights, (SUM, USAGE), STEPS, RATE, CUDA) for _ in range(2))
    descent = Descent(replayed, lambda samples, draw: phase.loss(replayed.weights, samples, draw))
    for step, samples in enumerate(rows):
        replayed.save(tmp_path / "step")
        plain.load(tmp_path / "step")
        theirs = float(descent(samples, step)["total"])
        loss, terms = phase.loss(plain.weights, samples.to(CUDA), torch.Generator(CUDA).manual_seed(step))
        plain.learn(loss)
        assert abs(theirs - float(terms["total"])) < 0.01 * theirs, step
        for name, weight in replayed.weights.items():
            # Without the graph of the difference, which would outlive this step on another stream than the next one's.
            off = (weight.detach() - plain.weights[name].detach()).abs()
            near = off.median() < 0.1 * RATE and off.max() < 2.5 * RATE
            assert near or name in (SUM, USAGE), (step, name)
    assert replayed.step == plain.step == STEPS
