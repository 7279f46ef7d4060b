"""Commands run to their end in forks of a process that has imported torch, which takes them over a second.

Each is a process with its own standard streams and environment, in which the script of the command runs from its
first line; only torch is there already.  Where its import may matter, and where pipes are tested, real commands are
started.
Imported by name, not collected.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from processes import ROOT, WAIT_S

SERVER = """
import gc, json, os, runpy, socket, sys
import torch

gc.freeze()  # or each fork copies all that is there when it ends

with socket.socket(fileno=int(sys.argv[1])) as asked:
    while True:
        message, streams, _, _ = socket.recv_fds(asked, 1 << 20, 3)
        if not message:
            sys.exit()
        script, arguments, variables = json.loads(message)
        child = os.fork()
        if child == 0:
            asked.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            os.closerange(3, max(streams) + 1)
            os.environ.clear()
            os.environ.update(variables)
            sys.argv, sys.path[0] = [script, *arguments], os.path.dirname(script)
            runpy.run_path(script, run_name="__main__")
            sys.exit()
        for stream in streams:
            os.close(stream)
        asked.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


class Server:
    """The process that forks."""

    def __init__(self) -> None:
        self.asked, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.asked.settimeout(WAIT_S)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def close(self) -> None:
        self.asked.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


_servers: list[Server] = []
"""The one there is, if it was needed."""


@atexit.register
def _close() -> None:
    while _servers:
        _servers.pop().close()


def _server() -> Server:
    if not _servers:
        _servers.append(Server())
    return _servers[0]


def _write(stream: int, data: bytes) -> None:
    with open(stream, "wb", buffering=0) as file, contextlib.suppress(BrokenPipeError):
        file.write(data)


def _read(stream: int) -> bytes:
    with open(stream, "rb") as file:
        return file.read()


def run_preloaded(
    name: str,
    arguments: Sequence[str | Path],
    variables: Mapping[str, str],
    data: bytes = b"",
    stdout: int | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command on `data`, as `subprocess.run` would with `capture_output`, or with `stdout`."""
    server = _server()
    reading, source = os.pipe()
    output, writing = os.pipe()
    errors, saying = os.pipe()
    asked = [str(ROOT / "bin" / name), list(map(str, arguments)), dict(variables)]
    streams = [reading, writing if stdout is None else stdout, saying]
    socket.send_fds(server.asked, [json.dumps(asked).encode()], streams)
    for stream in (reading, writing, saying):
        os.close(stream)
    with ThreadPoolExecutor(3) as pool:
        pool.submit(_write, source, data)
        out, err = pool.submit(_read, output), pool.submit(_read, errors)
        try:
            status = int(server.asked.recv(100))
        except TimeoutError:
            _close()  # so that the streams end
            raise
    return subprocess.CompletedProcess([name, *map(str, arguments)], status, out.result(), err.result())
