"""Files that are whole or not there: written beside the target and renamed over it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file, then give it the name `path` in one step.

    A link is followed, so its target is replaced; what is not a regular file (a device, a FIFO) is written
    directly, because a rename would remove it.  On any failure the old file stays and the new one is removed.

    Raises:
        OSError: the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        with target.open("wb") as file:
            write(file)
        return
    unfinished = target.with_name(f".{target.name[:200]}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            write(file)
        unfinished.replace(target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
