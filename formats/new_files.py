"""Files that come into being together and whole, or not at all, and never in place of others."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from voxtral_pipes.errors import OutputError


@dataclass(slots=True)
class _New:
    final: Path
    unfinished: Path
    identity: tuple[int, int] | None = None
    """Device and inode: what has the name but is another file is not ours."""


class NewFiles:
    """Writes files under temporary names and, when all are there, gives them their own.

    A context manager: leaving it without `publish` removes everything.  `discard` may be called at any time, as by
    a signal, and what it finds is then ours to remove.
    """

    def __init__(self) -> None:
        self._files: list[_New] = []
        self._folders: list[Path] = []
        self._published = False

    def __enter__(self) -> NewFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def folder(self, path: Path) -> None:
        """Make a directory, and those above it, where there is none.

        Raises:
            OutputError: it cannot be made, or is something else.
        """
        lacking = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            for folder in reversed(lacking):
                self._folders.append(folder)
                folder.mkdir(exist_ok=True)
            if not path.is_dir():
                raise OutputError(f"{path} is not a directory")
        except OSError as error:
            raise OutputError(f"{path} cannot be made: {error.strerror or error}") from error

    def open(self, final: Path) -> BinaryIO:
        """Begin a file that will be `final`; close it with `finish`.

        Raises:
            OutputError: that name is taken, or nothing can be written there.
        """
        refuse_existing(final)
        new = _New(final, final.with_name(f".vx-{os.getpid()}-{len(self._files)}.tmp"))
        self._files.append(new)  # before it is made: a signal may come in between
        try:
            descriptor = os.open(new.unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            status = os.fstat(descriptor)
            new.identity = status.st_dev, status.st_ino
        except OSError as error:
            raise OutputError(f"{final} cannot be written: {error.strerror or error}") from error
        return os.fdopen(descriptor, "wb", buffering=0)

    @staticmethod
    def finish(file: BinaryIO) -> None:
        """Close a file once its bytes are on the disk."""
        os.fsync(file.fileno())
        file.close()

    def publish(self) -> None:
        """Give all files their names.

        Raises:
            OutputError: a name has been taken in the meantime; nothing is left then.
        """
        for new in self._files:
            try:
                _rename_new(new.unfinished, new.final)
            except FileExistsError:
                refuse_existing(new.final)
                raise
            except OSError as error:
                raise OutputError(f"{new.final} cannot be written: {error.strerror or error}") from error
        self._published = True
        for new in self._files:
            new.unfinished.unlink(missing_ok=True)
        for folder in {new.final.parent for new in self._files}:
            _sync_folder(folder)

    def discard(self) -> None:
        """Remove what is unfinished; quick, and without raising."""
        for new in self._files:
            with contextlib.suppress(OSError):
                status = new.final.lstat()
                if not self._published and (status.st_dev, status.st_ino) == new.identity:
                    new.final.unlink()
            with contextlib.suppress(OSError):
                new.unfinished.unlink()
        if not self._published:
            for folder in reversed(self._folders):
                with contextlib.suppress(OSError):  # not empty: someone else uses it
                    folder.rmdir()


def refuse_existing(path: Path) -> None:
    """Check that a name is free.

    Raises:
        OutputError: it is not.
    """
    if os.path.lexists(path):
        raise OutputError(f"{path} exists already: remove it, or choose another name")


def _rename_new(old: Path, new: Path) -> None:
    """Give a file one more name, or another name where links cannot be made; never over an existing one."""
    try:
        os.link(old, new)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        refuse_existing(new)
        old.rename(new)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
