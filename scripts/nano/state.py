"""What a training run keeps: its state, small enough to be carried, its log, and the model as the commands take it.

Adam's second moments are kept in 8 bits, as the logarithm to a quarter of an octave, and its first moments not at
all: they are there again after ten steps.  What the mean of the weights is off them is kept in 8 bits as well, on an
even scale for each tensor.  So a state takes 6 bytes a weight.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from nano.vocabulary import write_vocabulary
from voxtral_pipes.config import AsrConfig
from voxtral_pipes.errors import BadInputError
from voxtral_pipes.formats.atomic import replace_file
from voxtral_pipes.formats.bf16 import bf16_words
from voxtral_pipes.models.asr_params import params_settings
from voxtral_pipes.models.random_files import new_directory, write_json, write_safetensors
from voxtral_pipes.models.shapes import decoder_shapes, encoder_shapes

_QUARTERS, _LOWEST = 4, 60
"""Steps an octave, and the octaves below one where 8 bits begin."""


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands."""

    step: int
    seconds: float
    """Of training so far."""
    settings: dict[str, Any]
    weights: dict[str, Tensor]
    mean: dict[str, Tensor]
    """Of the weights over the last steps: what the model is made of."""
    squares: dict[str, Tensor]
    """Second moments by weight; none before the first step."""


def save_state(path: Path, state: State) -> None:
    """Write a state; one that is there is replaced only by a whole one."""
    tensors = {
        f"weight {name}": value.detach().float().cpu().contiguous() for name, value in state.weights.items()
    }
    for name, value in state.mean.items():
        off = value.detach().float().cpu() - tensors[f"weight {name}"]
        scale = off.abs().max().clamp(min=1e-30) / 127
        tensors[f"mean {name}"] = (off / scale).round().to(torch.int8)
        tensors[f"scale {name}"] = scale
    tensors |= {f"square {name}": _to_8_bits(value.cpu()) for name, value in state.squares.items()}
    about = {"step": state.step, "seconds": state.seconds, "settings": state.settings}
    raw = save_tensors(tensors, {"about": json.dumps(about)})
    replace_file(path, lambda file: file.write(raw))


def load_state(path: Path) -> State:
    """Read a state.

    Raises:
        BadInputError: it is none.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        weights = {name[7:]: value for name, value in tensors.items() if name.startswith("weight ")}
        mean = {
            name: value + tensors[f"mean {name}"] * tensors[f"scale {name}"]
            for name, value in weights.items()
        }
    except Exception as error:
        raise BadInputError(f"{path}: not the state of a training run: {error}") from error
    squares = {name[7:]: _from_8_bits(value) for name, value in tensors.items() if name.startswith("square ")}
    return State(about["step"], about["seconds"], about["settings"], weights, mean, squares)


def _to_8_bits(values: Tensor) -> Tensor:
    codes = (values.float().clamp(min=2.0**-_LOWEST).log2() + _LOWEST) * _QUARTERS
    return codes.round().clamp(0, 255).to(torch.uint8)


def _from_8_bits(codes: Tensor) -> Tensor:
    return torch.exp2(codes.float() / _QUARTERS - _LOWEST)


def write_model(out_dir: Path, config: AsrConfig, weights: dict[str, Tensor]) -> None:
    """Write the model in the published layout, BF16; a model that is there is replaced."""
    shapes = encoder_shapes(config) | decoder_shapes(config)
    shutil.rmtree(out_dir, ignore_errors=True)
    with new_directory(out_dir):
        write_safetensors(
            out_dir / "consolidated.safetensors",
            shapes,
            lambda name: [bf16_words(weights[name].detach().float().cpu().contiguous().numpy())],
        )
        write_json(out_dir / "params.json", params_settings(config))
        write_vocabulary(out_dir / "tekken.json", config.audio)


def load_beginning(folder: Path, like: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read what another training begins with: weights float32 with the shapes of `like`, and second moments.

    Of a model as `write_model` writes it there are only the weights of the commands: neither what hears phones, whose
    loss is large then for something else than words, nor second moments, without which Adam's first steps harm what
    has been learnt.  Of a run there is all.

    Raises:
        BadInputError: it is none, or of another size.
    """
    path, squares = folder / "state.safetensors", {}
    if path.exists():
        state = load_state(path)
        weights, squares = state.mean, state.squares
    else:
        path = folder / "consolidated.safetensors"
        try:
            with safe_open(path, "pt") as file:
                weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (no mapping)
        except Exception as error:
            raise BadInputError(f"{path}: not a model: {error}") from error
    for name, value in weights.items():
        if name not in like or value.shape != like[name].shape:
            raise BadInputError(f"{path}: {name} {list(value.shape)} is no weight of a model of this size")
    return weights, squares
