"""Commands joined by pipes, as a shell joins them, and what the last of them wrote."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence

from voxtral_pipes.errors import BadInputError


def run_chain(commands: Sequence[Sequence[str]], at_a_time: int, text: str | None = None) -> bytes:
    """Run commands, each reading what the one before writes; return what the last one wrote.

    `text` is what the first one reads, nothing by default.  `at_a_time` is how many such chains run beside one
    another: each gets its share of the cores.

    Raises:
        BadInputError: one of them failed, or cannot be started; says the first line that came on stderr.
    """
    environment = dict(os.environ)
    if at_a_time > 1:  # more threads than cores wait for one another
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_a_time)))
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as first:
        first.write((text or "").encode())
        first.seek(0)
        processes: list[subprocess.Popen[bytes]] = []
        source: object = first if text is not None else subprocess.DEVNULL
        for command in commands:
            try:
                process = subprocess.Popen(
                    command, stdin=source, stdout=subprocess.PIPE, stderr=told, env=environment
                )  # type: ignore[call-overload]
            except OSError as error:
                _abandon(processes)
                raise BadInputError(f"{command[0]} cannot be started: {error.strerror}") from error
            if processes:
                assert processes[-1].stdout is not None
                processes[-1].stdout.close()
            processes.append(process)
            source = process.stdout
        assert processes[-1].stdout is not None
        written: bytes = processes[-1].stdout.read()
        processes[-1].stdout.close()
        failed = [process.wait() for process in processes]
        told.seek(0)
        complaint = told.read().decode(errors="replace").strip()
    if any(failed):
        raise BadInputError(complaint.splitlines()[0] if complaint else f"the pipe ended with {failed}")
    return written


def _abandon(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End a chain that is not complete."""
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
