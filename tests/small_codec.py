"""The small random codec as a stage, and what came out of it; imported by name, not collected."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np
import numpy.typing as npt
from code_streams import Codes, sound
from tts_models import SMALL_CODEC, random_tensors

from voxtral_pipes.formats.frame import Frame
from voxtral_pipes.models.codec import Codec
from voxtral_pipes.models.tts_shapes import codec_shapes
from voxtral_pipes.stages.codec import CodecStage

CONFIG = SMALL_CODEC
WIDTH = 1 + CONFIG.acoustic_dim


@cache
def stage(together: int | None = None) -> CodecStage:
    """Return the codec as it is on the CPU, or with steps of up to `together` frames as on CUDA."""
    if together is not None:
        return CodecStage(stage().codec, together=together)
    return CodecStage(Codec.of(random_tensors(codec_shapes(CONFIG)), CONFIG))


def codes(n: int, seed: int = 1) -> Codes:
    """Draw ordinary codes of the small model, [n, WIDTH]."""
    return sound(n, seed, width=WIDTH, semantic=CONFIG.semantic_size, levels=CONFIG.acoustic_levels)


def audio(frames: Iterable[Frame], stream: int) -> npt.NDArray[np.float32]:
    """Return the samples of a stream, [n]."""
    pieces = [f.tensors["audio"].float32() for f in frames if f.kind == "data" and f.stream == stream]
    return np.concatenate(pieces).ravel() if pieces else np.empty(0, np.float32)
