"""The edge of the process, by real processes: closed pipes, full disks, terminals, log lines, frames."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest
from probes import HELLO, WAIT_S, frames, ids, run, started, terminal
from processes import environment

from voxtral_pipes.formats.frame import Frame, encode

# --- output


def test_a_reader_that_goes_away_ends_it_quietly(probe: list[str]) -> None:
    with started([*probe, "write"]) as process:
        assert process.stdout is not None and process.stderr is not None
        assert os.read(process.stdout.fileno(), 10)
        process.stdout.close()
        assert process.wait(WAIT_S) == -signal.SIGPIPE  # 141 in the shell
        assert process.stderr.read() == b""


def test_a_full_disk_is_one_line(probe: list[str]) -> None:
    with started([*probe, "write"], stdout=os.open("/dev/full", os.O_WRONLY)) as process:
        assert process.wait(WAIT_S) == 1
        assert process.stderr is not None
        assert process.stderr.read() == b"vx-probe: cannot write to stdout: No space left on device\n"


def test_a_full_disk_under_a_filter_is_one_line(probe: list[str]) -> None:
    with started([*probe, "filter"], stdout=os.open("/dev/full", os.O_WRONLY)) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(encode(HELLO))
        process.stdin.close()
        assert process.wait(WAIT_S) == 1
        assert process.stderr.read() == b"vx-probe: cannot write to stdout: No space left on device\n"


def test_a_slow_reader_that_never_blocks_loses_nothing(probe: list[str]) -> None:
    """A descriptor that some other process has set non-blocking is waited for."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with started([*probe, "write"], stdout=writing) as process:
        os.close(writing)
        time.sleep(0.5)
        got = 0
        while got < 1_000_000:
            assert select.select([reading], [], [], WAIT_S)[0]
            got += len(os.read(reading, 65536))
        assert process.poll() is None
        os.close(reading)
        assert process.wait(WAIT_S) == -signal.SIGPIPE


def test_a_slow_writer_that_never_blocks_is_waited_for(probe: list[str]) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with started([*probe, "filter"], stdin=reading) as process:
        os.close(reading)
        assert process.stdout is not None
        data = encode(HELLO) + ids(0, 1, 2) + encode(Frame("end", 0, 1)) + encode(Frame("end"))
        for piece in (data[:5], data[5:100], data[100:]):
            time.sleep(0.2)
            os.write(writing, piece)
        os.close(writing)
        assert [f.kind for f in frames(process.stdout.read())] == ["hello", "open", "data", "end", "end"]
        assert process.wait(WAIT_S) == 0


# --- terminals


def test_frames_are_not_written_to_a_terminal(probe: list[str]) -> None:
    with terminal() as tty:
        done = subprocess.run(
            [*probe, "filter"], input=b"", stdout=tty, stderr=subprocess.PIPE, timeout=WAIT_S, check=False
        )
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1 and b"stdout is a terminal" in done.stderr


def test_frames_are_written_to_a_terminal_by_force(probe: list[str]) -> None:
    with terminal() as tty:
        done = subprocess.run(
            [*probe, "filter", "-f"], input=encode(HELLO) + encode(Frame("end")), stdout=tty, timeout=WAIT_S,
            check=False,
        )  # fmt: skip
    assert done.returncode == 0


def test_nothing_is_read_from_a_terminal(probe: list[str]) -> None:
    with terminal() as tty:
        done = subprocess.run([*probe, "filter"], stdin=tty, capture_output=True, timeout=WAIT_S, check=False)
    assert done.returncode == 2 and done.stdout == b""
    assert done.stderr.count(b"\n") == 1 and b"stdin is a terminal" in done.stderr


def test_a_closed_stdin_is_told(probe: list[str]) -> None:
    done = subprocess.run(
        ["bash", "-c", '"$@" <&-', "bash", *probe, "read"], capture_output=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == 2
    assert done.stderr == b"vx-probe: stdin is closed; pipe something in\n"


@pytest.mark.parametrize(
    ("closed", "status"), [(">&-", 1), ("2>&-", 0), ("<&- 2>&-", 0), ("<&- >&-", 1), ("<&- >&- 2>&-", 1)]
)
def test_a_closed_stdout_or_stderr_is_no_file_opened_later(
    probe: list[str], tmp_path: Path, closed: str, status: int
) -> None:
    path = tmp_path / "opened"
    line = ["bash", "-c", f'"$@" {closed}', "bash", *probe, "open", str(path)]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, timeout=WAIT_S, check=False)
    assert done.returncode == status and path.read_bytes() == b""
    if closed == ">&-":
        assert done.stderr.endswith(b"vx-probe: cannot write to stdout: Bad file descriptor\n")


# --- log lines and statuses


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("os", "x.bin: No such file"),
        ("bad", "no way"),
        ("memory", "out of memory; use a smaller or quantised model, or another --device"),
        ("torch", "out of memory; use a smaller or quantised model, or another --device"),
        ("bug", "internal error, ValueError: two (run with -v for the traceback, and report it)"),
    ],
)
def test_whatever_happens_is_one_line(probe: list[str], what: str, line: str) -> None:
    done = run([*probe, "raise", what])
    assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", f"vx-probe: {line}\n")


