"""The preset voices: which there are, their languages, and their rows (tts.md section 2; formats.md section 2).

A voice is a matrix [N, dim] that stands in the prompt in place of N placeholders; `tekken.json` says what N is.
Listing needs no torch; reading does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtral_pipes.errors import BadModelError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "voice_embedding"
DEFAULT = "casual_female"
ENDINGS = (".safetensors", ".pt")
KEY = "embedding"
MAX_FILE_BYTES = 16 << 20
"""Of one voice; the published ones have up to 1.4 MB."""
LANGUAGES = ("ar", "de", "en", "es", "fr", "hi", "it", "nl", "pt")
ENGLISH_STYLES = ("casual", "cheerful", "neutral")

PUBLISHED: Mapping[str, int] = {
    "casual_female": 214, "casual_male": 147, "cheerful_female": 132, "neutral_female": 218, "neutral_male": 169,
    "pt_male": 144, "pt_female": 175, "nl_male": 138, "nl_female": 146, "it_male": 168, "it_female": 172,
    "fr_male": 97, "fr_female": 97, "es_male": 208, "es_female": 138, "de_male": 163, "de_female": 147,
    "ar_male": 67, "hi_male": 94, "hi_female": 86,
}  # fmt: skip
"""The voices of Voxtral-4B-TTS-2603 and their rows."""

NO_CLONING = (
    "new voices cannot be made from recordings: the released model lacks the encoder of its codec, so only its "
    "preset voices speak (--list-voices)"
)
_RECORDINGS = (".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac", ".webm", ".aiff")


@dataclass(frozen=True, slots=True)
class Voice:
    """One preset voice."""

    name: str
    rows: int | None
    """N as the model's tekken.json says; None where there is no such file."""
    path: Path | None
    """Its embedding; None where the model comes without."""

    @property
    def language(self) -> str:
        """Two letters; "-" where the name does not tell.  No language token exists: text and voice decide."""
        first = self.name.partition("_")[0]
        if first in ENGLISH_STYLES:
            return "en"
        return first if first in LANGUAGES else "-"


def voices_in(folder: Path | None, table: Mapping[str, int] | None) -> dict[str, Voice]:
    """Return the voices of a folder of embeddings and of the table of a tekken.json, by name.

    Raises:
        BadModelError: the folder cannot be read.
    """
    paths: dict[str, Path] = {}
    try:
        held = sorted(folder.iterdir()) if folder is not None else []
    except OSError as error:
        raise BadModelError(f"{folder} cannot be read: {error.strerror or error}") from error
    # Names are printed and typed: what other systems leave behind, such as ._name.pt, is no voice.
    held = [path for path in held if path.name.isprintable() and not path.name.startswith(".")]
    for ending in reversed(ENDINGS):  # the first of them wins
        paths |= {path.stem.lower(): path for path in held if path.suffix == ending}
    names = list(dict.fromkeys([*(table or {}), *paths]))
    return {name: Voice(name, (table or {}).get(name), paths.get(name)) for name in names}


def row_table(audio: Mapping[str, Any], label: str) -> dict[str, int]:
    """Read `voice_num_audio_tokens` of the `audio` section of a tekken.json.

    Raises:
        BadModelError: it is missing or malformed.
    """
    table = audio.get("voice_num_audio_tokens")
    if not isinstance(table, dict) or not table:
        raise BadModelError(
            f"{label} has no voices (audio.voice_num_audio_tokens): it is not the tekken.json of a synthesis model"
        )
    for name, rows in table.items():
        if not isinstance(rows, int) or isinstance(rows, bool) or not 0 < rows <= 1 << 16:
            raise BadModelError(f"{label}: the voice {name!r:.40} has {rows!r:.20} rows")
        if not name.isprintable():
            raise BadModelError(f"{label}: {name!r:.40} is no name of a voice")
    return {name.lower(): rows for name, rows in table.items()}


def pick(name: str, voices: Mapping[str, Voice]) -> Voice:
    """Choose a voice by its name, in whatever case.

    Raises:
        UsageError: there is none of that name; if it names a recording, the message says why that cannot be.
        BadModelError: the model comes without its embedding, or its tekken.json does not know it.
    """
    voice = voices.get(name.lower())
    if voice is None and ("/" in name or name.lower().endswith(_RECORDINGS)):
        raise UsageError(f"--voice {name}: {NO_CLONING}")
    if voice is None:
        known = ", ".join(voices) or "none"
        raise UsageError(f"--voice {name}: there is no such voice; there are {known:.600}")
    if voice.path is None:
        raise BadModelError(
            f"the voice {voice.name} has no embedding: {FOLDER}/{voice.name}.pt (or .safetensors) is looked for "
            "beside the weights, or in the folder that --voices names"
        )
    if voice.rows is None and any(other.rows is not None for other in voices.values()):
        raise BadModelError(f"{voice.path} is a voice that the model's tekken.json does not list")
    return voice


def read_rows(voice: Voice, dim: int) -> Tensor:
    """Read the embedding of a voice, [N, dim] in the dtype of the file; of a `.pt`, only what a tensor needs.

    Raises:
        BadModelError: it cannot be read, is not such a matrix, or N is not what tekken.json says.
    """
    from voxtral_pipes.models.saved_tensor import read_safetensors, read_saved

    path = voice.path
    assert path is not None
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BadModelError(f"{path} cannot be read: {error.strerror or error}") from error
    if not path.is_file():
        raise BadModelError(f"{path} is not a regular file")
    if size > MAX_FILE_BYTES:
        raise BadModelError(f"{path} has {size} bytes, which no voice has")
    rows = read_saved(path) if path.suffix == ".pt" else read_safetensors(path, KEY)
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise BadModelError(f"{path} holds a tensor {list(rows.shape)}, not rows of {dim}")
    if voice.rows is not None and len(rows) != voice.rows:
        raise BadModelError(
            f"{path} has {len(rows)} rows, but tekken.json gives the voice {voice.name} {voice.rows}: they are of "
            "different releases"
        )
    if not len(rows) or not bool(rows.isfinite().all()):
        raise BadModelError(f"{path} holds no rows, or values that are not finite")
    return rows
