"""Write flow.npz: what the flow head of vllm-omni makes of random weights, hidden states and noise, in float32.

README.md beside this says how to get the reference and how to run this.

Of every model, number of Euler steps N and guidance a: the codes and, before they are clamped and rounded, the states.
The reference calls N `n_decoding_steps`: its grid has N + 1 points and its loop N turns, which is asserted below.
Replaced in it: torch.randn, by the given noise; torch.clamp and its velocity are only listened to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from reference_package import made_with, reference_module
from torch import Tensor
from tts_models import FLOWS, GUIDANCES, STEPS, TIE_FLOWS, flow_inputs, flow_tensors, tie_inputs

from voxtral_pipes.config import FlowConfig
from voxtral_pipes.models.tts_shapes import FLOW

MARGIN = 5e-4
"""How near a boundary between two codes no state may come, in levels, and a semantic logit no other."""


def reference(c: FlowConfig, tensors: Mapping[str, Tensor], steps: int) -> Any:
    """Make the reference's module with these weights."""
    arguments = {
        "semantic_codebook_size": c.semantic_size,
        "acoustic_codebook_size": c.acoustic_levels,
        "n_acoustic_codebook": c.acoustic_dim,
        "acoustic_transformer_args": {
            "input_dim": c.input_dim, "dim": c.dim, "n_layers": c.n_layers, "head_dim": c.head_dim,
            "hidden_dim": c.hidden_dim, "n_heads": c.n_heads, "n_kv_heads": c.n_kv_heads, "use_biases": False,
            "norm_eps": c.norm_eps, "n_decoding_steps": steps,
        },
    }  # fmt: skip
    model = reference_module("voxtral_tts_audio_generation").FlowMatchingAudioTransformer(arguments).eval()
    weights = {name.removeprefix(FLOW): tensor for name, tensor in tensors.items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["time_embedding.inv_freq"] and not unexpected, (missing, unexpected)
    return model


def run(model: Any, hidden: Tensor, noise: Tensor, guidance: float) -> dict[str, Any]:
    """Run the reference for some frames: codes, final states, and per step its states and velocities."""
    seen: dict[str, list[Tensor]] = {"states": [], "velocities": []}
    finals: list[Tensor] = []
    velocity, clamp = model._predict_velocity, torch.clamp

    def heard_velocity(x_t: Tensor, **kwargs: Tensor) -> Tensor:
        result: Tensor = velocity(x_t=x_t, **kwargs)
        seen["states"].append(x_t[: len(noise)])
        seen["velocities"].append(result)
        return result

    def heard_clamp(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if x.shape == noise.shape:
            finals.append(x)
        return clamp(x, *args, **kwargs)

    def given_noise(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        assert shape == noise.shape and dtype == noise.dtype == torch.float32
        return noise

    with (
        torch.no_grad(),
        mock.patch.object(model, "_predict_velocity", heard_velocity),
        mock.patch.object(torch, "clamp", heard_clamp),
        mock.patch.object(torch, "randn", given_noise),
    ):
        codes = model(hidden, torch.full((len(hidden),), guidance))
    (final,) = finals
    return {"codes": codes, "final": final, **{name: torch.stack(tensors) for name, tensors in seen.items()}}


def main() -> None:
    """Run the reference and write its output beside this script."""
    results: dict[str, Any] = {"made_with": made_with()}
    for name, c in FLOWS.items():
        tensors, (hidden, noise) = flow_tensors(c), flow_inputs(c)
        for steps in STEPS:
            model = reference(c, tensors, steps)
            for guidance in GUIDANCES:
                case = f"{name}_{steps}_{guidance}"
                out = run(model, hidden, noise, guidance)
                assert len(out["velocities"]) == steps
                results[f"{case}_codes"] = out["codes"].numpy().astype(np.uint16)
                results[f"{case}_final"] = out["final"].numpy()
                scaled = (out["final"].clamp(-1, 1) + 1) * (c.acoustic_levels - 1) / 2
                nearest = float((scaled - scaled.floor() - 0.5).abs().min())
                print(case, "nearest boundary", nearest, "ends", int((out["codes"][:, 0] == 1).sum()))
                assert nearest > MARGIN, "the inputs want another seed"
                if (steps, guidance) == (3, 1.2):
                    results[f"{name}_states"] = out["states"].numpy()
                    results[f"{name}_velocities"] = out["velocities"].numpy()
        with torch.no_grad():
            best = model.semantic_codebook_output(hidden)[:, 1 : c.semantic_size + 2].topk(2).values
        assert float((best[:, 0] - best[:, 1]).min()) > MARGIN, "the inputs want another seed"
    for c in TIE_FLOWS:
        tensors, hidden, noise = tie_inputs(c)
        codes = run(reference(c, tensors, 3), hidden, noise, 1.2)["codes"]
        results[f"ties_{c.acoustic_levels}"] = codes.numpy().astype(np.uint16)
    np.savez_compressed(Path(__file__).with_name("flow.npz"), **results)


if __name__ == "__main__":
    main()
