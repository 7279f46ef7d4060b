"""The edge of the process: descriptors, signals, log lines and exit codes, the same for every command.

Nothing here imports numpy or torch: `main` sets the signal handlers first and imports the stage afterwards.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import io
import os
import select
import signal
import stat
import traceback
from collections.abc import Callable, Iterable
from types import FrameType
from typing import TYPE_CHECKING

from voxtral_pipes.errors import BadInputError, OutputError, TruncatedError, UsageError, VoxError
from voxtral_pipes.kernels.waiting import wait_briefly

if TYPE_CHECKING:
    import argparse

    from _typeshed import WriteableBuffer

    from voxtral_pipes.cli.options import Parser
    from voxtral_pipes.formats.frame import ByteSource, Frame
    from voxtral_pipes.stages.base import Hello, Outgoing, Stage

STDIN, STDOUT, STDERR = 0, 1, 2
DEADLY = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_interrupted = False
_last_acts: list[Callable[[], object]] = []


class Log:
    """Lines on stderr: `vx-mel: message`."""

    def __init__(self, command: str, level: int = 1) -> None:
        self.command = command
        self.level = level

    def error(self, message: str) -> None:
        """Print the one line of an error; never suppressed."""
        self._line(message)

    def warn(self, message: str) -> None:
        """Print what the user should know although work goes on; not under -q."""
        if self.level >= 1:
            self._line(f"warning: {message}")

    def note(self, message: str) -> None:
        """Print what was chosen; under -v only."""
        if self.level >= 2:
            self._line(message)

    def _line(self, message: str) -> None:
        # One line whatever the message holds: names and frames come from outside.
        text = "".join(c if c.isprintable() else "?" for c in message.replace("\n", " "))
        try:
            os.write(2, f"{self.command}: {text}\n".encode(errors="replace"))
        except OSError:
            return  # stderr is gone: nobody is left to tell


def run(parser: Parser, work: Callable[[argparse.Namespace, Log], int]) -> int:
    """Run a command: parse, work, and turn everything that can happen into an exit status.

    `work` returns the status; the errors it raises are printed here, in one line, unless it has reported them.
    """
    log = Log(parser.prog)
    try:
        _hold_standard_descriptors()
        _set_signals()
        parser.print_by(lambda text: Output(binary=False).write(text))
        args = parser.parse()
        log.level = _level(args)
        wait_briefly()
        return work(args, log)
    except BrokenPipeError:
        return _die_of(signal.SIGPIPE)
    except VoxError as error:
        if isinstance(error, TruncatedError) and _interrupted:
            return _die_of(signal.SIGINT)  # Ctrl-C reached the command before this one too
        log.error(str(error))
        return error.status
    except SystemExit:  # --help and --version
        raise
    except Exception as error:
        return internal_error(error, log)


def internal_error(error: Exception, log: Log) -> int:
    """Report what should not happen in one line; the traceback under -v."""
    told = explain(error)
    log.error(str(told))
    if log.level >= 2 and not isinstance(error, VoxError | OSError | MemoryError):
        traceback.print_exc()  # a bug: whoever asked for details will want to report it
    return told.status


def explain(error: Exception) -> VoxError:
    """Turn any exception into one with a message for the user."""
    if isinstance(error, VoxError):
        return error
    # torch has a class of its own for CUDA only; on the CPU it is known by its words.
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    ):
        return VoxError("out of memory; use a smaller or quantised model, or another --device")
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return VoxError(f"{where}{error.strerror or error}")
    lines = str(error).splitlines()
    said = f": {lines[0]}" if lines else ""
    return VoxError(
        f"internal error, {type(error).__name__}{said} (run with -v for the traceback, and report it)"
    )


def _hold_standard_descriptors() -> None:
    """Put something useless where stdin, stdout or stderr is closed, so that no file or socket gets its number.

    Reading such a stdin and writing such a stdout fails as before; what goes to such a stderr is lost.
    """
    for descriptor, flags in ((STDIN, os.O_WRONLY), (STDOUT, os.O_RDONLY), (STDERR, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest number that is free, which is this one


def _level(args: argparse.Namespace) -> int:
    if args.quiet:
        return 0
    if args.verbose:
        return 2
    wanted = os.environ.get("VX_LOG", "")
    levels = {"quiet": 0, "": 1, "verbose": 2}
    if wanted not in levels:
        raise UsageError(f"VX_LOG={wanted!r} is neither quiet nor verbose")
    return levels[wanted]


def _set_signals() -> None:
    """Make the first Ctrl-C harmless where stdin is a pipe (design.md section 9).

    The recorder dies of it, its EOF reaches this process, and the tail comes out.  A second one, or SIGTERM, ends
    the process by the signal itself.  A SIGINT that the shell has set to be ignored stays ignored.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # writes raise BrokenPipeError instead
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return
    signal.signal(signal.SIGINT, _first_interrupt if stdin_is_pipe() else signal.SIG_DFL)


