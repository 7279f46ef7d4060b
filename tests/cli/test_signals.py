"""What signals do, by real processes: interrupts, terminations, and the last acts before them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from probes import HELLO, WAIT_S, ids, started, still_runs, wait_ready

from voxtral_pipes.formats.frame import encode


def test_the_first_interrupt_is_ignored_and_the_tail_comes_out(probe: list[str]) -> None:
    with started([*probe, "read"]) as process:
        wait_ready(process)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"abc")
        process.send_signal(signal.SIGINT)
        assert still_runs(process)
        process.stdin.write(b"de")
        process.stdin.close()
        assert process.stdout.read() == b"tail of 5 bytes\n"
        assert process.wait(WAIT_S) == 0


def test_the_second_interrupt_ends_it(probe: list[str]) -> None:
    with started([*probe, "read"]) as process:
        wait_ready(process)
        process.send_signal(signal.SIGINT)
        assert still_runs(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == -signal.SIGINT  # 130 in the shell
        assert process.stderr is not None and process.stderr.read() == b""


def test_an_interrupt_ends_a_command_that_reads_no_pipe(probe: list[str], tmp_path: Path) -> None:
    endless = os.open("/dev/zero", os.O_RDONLY)
    with started([*probe, "write"], stdin=endless, stdout=os.open(os.devnull, os.O_WRONLY)) as process:
        assert still_runs(process)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == -signal.SIGINT
        assert process.stderr is not None and process.stderr.read() == b""


def test_terminate_ends_it_at_once(probe: list[str]) -> None:
    with started([*probe, "read"]) as process:
        wait_ready(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == -signal.SIGTERM  # 143 in the shell
        assert process.stderr is not None and process.stderr.read() == b""


def test_the_shell_sees_130_and_143(probe: list[str], tmp_path: Path) -> None:
    for name, status in (("INT", 130), ("TERM", 143)):
        # In a shell without job control, background commands ignore SIGINT: the probe is asked to reset that.
        script = (
            'mkfifo "$1/in"; exec 3<>"$1/in"; shift; env --default-signal=INT "$@" read <&3 2>err & '
            "until [ -s err ]; do sleep 0.02; done; "
            f"kill -{name} $!; sleep 0.2; kill -{name} $! 2>/dev/null; wait $!; echo $?"
        )
        folder = tmp_path / name
        folder.mkdir()
        done = subprocess.run(
            ["bash", "-c", script, "bash", str(folder), *probe],
            capture_output=True, cwd=folder, timeout=WAIT_S, check=False,
        )  # fmt: skip
        assert done.stdout == b"%d\n" % status


def test_an_interrupt_that_the_shell_ignores_stays_ignored(probe: list[str]) -> None:
    with started(["bash", "-c", 'trap "" INT; exec "$@"', "bash", *probe, "read"]) as process:
        wait_ready(process)
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(WAIT_S) == 0


def test_an_interrupt_that_took_the_command_before_ends_this_one_by_it(probe: list[str]) -> None:
    with started([*probe, "filter"]) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(encode(HELLO) + ids(0, 1))
        assert os.read(process.stdout.fileno(), 1 << 16)
        process.send_signal(signal.SIGINT)
        assert still_runs(process)
        process.stdin.close()
        assert process.wait(WAIT_S) == -signal.SIGINT
        assert process.stderr.read() == b""


ACTED = b"vx-probe: last act\nvx-probe: first act\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_last_acts_come_before_a_death_by_a_signal(probe: list[str], number: signal.Signals) -> None:
    with started([*probe, "act"]) as process:
        wait_ready(process)
        assert process.stderr is not None
        if number == signal.SIGINT:
            process.send_signal(number)
            assert still_runs(process)  # the first one is still harmless
        process.send_signal(number)
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)  # cuts nothing short
        assert process.wait(WAIT_S) == -number
        assert process.stderr.read() == ACTED


def test_last_acts_come_at_the_first_interrupt_where_stdin_is_no_pipe(probe: list[str]) -> None:
    endless = os.open("/dev/zero", os.O_RDONLY)
    with started([*probe, "act"], stdin=endless) as process:
        os.close(endless)
        wait_ready(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == -signal.SIGINT
        assert process.stderr is not None and process.stderr.read() == ACTED


def test_last_acts_come_when_the_reader_has_gone_away(probe: list[str]) -> None:
    with started([*probe, "act", "write"]) as process:
        wait_ready(process)
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdout.close()
        process.stdin.close()
        assert process.wait(WAIT_S) == -signal.SIGPIPE
        assert process.stderr.read() == ACTED


def test_last_acts_leave_an_ordinary_end_and_ignored_signals_alone(probe: list[str]) -> None:
    with started(["bash", "-c", 'trap "" INT HUP; exec "$@"', "bash", *probe, "act"]) as process:
        wait_ready(process)
        assert process.stdin is not None and process.stderr is not None
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGINT):
            process.send_signal(number)
        assert still_runs(process)
        process.stdin.close()
        assert process.wait(WAIT_S) == 0
        assert process.stderr.read() == b""
