"""Open a checkpoint of any layout and load the tensors of one stage from it, under Mistral's names.

Layouts differ in names, in the row order of rotary matrices and in packing; nothing behind this module
knows which it was.  Only tensors that are asked for are read.  Spec: asr.md sections 10, 13 and 14;
formats.md sections 1 and 4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from voxtral_pipes.config import AsrConfig
from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.family import ASR, require_ours
from voxtral_pipes.formats.locate import ModelFiles
from voxtral_pipes.formats.table import TensorFile
from voxtral_pipes.kernels.packed import BLOCK_BYTES, BLOCK_WEIGHTS, PackedFormat, PackedWeight, Weight
from voxtral_pipes.models import hyperparameters
from voxtral_pipes.models.audio_settings import audio_config
from voxtral_pipes.models.hf_names import mistral_name
from voxtral_pipes.models.hyperparameters import EMBEDDINGS, ENCODER
from voxtral_pipes.models.shapes import decoder_shapes, encoder_shapes, is_rotary

__all__ = ["Checkpoint", "decoder_shapes", "encoder_shapes", "hf_rows", "mistral_rows", "open_checkpoint"]

_DENSE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PACKED: Mapping[str, PackedFormat] = {"Q4_0": "q4_0", "Q8_0": "q8_0"}


def mistral_rows(rows: Tensor, head_dim: int) -> Tensor:
    """Return rotary rows in Mistral's interleaved order; a copy.

    `rows`: any dtype, [heads * head_dim, ...] in transformers' half-split order (asr.md section 10).
    """
    split = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return split.transpose(1, 2).reshape(rows.shape)


def hf_rows(rows: Tensor, head_dim: int) -> Tensor:
    """Return rotary rows in transformers' half-split order; the inverse of `mistral_rows`."""
    split = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return split.transpose(1, 2).reshape(rows.shape)