def _first_interrupt(number: int, frame: FrameType | None) -> None:
    global _interrupted
    _interrupted = True
    signal.signal(signal.SIGINT, _deadly if _last_acts else signal.SIG_DFL)


def interrupted() -> bool:
    """Tell whether a first Ctrl-C has come that did not end this process."""
    return _interrupted


def survive_interrupt() -> None:
    """Survive the first Ctrl-C whatever stdin is: the command looks at `interrupted` and ends by itself."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _first_interrupt)


def before_death(act: Callable[[], object]) -> None:
    """Have `act` called, in the main thread, before a signal ends this process; call this in the main thread.

    That is SIGTERM, SIGHUP, the SIGINT that `_set_signals` lets end a command, and the SIGPIPE that `run` raises
    when the reader has gone away; an ordinary end and errors are the caller's own.  The latest act is first.  It
    must be quick and needs no lock: whatever the main thread does, it is interrupted between two bytecodes and
    does not go on.  What it raises is dropped.  Without any act signals keep their default action, which waits
    for no bytecode.
    """
    _last_acts.append(act)
    for number in DEADLY:
        if signal.getsignal(number) is signal.SIG_DFL:  # neither ignored (nohup) nor waiting for a first one
            signal.signal(number, _deadly)


def _deadly(number: int, frame: FrameType | None) -> None:
    _die_of(signal.Signals(number))


def stdin_is_pipe() -> bool:
    """Tell whether stdin is a pipe or socket."""
    try:
        mode = os.fstat(STDIN).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def reader_gone() -> bool:
    """Tell, without writing, whether stdout is a pipe or socket that nobody reads any more."""
    look = select.poll()
    look.register(STDOUT, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in look.poll(0))


def is_regular(descriptor: int) -> bool:
    """Tell whether a descriptor is a regular file: such input is not live."""
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        return False


def _die_of(number: signal.Signals) -> int:
    """End by a signal, so that the shell sees 128 + number; what `before_death` was told comes first."""
    if _last_acts:
        for other in DEADLY:  # an impatient second Ctrl-C must not cut the last acts short
            signal.signal(other, signal.SIG_IGN)
    while _last_acts:
        with contextlib.suppress(Exception):
            _last_acts.pop()()
    # Whatever Python still holds for stdout must not be written, nor complained about, at exit.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, STDOUT)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number  # not reached where the default action is to end the process


def open_stdin(wait: Callable[[int], object] = lambda descriptor: None) -> io.BufferedReader:
    """Return stdin for binary reading; `wait` is called with its descriptor before each read of it.

    Raises:
        UsageError: stdin is a terminal or closed.
    """
    try:
        closed = fcntl.fcntl(STDIN, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
    except OSError:
        closed = True
    if closed:
        raise UsageError("stdin is closed; pipe something in")
    if os.isatty(STDIN):
        raise UsageError("stdin is a terminal; pipe something in, or try --help")
    return io.BufferedReader(_Stdin(wait), 1 << 16)


def refuse_more(source: ByteSource) -> None:
    """Look behind the end of the pipe, at what has come already; for more nobody waits.

    Raises:
        BadInputError: there is something.
    """
    if isinstance(source, io.BufferedReader) and isinstance(source.raw, _Stdin):
        source.raw.at_hand = True
        if source.peek(1):
            raise BadInputError(
                "more follows the end of the pipe, and is not read: two outputs were joined on one pipe"
            )


def read_waiting(descriptor: int, size: int) -> bytes:
    """Read what is there, up to `size` bytes; nothing only at the end of the input.

    Another process may have made a shared descriptor non-blocking: it is waited for all the same.
    """
    while True:
        try:
            return os.read(descriptor, size)
        except BlockingIOError:
            select.select([descriptor], [], [])


class _Stdin(io.RawIOBase):
    """stdin by `read_waiting`; Python's own file object answers None where it would block, as if at the end."""

    def __init__(self, wait: Callable[[int], object]) -> None:
        self._wait = wait
        self.at_hand = False
        """What is not there yet counts as the end of the input."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        if self.at_hand and not select.select([STDIN], [], [], 0)[0]:
            return 0
        self._wait(STDIN)
        data = read_waiting(STDIN, len(view))
        view[: len(data)] = data
        return len(data)


class Output:
    """stdout: whole writes, one per frame or text, no buffer to lose."""

    def __init__(self, *, binary: bool, force: bool = False) -> None:
        if binary and not force and os.isatty(STDOUT):
            raise UsageError("stdout is a terminal and the output is binary; redirect it, pipe it, or say -f")

    def write(self, data: bytes) -> None:
        """Write all of `data`.

        Raises:
            BrokenPipeError: the reader has gone away.
            OutputError: the disk is full or the device fails.
        """
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(STDOUT, view) :]
            except BlockingIOError:
                select.select([], [STDOUT], [])
            except BrokenPipeError:
                raise
            except OSError as error:
                raise OutputError(f"cannot write to stdout: {error.strerror}") from error


def settle() -> None:
    """Have the collector of cycles look no more at what has been loaded.

    A command that has imported torch holds some 200,000 objects.  To look through them takes longer than a live tick
    has, and may fall into any of them.
    """
    gc.freeze()


def write_frames(frames: Iterable[Frame], output: Output) -> None:
    """Send frames, each in a write of its own."""
    from voxtral_pipes.formats.frame import encode

    for frame in frames:
        output.write(encode(frame))


def filter_frames(
    name: str,
    hello: Hello,
    make: Callable[[], Stage],
    source: ByteSource,
    output: Output,
    log: Log,
    *,
    rate_hz: int = 16000,
    through: Callable[[Iterable[Frame]], Iterable[Frame]] = lambda frames: frames,
) -> int:
    """Run a stage over frames: the body of every command that reads and writes them.

    `hello` is what the output will nominally be: it opens the pipe if the stage itself cannot be made, so that the
    error can travel to the commands behind.  The input goes `through` a function before `make` is called.
    """
    from voxtral_pipes.formats.frame import FrameReader
    from voxtral_pipes.stages.base import Drive, Outgoing

    outgoing = Outgoing(name)
    drive: Drive | None = None
    try:
        frames = through(passing_errors(FrameReader(source), log))
        drive = Drive(make(), frames, report=log.error, ready=settle)
        for frame in drive.run():
            write_frames([frame], output)
        if not drive.failed:
            refuse_more(source)
        return 1 if drive.failed else 0
    except (BrokenPipeError, OutputError):
        raise
    except Exception as error:
        if isinstance(error, TruncatedError) and _interrupted:
            return _die_of(signal.SIGINT)  # Ctrl-C reached the command before this one too
        first = None if drive and drive.said_hello else outgoing.hello(hello, rate_hz)
        return send_failure(error, outgoing, first, output, log)


def send_failure(error: Exception, outgoing: Outgoing, hello: Frame | None, output: Output, log: Log) -> int:
    """Print the one line of an error that ends the pipe, send it on, and return the exit status.

    `hello` is what must still go before the error; None if it has been sent.
    """
    status = internal_error(error, log)
    with contextlib.suppress(BrokenPipeError, OutputError):  # it has been told, whether or not anyone listens
        write_frames([hello] if hello else [], output)
        write_frames([outgoing.error(explain(error))], output)
    return status


def passing_errors(frames: Iterable[Frame], log: Log) -> Iterable[Frame]:
    """Yield frames; under -v, print the errors that come from commands before this one."""
    for frame in frames:
        if frame.kind == "error":
            log.note(f"{frame.fields.get('by', 'input')}: {frame.fields.get('msg', 'failed')}")
        yield frame
