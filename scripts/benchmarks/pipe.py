"""A pipe of commands as real processes, for measuring."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def hearing(path: str, device: str, dtype: str, source: Any) -> Pipe:
    """Start speech recognition on a file, or on raw 16 kHz s16le that is written to `stdin` (subprocess.PIPE)."""
    shared = ["-m", path, "--device", device, "--dtype", dtype]
    commands = [
        ["vx-mel", "--raw", "s16le:16000:1"] if source == subprocess.PIPE else ["vx-mel"],
        ["vx-encode", *shared],
        ["vx-decode", *shared],
        ["vx-detok", "-m", path, "--format", "jsonl"],
    ]
    return Pipe(commands, source)


def speaking(path: str, device: str, dtype: str, steps: int, max_frames: int) -> Pipe:
    """Start speech synthesis on lines that are written to `stdin`; s16le samples come out."""
    shared = ["-m", path, "--device", device]
    commands = [
        ["vx-tokenize", "-m", path],
        ["vx-backbone", *shared, "--dtype", dtype, "--max-frames", str(max_frames), "-q"],
        ["vx-flow", *shared, "--dtype", dtype, "-n", str(steps), "--seed", "1"],
        ["vx-codec", *shared, "--format", "raw"],
    ]
    return Pipe(commands, subprocess.PIPE)


class Pipe:
    """Commands joined by pipes; what each needed is known after `wait`."""

    def __init__(self, commands: Sequence[Sequence[str]], source: Any) -> None:
        """Start the commands; `source` is the stdin of the first."""
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._peaks_kb: dict[str, int] = {}
        for command in commands:
            process = subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE)
            if self.processes:
                source.close()
            self.processes[command[0]] = process
            source = process.stdout
        self.stdin: Any = self.processes[commands[0][0]].stdin
        self.stdout: Any = source

    def wait(self) -> dict[str, float]:
        """Wait for all and return the peak memory of each, in GB, as far as `note_peaks` has seen it.

        The rusage of a child is no good here: it begins with the peak of the process it was forked from.
        """
        for name, process in self.processes.items():
            if process.wait():
                raise SystemExit(f"{name} ended with {process.returncode}")
        return {f"peak GB {name}": peak / 1e6 for name, peak in self._peaks_kb.items()}

    def read(self, size: int, wait_s: float = 60.0) -> bytes:
        """Read `size` bytes of what comes out, not mixed with reads of `stdout`; fewer only at the end.

        Raises:
            SystemExit: nothing came for so long.
        """
        data = b""
        while len(data) < size:
            if not select.select([self.stdout], [], [], wait_s)[0]:
                raise SystemExit(f"nothing has come out of the pipe for {wait_s:.0f} s")
            piece = os.read(self.stdout.fileno(), size - len(data))
            if not piece:
                break
            data += piece
        return data

    def note_peaks(self) -> None:
        """Remember the peak memory of the processes that still run."""
        for name in self.processes:
            if peak := self._status_kb(name, "VmHWM:"):
                self._peaks_kb[name] = peak

    def resident_mb(self) -> dict[str, float]:
        """Return the memory each process holds now."""
        return {name: self._status_kb(name, "VmRSS:") / 1024 for name in self.processes}

    def _status_kb(self, name: str, field: str) -> int:
        """Read a line of /proc (Linux); 0 where the process has ended."""
        try:
            status = Path(f"/proc/{self.processes[name].pid}/status").read_text()
        except FileNotFoundError:
            return 0
        return next((int(line.split()[1]) for line in status.splitlines() if line.startswith(field)), 0)
