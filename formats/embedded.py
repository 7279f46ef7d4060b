"""The embedded models: two tiny trained ones that come with the package, so that every command works at once.

They are package data in `voxtral_pipes/nano`, a folder for each family and form; MODEL_CARD.md there says what they
are.  No import of numpy or torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import voxtral_pipes
from voxtral_pipes.errors import NoModelError
from voxtral_pipes.formats.family import ASR, MODEL_VARIABLE, TTS

HOME = Path(voxtral_pipes.__file__).parent / "nano"
"""Where they are; also in a checkout, whose `formats` lies elsewhere."""
DEFAULT = "nano"
"""The name of the one that is taken where nothing is named."""
FOLDERS: Mapping[str, Mapping[str, str]] = {
    DEFAULT: {ASR: "asr", TTS: "tts"},
    "nano-q4": {ASR: "asr-q4", TTS: "tts-q4"},
}
"""By name and family, the folder in `HOME`."""
_LIMITS = {
    ASR: "the embedded nano model listens, which knows 35 English words",
    TTS: "the embedded nano model speaks, which says digits clearly and short English sentences less so",
}


def embedded(family: str, name: str = DEFAULT) -> Path:
    """Return the folder of an embedded model, of a name in `FOLDERS`.

    Raises:
        NoModelError: the package was installed without it.
    """
    folder = HOME / FOLDERS[name][family]
    if not any(path.suffix in (".safetensors", ".gguf") for path in folder.glob("*")):
        raise NoModelError(f"the embedded model {name} is not in this installation ({folder})")
    return folder


def announcement(family: str) -> str:
    """Say that nobody named a model, what is taken, and how another is."""
    return f"no model is named: {_LIMITS[family]}; name another with -m PATH or ${MODEL_VARIABLE[family]}"
