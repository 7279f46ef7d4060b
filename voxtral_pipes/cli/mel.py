"""vx-mel(1): audio to log-mel frames."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from voxtral_pipes.cli import edge
from voxtral_pipes.cli.options import Parser, add_general, given, natural, positive
from voxtral_pipes.config import DELAYS_MS, AudioConfig
from voxtral_pipes.errors import BadInputError, OutputError, UsageError, VoxError

if TYPE_CHECKING:
    from voxtral_pipes.formats.wav import PcmFormat
    from voxtral_pipes.stages.base import Outgoing
    from voxtral_pipes.stages.mel import MelStage

NAME = "vx-mel"
READ_BYTES = 1 << 16


def parser() -> Parser:
    """Declare the options of vx-mel."""
    nominal = AudioConfig()
    result = Parser(
        NAME,
        "Turn WAV or bare samples (stdin, or files) into log-mel frames (stdout: tensors mel [n,128] and "
        "level), padded for recognition. Several files become the streams 0, 1, ... of one pipe.",
        "arecord -q -f S16_LE -r 16000 -c 1 | vx-mel | vx-encode -m DIR | vx-decode -m DIR | vx-detok -m DIR",
    )
    result.add_argument("files", nargs="*", type=given, metavar="FILE", help="WAV files; - or none is stdin")
    result.add_argument(
        "--raw",
        metavar="FMT:RATE:CH",
        help="the input is bare little-endian samples: u8, s16le, s24le, s24-32le, s32le, f32le, f64le, alaw "
        "or mulaw; for example s16le:16000:1",
    )
    result.add_argument(
        "--channel", type=natural, metavar="K", help="take channel K, from 0 (else the mean of all)"
    )
    result.add_argument(
        "--delay-ms",
        type=positive,
        metavar="MS",
        help="delay of the text behind the audio: 80 to 1200 in steps of 80, or 2400 "
        f"(else {nominal.delay_ms}); longer is more accurate",
    )
    result.add_argument(
        "--left-pad",
        type=natural,
        metavar="N",
        help=f"silence before the audio, in tokens of 80 ms (else {nominal.left_pad_tokens})",
    )
    result.add_argument(
        "--no-right-pad",
        action="store_true",
        help="no silence after the audio; the last words may not come out",
    )
    result.add_argument(
        "-m",
        "--model",
        type=given,
        metavar="PATH",
        help="take the audio settings of the tekken.json of this model, or of this tekken.json",
    )
    add_general(result)
    return result


def work(args: argparse.Namespace, log: edge.Log) -> int:
    """Run the command."""
    names: list[str] = args.files or ["-"]
    if names.count("-") > 1:
        raise UsageError("- (stdin) can be read once only")
    if "-" in names:
        edge.open_stdin()  # for its checks; the descriptor itself is read, unbuffered
    output = edge.Output(binary=True, force=args.force)
    from voxtral_pipes.formats.wav import parse_raw
    from voxtral_pipes.stages.base import Outgoing
    from voxtral_pipes.stages.mel import mel_hello

    outgoing = Outgoing(NAME)
    said_hello = False
    try:
        if args.delay_ms is not None and args.delay_ms not in DELAYS_MS:
            raise UsageError(
                f"--delay-ms {args.delay_ms}: the model knows 80 to 1200 in steps of 80, and 2400"
            )
        raw = parse_raw(args.raw) if args.raw is not None else None
        stage = _stage(args)
        edge.write_frames([outgoing.hello(stage.hello(), stage.config.rate_hz)], output)
        said_hello = True
        log.note(f"delay {stage.delay_tokens} tokens, left padding {stage.left_pad_tokens}")
        return Inputs(names, args, raw, stage, outgoing, output, log).send()
    except (BrokenPipeError, OutputError):
        raise
    except Exception as error:
        nominal = AudioConfig()
        hello = None if said_hello else outgoing.hello(mel_hello(nominal), nominal.rate_hz)
        return edge.send_failure(error, outgoing, hello, output, log)


def _stage(args: argparse.Namespace) -> MelStage:
    from voxtral_pipes.stages.mel import MelStage

    config = settings_of(args.model) if args.model is not None else AudioConfig()
    delay_ms = config.delay_ms if args.delay_ms is None else args.delay_ms
    return MelStage(
        config,
        delay_tokens=delay_ms // config.token_ms,
        left_pad_tokens=config.left_pad_tokens if args.left_pad is None else args.left_pad,
        right_pad=not args.no_right_pad,
    )


def settings_of(model: str) -> AudioConfig:
    """Read the audio settings that -m names: those of its tekken.json, and of the params.json beside that."""
    from voxtral_pipes.formats.locate import locate_tekken
    from voxtral_pipes.models.audio_settings import audio_config

    tekken = locate_tekken(model)
    params = tekken.with_name("params.json")
    return audio_config(tekken, params if params.is_file() else None)


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of one run, and where their frames go."""

    names: list[str]
    args: argparse.Namespace
    raw: PcmFormat | None
    stage: MelStage
    outgoing: Outgoing
    output: edge.Output
    log: edge.Log

    def send(self) -> int:
        """Send every input as a stream; one that fails is reported and does not stop the others."""
        from voxtral_pipes.formats.frame import Frame

        status = 0
        for number, name in enumerate(self.names):
            label = "" if name == "-" else f"{name}: "
            try:
                self._send_one(number, name, label)
            except OutputError:
                raise
            except VoxError as error:
                told = type(error)(f"{label}{error}")
                if len(self.names) == 1:
                    raise told from error  # nothing else can come: the error ends the pipe
                self.log.error(str(told))
                edge.write_frames([self.outgoing.error(told, number)], self.output)
                status = 1
        edge.write_frames([Frame("end")], self.output)
        return status

    def _send_one(self, number: int, name: str, label: str) -> None:
        from voxtral_pipes.stages.mel import Source, source_frames

        with _opened(name) as descriptor:
            source = Source(
                name="stdin" if name == "-" else os.fsencode(name).decode(errors="replace"),
                live=not edge.is_regular(descriptor),
                warn=lambda line: self.log.warn(label + line),
                raw=self.raw,
                channel=self.args.channel,
            )
            pieces = _pieces(descriptor)
            edge.write_frames(source_frames(self.stage, source, pieces, number, self.outgoing), self.output)


@contextmanager
def _opened(name: str) -> Iterator[int]:
    if name == "-":
        yield edge.STDIN
        return
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise BadInputError(f"cannot be opened: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _pieces(descriptor: int) -> Iterator[bytes]:
    """Read what is there, however little: 20 ms of input is to be seen after 20 ms."""
    while True:
        try:
            piece = edge.read_waiting(descriptor, READ_BYTES)
        except OSError as error:
            raise BadInputError(f"the input cannot be read: {error.strerror}") from error
        if not piece:
            return
        yield piece


def main() -> int:
    """Run vx-mel and return its exit status."""
    return edge.run(parser(), work)
