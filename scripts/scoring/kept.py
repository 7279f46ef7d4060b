"""Where recordings of what was spoken are put, and the table that names them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from scoring.listening import Key
from scoring.speech import Spoken
from scoring.texts import Text
from voxtral_pipes.errors import BadInputError


@contextmanager
def place_for(keep: Path | None) -> Iterator[Path]:
    """Give the folder `keep`, made if need be, or a temporary one.

    Raises:
        BadInputError: it cannot be made, or holds something already.
    """
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="listen-back-") as folder:
            yield Path(folder)
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
        full = any(keep.iterdir())
    except OSError as error:
        raise BadInputError(f"--keep {keep}: {error.strerror}") from error
    if full:
        raise BadInputError(f"--keep {keep}: it is not empty")
    yield keep.absolute()


def write_table(texts: Sequence[Text], spoken: Mapping[Key, Spoken], folder: Path) -> None:
    """Write `manifest.tsv` as scripts/wer reads it, with the columns path, voice, kind and transcript."""
    lines = ["path\tvoice\tkind\ttranscript"]
    for (speaker, number), one in spoken.items():
        if one.audio is not None:
            path = one.audio.relative_to(folder)
            lines.append(f"{path}\t{speaker}\t{texts[number].kind}\t{texts[number].text}")
    (folder / "manifest.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
