"""What a training is, between one step and the next: weights, AdamW, the step; in one file of half the usual size."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from voxtral_pipes.errors import BadInputError
from voxtral_pipes.formats.atomic import replace_file

BETAS = (0.9, 0.98)
DECAY = 0.01
WARM_STEPS = 200


@dataclass(slots=True)
class Training:
    """One phase of the training."""

    weights: dict[str, Tensor]
    """Float32; those in `fixed` are not trained by gradients."""
    optimiser: torch.optim.AdamW
    fixed: frozenset[str]
    step: int
    steps: int
    """Of the whole phase: the learning rate falls to zero until then."""
    rate: float

    @classmethod
    def new(
        cls,
        weights: Mapping[str, Tensor],
        fixed: Collection[str],
        steps: int,
        rate: float,
        device: torch.device,
    ) -> Training:
        """Begin."""
        held = {
            name: weight.to(device).clone().requires_grad_(name not in fixed)
            for name, weight in weights.items()
        }
        trained = [weight for name, weight in held.items() if name not in fixed]
        groups = [
            {"params": [w for w in trained if w.ndim > 1], "weight_decay": DECAY},
            {"params": [w for w in trained if w.ndim <= 1], "weight_decay": 0.0},
        ]
        cuda = device.type == "cuda"  # there a step may be part of a graph
        first_rate = torch.tensor(rate, device=device) if cuda else rate
        optimiser = torch.optim.AdamW(groups, lr=first_rate, betas=BETAS, capturable=cuda)
        return cls(held, optimiser, frozenset(fixed), 0, steps, rate)

    def learn(self, loss: Tensor) -> None:
        """Take one step."""
        self.set_rate()
        self.descend(loss)
        self.step += 1

    def set_rate(self) -> None:
        """Set the learning rate of the next step."""
        rate = self.rate * learning_rate(self.step, self.steps)
        for group in self.optimiser.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def descend(self, loss: Tensor) -> None:
        """Move the weights; nothing waits for the device."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        trained = [weight for name, weight in self.weights.items() if name not in self.fixed]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimiser.step()

    def save(self, path: Path) -> None:
        """Write weights as float32 and the moments of AdamW as bfloat16, which is precise enough to go on."""
        state = {}
        for name, weight in self.weights.items():
            moments = self.optimiser.state.get(weight, {})
            state[name] = [
                moments[key].bfloat16().cpu() for key in ("exp_avg", "exp_avg_sq") if key in moments
            ]
        out = io.BytesIO()
        held = {name: weight.detach().cpu() for name, weight in self.weights.items()}
        torch.save({"weights": held, "moments": state, "step": self.step, "steps": self.steps}, out)
        replace_file(path, lambda file: file.write(out.getvalue()))

    def load(self, path: Path) -> None:
        """Go on from a file.

        Raises:
            BadInputError: it is of another model, or of a training of another length.
        """
        held = read_checkpoint(path)
        if {n: w.shape for n, w in held["weights"].items()} != {n: w.shape for n, w in self.weights.items()}:
            raise BadInputError(f"{path} is a checkpoint of another model")
        if held["steps"] != self.steps:
            raise BadInputError(f"{path} is of a training of {held['steps']} steps, not {self.steps}")
        self.step = held["step"]
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(held["weights"][name])
                if held["moments"][name]:
                    first, second = (part.to(weight.device, torch.float32) for part in held["moments"][name])
                    self.optimiser.state[weight] = {
                        "step": torch.tensor(float(self.step), device=weight.device),
                        "exp_avg": first, "exp_avg_sq": second,
                    }  # fmt: skip


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save` wrote; nothing but tensors and numbers is accepted.

    Raises:
        BadInputError: it cannot be read.
    """
    try:
        held: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BadInputError(f"{path}: not a checkpoint: {error!s:.100}") from error
    return held


def learning_rate(step: int, steps: int) -> float:
    """Return the factor of the learning rate: up over the first steps, then down as a cosine."""
    warm = min(WARM_STEPS, max(steps // 10, 1))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


class Metrics:
    """Figures as lines of JSON, appended, and on the terminal."""

    def __init__(self, path: Path, phase: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._phase, self._clock, self._start = path, phase, clock, clock()

    def write(self, split: str, step: int, figures: Mapping[str, float]) -> None:
        """Append one line."""
        line = {
            "phase": self._phase,
            "split": split,
            "step": step,
            "s": round(self._clock() - self._start, 1),
        }
        line |= {name: float(f"{value:.5g}") for name, value in figures.items()}
        text = json.dumps(line)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        print(text, flush=True)
