"""Open a checkpoint of any layout: its headers are read and checked, its tensors are known by Mistral's names.

Layouts differ in names, in the row order of rotary matrices and in packing; nothing behind this module and
`models.weights` knows which it was.  No import of torch: a command can say what it will send before torch is
imported.  Spec: asr.md sections 10, 13 and 14; tts.md sections 2 and 11; formats.md sections 1, 2 and 4.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from math import prod

import numpy as np

from voxtral_pipes.config import AsrConfig, TtsConfig
from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.bf16 import bf16_words
from voxtral_pipes.formats.family import ASR, TTS, require_ours
from voxtral_pipes.formats.locate import ModelFiles
from voxtral_pipes.formats.table import TensorFile, TensorInfo
from voxtral_pipes.models import hyperparameters, tts_hyperparameters
from voxtral_pipes.models.audio_settings import audio_config
from voxtral_pipes.models.hf_names import mistral_name
from voxtral_pipes.models.hyperparameters import EMBEDDINGS, ENCODER
from voxtral_pipes.models.shapes import Shape, decoder_shapes, encoder_shapes, is_rotary
from voxtral_pipes.models.tts_shapes import BOOK, tts_shapes

CODEBOOK = f"{BOOK}embedding_sum"
SPOKEN = {ASR: "recognition", TTS: "synthesis"}


class Checkpoint:
    """One opened model; `AsrCheckpoint` and `TtsCheckpoint` add its hyperparameters."""

    half_split = False
    """Rotary rows lie in transformers' half-split order (asr.md section 10)."""

    def __init__(self, files: ModelFiles, family: str) -> None:
        self.file: TensorFile = files.open()
        self.label = files.weights[0].name if len(files.weights) == 1 else str(files.path)
        self.family = require_ours(self.file.tensors, self.label)
        if self.family != family:
            raise BadModelError(
                f"{self.label} is a speech {SPOKEN[self.family]} model ({self.family}); this command needs a "
                f"{SPOKEN[family]} model"
            )
        self._stored: Mapping[str, str] = {name: name for name in self.file.tensors}

    @property
    def names(self) -> frozenset[str]:
        """Mistral's names of the tensors that are there."""
        return frozenset(self._stored)

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hex digits of SHA-256 over `norm.weight` as BF16 words (design.md section 4)."""
        kind, data = self.info("norm.weight").type, self.bytes("norm.weight")
        if kind == "BF16":
            words = np.frombuffer(data, "<u2")
        elif kind in ("F32", "F16"):
            wide = np.frombuffer(data, "<f4" if kind == "F32" else "<f2").astype(np.float32)
            words = bf16_words(wide)
        else:
            raise BadModelError(f"{self.label}: norm.weight has the type {kind}, which norms do not have")
        return hashlib.sha256(words.astype("<u2").tobytes()).hexdigest()[:16]

    @property
    def identity(self) -> Mapping[str, str]:
        """What hello says of the model: {family, fp}."""
        return {"family": self.family, "fp": self.fingerprint}

    def info(self, name: str) -> TensorInfo:
        """Return type and shape of a tensor as stored.

        Raises:
            BadModelError: it is missing.
        """
        return self.file.tensors[self._find(name)]

    def bytes(self, name: str, begin: int = 0, end: int | None = None) -> memoryview:
        """Return the stored bytes of a tensor, or `begin` to `end` of them."""
        return self.file.bytes(self._find(name), begin, end)

    def read_into(self, name: str, begin: int, buffer: memoryview) -> None:
        """Fill `buffer` with stored bytes of a tensor, from `begin` on, past the map; several threads may.

        Raises:
            BadModelError: it is missing, or the system cannot read it.
        """
        self.file.read_into(self._find(name), begin, buffer)

    def stored_bytes(self, names: Iterable[str]) -> int:
        """Return how many bytes these tensors take in the file."""
        return sum(self.info(name).nbytes for name in names)

    def unpacked_bytes(self, names: Iterable[str]) -> int:
        """Return how many they would take with packed ones in bfloat16: in float32 those are unpacked for each product.

        `--dtype auto` goes by it.
        """
        infos = [self.info(name) for name in names]
        return sum(max(info.nbytes, 2 * prod(info.shape)) for info in infos)

    def rotary_head_dim(self, name: str) -> int | None:
        """Return the head size by which rows of this tensor must be reordered; None where they need not be."""
        return None

    def _find(self, name: str) -> str:
        try:
            return self._stored[name]
        except KeyError:
            raise BadModelError(f"{self.label}: tensor {name} is missing") from None

    def _check_shapes(self, expected: Mapping[str, Shape]) -> None:
        for name, shape in expected.items():
            if name in self._stored and (found := self.info(name).shape) != shape:
                raise BadModelError(
                    f"{self.label}: {name} has the shape {list(found)}, the hyperparameters ask for "
                    f"{list(shape)}"
                )

        most: dict[str, int] = {}
        for stack, number in (place for name in expected for place in _places(name)):
            most[stack] = max(number, most.get(stack, 0))
        for name in self._stored:
            for stack, number in _places(name):
                if number > most.get(stack, number):
                    raise BadModelError(
                        f"{self.label}: {name} is there, but the hyperparameters ask for no more than "
                        f"{stack}{most[stack]}"
                    )

    def _shapes(self) -> dict[str, Shape]:
        return {name: self.info(name).shape for name in self._stored}

    def _no_params(self) -> BadModelError:
        return BadModelError(f"there is no params.json beside {self.label}")


def _places(name: str) -> Iterator[tuple[str, int]]:
    """Yield each stack that a tensor belongs to, as the name in front of the number, and the number."""
    for match in re.finditer(r"(?<=\.)\d+(?=\.)", name):
        yield name[: match.start()], int(match.group())


class AsrCheckpoint(Checkpoint):
    """A speech recognition model.

    Raises:
        BadModelError: the files are malformed, of another family, or do not fit their hyperparameters.
    """

    def __init__(self, files: ModelFiles) -> None:
        super().__init__(files, ASR)
        self.half_split = not any(name.startswith(EMBEDDINGS) for name in self.file.tensors)
        if self.half_split:
            self._stored = self._translated()
        self.config: AsrConfig = self._config(files)
        self._check_shapes(encoder_shapes(self.config) | decoder_shapes(self.config))

    def rotary_head_dim(self, name: str) -> int | None:
        """Return the head size of encoder or decoder for rotary rows in transformers' order."""
        if not self.half_split or not is_rotary(name):
            return None
        return (self.config.encoder if name.startswith(ENCODER) else self.config.decoder).head_dim

    def _translated(self) -> dict[str, str]:
        """Map Mistral's names to those of transformers in the file."""
        stored: dict[str, str] = {}
        for theirs in self.file.tensors:
            ours = mistral_name(theirs)
            if ours is None:
                continue
            if ours in stored:
                raise BadModelError(f"{self.label}: {theirs} and {stored[ours]} are the same tensor")
            stored[ours] = theirs
        return stored

    def _config(self, files: ModelFiles) -> AsrConfig:
        params = None if self.half_split else files.params
        audio = audio_config(files.tekken, params, needs_audio=False)
        if params is not None:
            return hyperparameters.from_params(params, audio)
        if self.half_split:
            if files.config is None:
                raise BadModelError(
                    f"{self.label} has the names of transformers: its config.json is needed beside it"
                )
            return hyperparameters.from_hf_config(files.config, audio)
        if files.layout != "gguf":
            raise self._no_params()
        return hyperparameters.from_shapes(self._shapes(), audio, self.label)


class TtsCheckpoint(Checkpoint):
    """A speech synthesis model.

    Raises:
        BadModelError: the files are malformed, of another family, or do not fit their hyperparameters.
    """

    def __init__(self, files: ModelFiles) -> None:
        super().__init__(files, TTS)
        self.config: TtsConfig = self._config(files)
        self._check_shapes(tts_shapes(self.config, self.names))
        if CODEBOOK in self._stored and self.info(CODEBOOK).type.startswith("Q"):
            raise BadModelError(
                f"{self.label}: {CODEBOOK} is packed ({self.info(CODEBOOK).type}), which codebooks cannot be"
            )

    def _config(self, files: ModelFiles) -> TtsConfig:
        if files.params is not None:
            return tts_hyperparameters.from_params(files.params)
        if files.layout != "gguf":
            raise self._no_params()
        return tts_hyperparameters.from_shapes(self._shapes(), self.label)
