"""The edge of the process, by real processes: signals, closed pipes, full disks, terminals, log lines."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import environment

from voxtral_pipes.formats.frame import Frame, FrameReader, encode

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(path.name for path in (ROOT / "bin").iterdir())
WAIT_S = 60

# A command as the real ones are made, whose work each test chooses by an option.
PROBE = """
import os, sys, time
from voxtral_pipes.cli import edge
from voxtral_pipes.cli.options import Parser, add_general
from voxtral_pipes.errors import BadInputError
from voxtral_pipes.stages.base import Hello, Output

class Copy:
    done = False
    def push(self, frame):
        if frame.ids == [13]:
            raise BadInputError("13 is\\nunlucky")
        if frame.ids == [14]:
            raise RuntimeError("a bug")
        yield Output(0, 0, ids=frame.ids)
    def mark(self, meta): pass
    def flush(self): return iter(())

class Stage:
    name, needs = "vx-probe", "i"
    def hello(self): return Hello({"i": {"d": "u32", "h": [-1]}})
    def prepare(self): pass
    def open(self, stream, meta): return Copy(), meta

def make():
    if os.environ.get("PROBE_FAILS"):
        raise BadInputError("no such model")
    return Stage()

def work(args, log):
    if args.mode == "raise":
        raise {"os": OSError(2, "No such file", "x.bin"), "bug": ValueError("two\\nlines"),
               "bad": BadInputError("no\\nway"), "memory": MemoryError(),
               "torch": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
               }[args.what]
    if args.mode == "talk":
        log.error("an error"), log.warn("a warning"), log.note("a note")
        return 0
    if args.mode == "act":
        source = edge.open_stdin()
        edge.before_death(lambda: log.error("first act"))
        edge.before_death(lambda: 1 / 0)
        edge.before_death(lambda: (time.sleep(0.3), log.error("last act")))
        print("ready", file=sys.stderr, flush=True)
        data = source.read()
        while args.what == "write":
            edge.Output(binary=False).write(b"x" * 100000)
        return 0
    if args.mode == "open":
        with open(args.what, "wb") as file:
            log.error("said while a file is open")
            edge.Output(binary=False).write(b"shown while a file is open")
        return 0
    if args.mode == "write":
        edge.open_stdin()
        output = edge.Output(binary=True, force=args.force)
        while True:
            output.write(b"x" * 100000)
    if args.mode == "read":
        source = edge.open_stdin()
        print("ready", file=sys.stderr, flush=True)
        data = source.read()
        edge.Output(binary=False).write(b"tail of %d bytes\\n" % len(data))
        return 0
    source, output = edge.open_stdin(), edge.Output(binary=True, force=args.force)
    return edge.filter_frames("vx-probe", Hello({"i": {}}), make, source, output, log)

def parser():
    result = Parser("vx-probe", "Probes the edge.", "vx-probe < x")
    result.add_argument("mode", choices=("raise", "talk", "act", "open", "write", "read", "filter"))
    result.add_argument("what", nargs="?")
    add_general(result)
    return result

sys.exit(edge.run(parser(), work))
"""

HELLO = Frame("hello", fields={"v": [1, 0], "by": "test/0", "chain": [], "out": {"i": {}}, "tb": 16000})


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("probe") / "vx-probe"
    path.write_text(PROBE)
    return [sys.executable, str(path)]


def run(command: list[str], data: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        command,
        input=data,
        capture_output=True,
        timeout=WAIT_S,
        env={**os.environ, **environment},
        check=False,
    )
    assert b"Traceback" not in done.stderr or "-v" in command
    return done


@contextlib.contextmanager
def started(command: list[str], **streams: int) -> Iterator[subprocess.Popen[bytes]]:
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    with subprocess.Popen(command, bufsize=0, **streams) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


def wait_ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stderr is not None
    assert process.stderr.readline() == b"ready\n"


def still_runs(process: subprocess.Popen[bytes]) -> bool:
    time.sleep(0.2)
    return process.poll() is None


def frames(data: bytes) -> list[Frame]:
    return list(FrameReader(io.BytesIO(data)))


def ids(seq: int, *values: int, stream: int = 0) -> bytes:
    return encode(Frame("data", stream, seq, tick=0, ticks=0, ids=list(values)))


# --- signals


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


@contextlib.contextmanager
def terminal() -> Iterator[int]:
    outer, inner = pty.openpty()
    try:
        yield inner
    finally:
        os.close(inner)
        os.close(outer)


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
        ([], "nonsense", ["an error", "warning: a warning"]),
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


# --- the real commands


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


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_that_cannot_be_written_is_an_error_of_one_line(option: str, probe: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*probe, option], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr == b"vx-probe: cannot write to stdout: No space left on device\n"


def test_a_users_mistake_shows_no_traceback_even_under_v(probe: list[str]) -> None:
    done = run([*probe, "raise", "bad", "-v"])
    assert done.returncode == 1 and b"Traceback" not in done.stderr
