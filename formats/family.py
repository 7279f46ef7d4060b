"""Which model a weights file holds, decided by its tensor names alone (formats.md sections 1 and 3.5).

Metadata is never asked: the published files carry next to none, and other projects reuse the same words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from voxtral_pipes.errors import BadModelError

ASR = "voxtral-asr"
TTS = "voxtral-tts"
MODEL_VARIABLE: Mapping[str, str] = {ASR: "VX_ASR_MODEL", TTS: "VX_TTS_MODEL"}
"""Environment variable that names the model of each family."""

_OURS = (
    (ASR, re.compile(r"mm_streams_embeddings\.embedding_module\.")),
    (ASR, re.compile(r"(model\.)?audio_tower\.embedder\.conv1\.")),
    (TTS, re.compile(r"mm_audio_embeddings\.|acoustic_transformer\.")),
)
_FOREIGN = (
    ("a voxtral.cpp GGUF", re.compile(r"(enc|dec)\.blk\.\d+\.|adapter\.0\.weight$")),
    ("an audio projector (mmproj) of llama.cpp", re.compile(r"a\.blk\.\d+\.|mm\.a\.|a\.conv1d\.")),
    ("a text model of llama.cpp", re.compile(r"token_embd\.weight$|blk\.\d+\.attn_")),
    ("an offline Voxtral, no Realtime one", re.compile(r"(model\.)?audio_tower\.conv1\.|mm_whisper_emb")),
)  # fmt: skip


def recognise(names: Iterable[str]) -> str | None:
    """Return "voxtral-asr", "voxtral-tts", or None for anything else."""
    held = list(names)
    for family, pattern in _OURS:
        if any(pattern.match(name) for name in held):
            return family
    return None


def foreign(names: Iterable[str]) -> str | None:
    """Say which family of other projects the names belong to, or None."""
    held = list(names)
    for description, pattern in _FOREIGN:
        if any(pattern.match(name) for name in held):
            return description
    return None


def require_ours(names: Iterable[str], label: str) -> str:
    """Return the family of a file with these tensors.

    Raises:
        BadModelError: the file belongs to another project, or to none that is known; the message says which.
    """
    held = list(names)
    family = recognise(held)
    if family is not None:
        return family
    description = foreign(held)
    if description is not None:
        raise BadModelError(
            f"{label} is {description}; its names and row order differ, so it cannot be read here: take the "
            "weights with Mistral's names (consolidated.safetensors, or a .gguf made from it)"
        )
    some = f"its first tensor is {held[0]!r:.80}" if held else "it holds no tensors"
    raise BadModelError(f"{label} is not a Voxtral model: {some}")
