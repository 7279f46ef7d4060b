"""What all commands do alike: light help, bad options, a terminal on stdin, an interrupt at the start."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from probes import WAIT_S, run, terminal
from processes import ROOT

COMMANDS = sorted(path.name for path in (ROOT / "bin").iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_version_start_light(command: str) -> None:
    name = command.removeprefix("vx-")
    for option in ("--help", "--version"):
        code = (
            f"import sys; sys.argv = ['{command}', '{option}']\n"
            f"from voxtral_pipes.cli.{name} import main\n"
            "try: main()\nexcept SystemExit as end: assert not end.code\n"
            "print({'numpy', 'torch', 'triton'} & set(sys.modules), file=sys.stderr)"
        )
        done = run([sys.executable, "-c", code])
        assert (done.returncode, done.stderr) == (0, b"set()\n")
        assert done.stdout.decode().startswith("usage: " + command if option == "--help" else command + " ")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupt_while_the_imports_run_leaves_no_traceback(command: str) -> None:
    """The script is stopped inside its first import of ours, as by Ctrl-C just after the start."""
    name = command.removeprefix("vx-")
    code = (
        "import os, runpy, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, module, path, target=None):\n"
        f"        if module == 'voxtral_pipes.cli.{name}': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        f"runpy.run_path({str(ROOT / 'bin' / command)!r}, run_name='__main__')"
    )
    done = run([sys.executable, "-c", code])
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_refuse_bad_options_and_terminals(command: str) -> None:
    script = [sys.executable, str(ROOT / "bin" / command)]
    done = run([*script, "--nonsense"])
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    with terminal() as tty:
        refused = subprocess.run(script, stdin=tty, capture_output=True, timeout=WAIT_S, check=False)
    assert refused.returncode == 2 and b"Traceback" not in refused.stderr
