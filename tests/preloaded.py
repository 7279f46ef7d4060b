"""Commands in forks of a process that has imported torch, which takes them over a second.

Each is a process with its own files, environment and folder, in which the script of the command runs from its first
line; only torch is there already, and is not taken apart at the end.  `run_preloaded` runs one to its end.  In a pipe
PATH leads to small programs that hand all they were given to such a fork, wait, and end as it ends.

Where it matters how a command starts, what its imports bring, which process a signal finds, or under which limits it
runs, real ones are started.
Imported by name, not collected.
"""

from __future__ import annotations

import atexit
import contextlib
import marshal
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from processes import ROOT, WAIT_S, environment, shell

IMPORTING = ("vx-encode", "vx-decode", "vx-backbone", "vx-flow", "vx-codec")
"""The commands that import torch."""

SERVER = """
import atexit, fcntl, gc, marshal, os, runpy, select, signal, socket, sys, threading
import torch

gc.freeze()  # or each fork copies all that is there when it collects
alive, listening = int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))
running = {}  # who asked, and the process, by the descriptor that tells of its end


def run(script, arguments, variables, folder, numbers, files):
    above = max(numbers) + 1
    files = [fcntl.fcntl(file, fcntl.F_DUPFD, above) for file in files]
    for number, file in zip(numbers, files):
        os.dup2(file, number)
    for file in map(int, os.listdir("/proc/self/fd")):
        if file not in numbers:
            try:
                os.close(file)
            except OSError:
                pass  # the one that listed them
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.argv, sys.path[0] = [script, *arguments], os.path.dirname(script)
    try:
        runpy.run_path(script, run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code or 0
    # What Python does at its end, but for the taking apart of all modules: those of torch take longer than most runs.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


while True:
    asking = [asked for asked, _ in running.values()]
    for ready in select.select([alive, listening, *running, *asking], [], [])[0]:
        if ready == alive:  # the tests have ended
            os.killpg(0, signal.SIGKILL)
        elif ready is listening:
            asked = listening.accept()[0]
            message, files, _, _ = socket.recv_fds(asked, 1 << 20, 200)
            process = os.fork()
            if process == 0:
                status = 1
                try:
                    status = run(*marshal.loads(message), files)
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                finally:
                    os._exit(status)
            for file in files:
                os.close(file)
            running[os.pidfd_open(process)] = asked, process
        elif ready in running:
            asked, process = running.pop(ready)
            os.close(ready)
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            try:
                asked.send(b"%d" % status)
            except BrokenPipeError:
                pass
            asked.close()
        else:
            for asked, process in running.values():
                if asked is ready:  # whoever asked was killed
                    os.kill(process, signal.SIGKILL)
"""

# Without site and json, which would take it as long again.  Files are closed once the other process has them: a pipe
# has to know who reads it and who writes.
PROGRAM = """#!{python} -IS
import marshal, os, signal, socket, sys

def given(file):
    try:
        return os.get_inheritable(file)
    except OSError:
        return False

files = [file for file in map(int, os.listdir("/proc/self/fd")) if given(file)]
asked = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
asked.connect({address!r})
message = marshal.dumps(({script!r}, sys.argv[1:], dict(os.environ), os.getcwd(), files))
socket.send_fds(asked, [message], files)
for file in files:
    os.close(file)
status = int(asked.recv(100))
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)
os._exit(status)
"""


class Server:
    """The process that forks, and a folder of the programs that ask it to."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir="/tmp"))  # short, because it holds the address of a socket
        self.address = str(self.folder / "socket")
        waited, self._alive = os.pipe()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(self.address)
            listening.listen(100)
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(waited), str(listening.fileno())],
                pass_fds=[waited, listening.fileno()],
                start_new_session=True,
            )
        os.close(waited)

    def programs(self, scripts: Path, folder: Path) -> Path:
        """Write a program for each command whose script is in `scripts`; return their folder."""
        folder.mkdir()
        for name in IMPORTING:
            program, script = folder / name, str(scripts / name)
            program.write_text(PROGRAM.format(python=sys.executable, address=self.address, script=script))
            program.chmod(0o755)
        return folder

    def close(self) -> None:
        os.close(self._alive)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self.folder)


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


def path_preloaded(scripts: Path = ROOT / "bin", rest: str | None = None) -> str:
    """Return a PATH on which the commands that import torch, of those in `scripts`, are preloaded ones."""
    server = _server()
    folder = server.folder / str(scripts).replace("/", "_")
    if not folder.exists():
        server.programs(scripts, folder)
    return f"{folder}:{environment()['PATH'] if rest is None else rest}"


def shell_preloaded(
    line: str, model: Path | None = None, data: bytes | None = None, cwd: Path | None = None, **more: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a line as `shell` does, its commands preloaded."""
    return shell(line, model, data, cwd, PATH=path_preloaded(), **more)


def _write(stream: int, data: bytes) -> None:
    with open(stream, "wb", buffering=0) as file, contextlib.suppress(BrokenPipeError):
        file.write(data)


def _read(stream: int) -> bytes:
    with open(stream, "rb") as file:
        return file.read()


def run_preloaded(
    name: str | Path,
    arguments: Sequence[str | int | Path],
    variables: Mapping[str, str],
    data: bytes = b"",
    stdout: int | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command, or the script at a path, on `data`, as `subprocess.run` with `capture_output` or `stdout`."""
    server = _server()
    reading, source = os.pipe()
    output, writing = os.pipe()
    errors, saying = os.pipe()
    given = list(map(str, arguments))
    message = marshal.dumps((str(ROOT / "bin" / name), given, dict(variables), str(Path.cwd()), [0, 1, 2]))
    streams = [reading, writing if stdout is None else stdout, saying]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asked:
        asked.settimeout(WAIT_S)
        asked.connect(server.address)
        socket.send_fds(asked, [message], streams)
        for stream in (reading, writing, saying):
            os.close(stream)
        with ThreadPoolExecutor(3) as pool:
            pool.submit(_write, source, data)
            out, err = pool.submit(_read, output), pool.submit(_read, errors)
            try:
                status = int(asked.recv(100))
            except TimeoutError:
                _close()  # so that the streams end
                raise
    return subprocess.CompletedProcess([str(name), *given], status, out.result(), err.result())


def script_preloaded(name: str, *arguments: str | int | Path) -> subprocess.CompletedProcess[str]:
    """Run a script of the checkout, it and its commands preloaded; no traceback may ever show."""
    done = run_preloaded(ROOT / "scripts" / name, arguments, environment(PATH=path_preloaded()))
    out, err = done.stdout.decode(), done.stderr.decode()
    assert "Traceback" not in err, err
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def scripts_preloaded(name: str, *runs: Sequence[str | int | Path]) -> list[subprocess.CompletedProcess[str]]:
    """Run a script several times, one after the other."""
    return [script_preloaded(name, *run) for run in runs]