def test_a_bug_shows_its_traceback_under_v_only(probe: list[str]) -> None:
    assert b"Traceback" in run([*probe, "raise", "bug", "-v"]).stderr


def test_bad_options_are_one_line(probe: list[str]) -> None:
    for wrong in (["--nonsense"], ["dance"], [], ["read", "--ver"]):
        done = run([*probe, *wrong])
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
        assert done.stderr.startswith(b"vx-probe: ") and b"(try vx-probe --help)" in done.stderr


def test_two_dashes_end_the_options_and_are_no_operand(probe: list[str]) -> None:
    assert run([*probe, "talk", "-q", "--"]).returncode == 0
    assert run([*probe, "-q", "--", "talk"]).returncode == 0
    done = run(["vx-flow", "--"], PATH=environment()["PATH"])
    assert (done.returncode, done.stderr) == (
        1,
        b"vx-flow: the input is empty: the command before this one wrote nothing\n",
    )
    done = run(["vx-flow", "--", "a", "--seed"], PATH=environment()["PATH"])
    assert (done.returncode, done.stderr) == (
        2,
        b"vx-flow: unrecognized arguments: a --seed (try vx-flow --help)\n",
    )


@pytest.mark.parametrize(
    ("options", "variable", "lines"),
    [
        ([], "", ["an error", "warning: a warning"]),
        (["-q"], "", ["an error"]),
        (["-v"], "", ["an error", "warning: a warning", "a note"]),
        ([], "quiet", ["an error"]),
        ([], "verbose", ["an error", "warning: a warning", "a note"]),
        (["-q"], "verbose", ["an error"]),
        (["-v"], "quiet", ["an error", "warning: a warning", "a note"]),
        ([], "nonsense", ["VX_LOG='nonsense' is neither quiet nor verbose"]),
    ],
)
def test_how_much_is_said(probe: list[str], options: list[str], variable: str, lines: list[str]) -> None:
    done = run([*probe, "talk", *options], VX_LOG=variable)
    assert done.stderr.decode().splitlines() == [f"vx-probe: {line}" for line in lines]


# --- frames through a filter


def test_a_filter_passes_its_input(probe: list[str]) -> None:
    done = run(
        [*probe, "filter"], encode(HELLO) + ids(0, 1, 2) + encode(Frame("end", 0, 1)) + encode(Frame("end"))
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert [f.kind for f in frames(done.stdout)] == ["hello", "open", "data", "end", "end"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "the input is empty"),
        (b"RIFF....WAVE", "put vx-mel before"),
        (b"hello\n", "looks like text"),
        (encode(HELLO)[:20], "died"),
        (encode(HELLO), "died"),
        (encode(HELLO) + ids(0, 1), "died"),
        (encode(HELLO) + ids(0, 1) + b"garbage!", "corrupt"),
        (encode(HELLO) + b"\xc1VX1\xff\xff\xff\xff", "declares 4294967295 bytes"),
        (encode(HELLO) + ids(0, 14), "internal error, RuntimeError: a bug"),
    ],
)
def test_what_a_filter_cannot_read_travels_as_a_fatal_error(probe: list[str], data: bytes, told: str) -> None:
    done = run([*probe, "filter"], data)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1 and told in done.stderr.decode()
    sent = frames(done.stdout)
    assert sent[0].kind == "hello" and sent[-1].kind == "error"
    assert sent[-1].fields["fatal"] is True and sent[-1].fields["by"] == "vx-probe"
    # The commands behind forward it, say nothing, and fail as well.
    behind = run([*probe, "filter"], done.stdout)
    assert (behind.returncode, behind.stderr) == (1, b"")
    assert frames(behind.stdout)[-1] == sent[-1]
    loud = run([*probe, "filter", "-v"], done.stdout)
    assert told in loud.stderr.decode()


def test_a_stage_that_cannot_be_made_says_hello_before_its_error(probe: list[str]) -> None:
    done = run([*probe, "filter"], encode(HELLO) + encode(Frame("end")), PROBE_FAILS="1")
    assert (done.returncode, done.stderr) == (1, b"vx-probe: no such model\n")
    assert [f.kind for f in frames(done.stdout)] == ["hello", "error"]


def test_an_error_in_one_stream_is_one_line_and_the_others_go_on(probe: list[str]) -> None:
    done = run(
        [*probe, "filter"],
        encode(HELLO) + ids(0, 13) + ids(0, 7, stream=1) + encode(Frame("end", 0)) + encode(Frame("end", 1))
        + encode(Frame("end")),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, b"vx-probe: stream 0: 13 is unlucky\n")
    assert [f.kind for f in frames(done.stdout) if f.stream == 1] == ["open", "data", "end"]
    assert frames(done.stdout)[-1] == Frame("end")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_that_cannot_be_written_is_an_error_of_one_line(option: str, probe: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*probe, option], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr == b"vx-probe: cannot write to stdout: No space left on device\n"


def test_a_users_mistake_shows_no_traceback_even_under_v(probe: list[str]) -> None:
    done = run([*probe, "raise", "bad", "-v"])
    assert done.returncode == 1 and b"Traceback" not in done.stderr
