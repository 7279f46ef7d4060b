"""Write flow.npz: codes and velocities of Faster-Voxtral-4B-TTS for random weights, hidden states and noise.

PYTHONPATH=tests python tests/golden/make_flow.py CHECKOUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from reference_package import show_reference
from tts_models import SMALL_FLOW, random_rows, random_tensors

from voxtral_pipes.models.flow import flow_shapes

FRAMES = 60
STEPS = (1, 3, 7)


def main() -> None:
    """Run the reference and write its output beside this script."""
    show_reference(sys.argv[1])
    from voxtral.acoustic.flow_matching import FlowMatchingAudioTransformer  # type: ignore[import-not-found]
    from voxtral.config import AcousticTransformerConfig  # type: ignore[import-not-found]

    c = SMALL_FLOW
    weights = {k.removeprefix("acoustic_transformer."): t for k, t in random_tensors(flow_shapes(c)).items()}
    hidden, noise = random_rows(FRAMES, c.input_dim, 1), random_rows(FRAMES, c.acoustic_dim, 2)
    results = {}
    for steps in STEPS:
        config = AcousticTransformerConfig(
            model_dim=c.dim, input_dim=c.input_dim, num_layers=c.n_layers, head_dim=c.head_dim,
            hidden_dim=c.hidden_dim, num_heads=c.n_heads, num_kv_heads=c.n_kv_heads, norm_eps=c.norm_eps,
            semantic_codebook_size=c.semantic_size, acoustic_levels=c.acoustic_levels,
            num_acoustic_codes=c.acoustic_dim,
            num_ode_steps=steps + 1,  # its grid points, which are one more than Euler steps
        )  # fmt: skip
        model = FlowMatchingAudioTransformer(config).eval()
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert missing == ["time_embedding.inverse_frequencies"] and not unexpected
        torch.randn = lambda *shape, **kwargs: noise.to(kwargs["dtype"])
        with torch.no_grad():
            results[f"codes_{steps}"] = model.double()(hidden.double()).numpy().astype(np.uint16)
    time = model.time_embedding(torch.full((FRAMES, 1), 3 / 7, dtype=torch.float64))
    with torch.no_grad():
        velocity = model._predict_velocity(noise.double(), hidden.double(), time)
    results["velocity"] = velocity.numpy().astype(np.float32)
    np.savez_compressed(Path(__file__).with_name("flow.npz"), **results)
    print({name: array.shape for name, array in results.items()}, np.unique(results["codes_7"][:, 0]).size)


if __name__ == "__main__":
    main()