class Checkpoint:
    """One opened model.  Headers are read and checked; data are read by `load`.

    Raises:
        BadModelError: the files are malformed, of another family, or do not fit their hyperparameters.
    """

    def __init__(self, files: ModelFiles) -> None:
        self._file: TensorFile = files.open()
        self._label = files.weights[0].name if len(files.weights) == 1 else str(files.path)
        self.family = require_ours(self._file.tensors, self._label)
        if self.family != ASR:
            raise BadModelError(
                f"{self._label} is a speech synthesis model ({self.family}); this command needs a "
                f"recognition model"
            )
        self._half_split = f"{EMBEDDINGS}tok_embeddings.weight" not in self._file.tensors and not any(
            name.startswith(EMBEDDINGS) for name in self._file.tensors
        )
        self._stored = self._names()
        self.config = self._config(files)
        self._check_shapes()

    @property
    def names(self) -> frozenset[str]:
        """Mistral's names of the tensors that are there."""
        return frozenset(self._stored)

    @property
    def fingerprint(self) -> str:
        """The first 16 hex digits of SHA-256 over `norm.weight` as BF16 words (design.md section 4)."""
        norm = self.load(["norm.weight"], torch.device("cpu"), torch.bfloat16)["norm.weight"]
        assert isinstance(norm, Tensor)
        words = norm.contiguous().view(torch.int16).numpy().astype("<i2", copy=False)
        return hashlib.sha256(words.tobytes()).hexdigest()[:16]

    def stored_bytes(self, names: Iterable[str]) -> int:
        """Return how many bytes these tensors take in the file (`--dtype auto` goes by it)."""
        return sum(self._file.tensors[self._find(name)].nbytes for name in names)

    def load(self, names: Iterable[str], device: torch.device, dtype: torch.dtype) -> dict[str, Weight]:
        """Load tensors by Mistral's names.

        Dense ones come as `dtype` on `device`: views of the mapped file where that is what lies there, and
        then they must not be written to.  Q4_0 and Q8_0 stay packed, whatever `dtype` says.

        Raises:
            BadModelError: a tensor is missing, or is of a type that weights do not have.
        """
        return {name: self._load(name, device, dtype) for name in names}

    def _load(self, name: str, device: torch.device, dtype: torch.dtype) -> Weight:
        stored = self._find(name)
        info = self._file.tensors[stored]
        if info.type in _PACKED:
            form = _PACKED[info.type]
            if len(info.shape) != 2:
                raise BadModelError(f"{self._label}: {name} is {info.type}, and only matrices can be packed")
            raw = torch.from_numpy(_aligned(self._file.bytes(stored), "<u1", 4))
            blocks = raw.reshape(info.shape[0], info.shape[1] // BLOCK_WEIGHTS, BLOCK_BYTES[form])
            return PackedWeight(form, self._ordered(name, blocks).to(device))
        if info.type not in _DENSE:
            raise BadModelError(f"{self._label}: {name} has the type {info.type}, which weights do not have")
        kind = _DENSE[info.type]
        words = _aligned(self._file.bytes(stored), {4: "<i4", 2: "<i2"}[kind.itemsize], kind.itemsize)
        dense = torch.from_numpy(words).view(kind).reshape(info.shape)
        # Device first: half the bytes to move where the file holds 16 bits and float32 is wanted.
        return self._ordered(name, dense).to(device).to(dtype)

    def _ordered(self, name: str, rows: Tensor) -> Tensor:
        if not self._half_split or not is_rotary(name):
            return rows
        part = self.config.encoder if name.startswith(ENCODER) else self.config.decoder
        return mistral_rows(rows, part.head_dim)

    def _find(self, name: str) -> str:
        try:
            return self._stored[name]
        except KeyError:
            raise BadModelError(f"{self._label}: tensor {name} is missing") from None

    def _names(self) -> dict[str, str]:
        """Map Mistral's names to those in the file."""
        if not self._half_split:
            return {name: name for name in self._file.tensors}
        stored: dict[str, str] = {}
        for theirs in self._file.tensors:
            ours = mistral_name(theirs)
            if ours is None:
                continue
            if ours in stored:
                raise BadModelError(f"{self._label}: {theirs} and {stored[ours]} are the same tensor")
            stored[ours] = theirs
        return stored

    def _config(self, files: ModelFiles) -> AsrConfig:
        params = None if self._half_split else files.params
        audio = audio_config(files.tekken, params, needs_audio=False)
        if params is not None:
            return hyperparameters.from_params(params, audio)
        if self._half_split:
            if files.config is None:
                raise BadModelError(
                    f"{self._label} has the names of transformers: its config.json is needed beside it"
                )
            return hyperparameters.from_hf_config(files.config, audio)
        if files.layout != "gguf":
            raise BadModelError(f"there is no params.json beside {self._label}")
        shapes = {name: self._file.tensors[stored].shape for name, stored in self._stored.items()}
        return hyperparameters.from_shapes(shapes, audio, self._label)

    def _check_shapes(self) -> None:
        expected = encoder_shapes(self.config) | decoder_shapes(self.config)
        for name, shape in expected.items():
            if name in self._stored and (found := self._file.tensors[self._stored[name]].shape) != shape:
                raise BadModelError(
                    f"{self._label}: {name} has the shape {list(found)}, the hyperparameters ask for "
                    f"{list(shape)}"
                )


def _aligned(data: memoryview, form: str, alignment: int) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    """View bytes as an array, copied where raw shards are cut so that it would not be aligned."""
    array: np.ndarray[tuple[int], np.dtype[np.generic]] = np.frombuffer(data, dtype=form)
    return array.copy() if array.ctypes.data % alignment else array


def open_checkpoint(files: ModelFiles) -> Checkpoint:
    """Open the model whose files `formats.locate` found.

    Raises:
        BadModelError: the files are malformed, of another family, or do not fit their hyperparameters.
    """
    return Checkpoint(files)
