"""vx-codec: codes on stdin, sound on stdout.  Latency: none on the CPU, up to seven rows on CUDA."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from voxtral_pipes.cli import edge
from voxtral_pipes.cli.options import Parser, add_device, add_general, add_model, folder, gap
from voxtral_pipes.errors import OutputError, UsageError
from voxtral_pipes.formats.family import TTS
from voxtral_pipes.formats.wav_writer import FORMATS

if TYPE_CHECKING:
    from voxtral_pipes.cli.ahead import ReadAhead
    from voxtral_pipes.cli.sound import Sink
    from voxtral_pipes.config import CodecConfig
    from voxtral_pipes.formats.frame import Frame
    from voxtral_pipes.stages.codec import CodecStage

NAME, NEEDS = "vx-codec", "codes"

DESCRIPTION = """\
Turn the codes of vx-flow into sound: the last command of speech synthesis.

input   frames with the tensor codes u16 [n,37], a row for 80 ms
output  sound of 24000 Hz, one channel, 1920 samples for each row; on CUDA a few rows at a time,
        but for the first four

formats
  wav   WAV of 16-bit samples, clipped to their range
  raw   the same samples without a header: s16le:24000:1
  f32   WAV of 32-bit float samples, not clipped

Several streams are written one after the other, in the order in which they were opened, and the
codes of later ones are held in memory; --out-dir writes each to a file of its own instead.  The
sizes in the header of a WAV are set at the end where stdout is a file.  Input is read ahead, so
that a slow player does not stop the commands before this one."""


def parser() -> Parser:
    """Describe the command line."""
    result = Parser(
        NAME, DESCRIPTION, "echo hi | vx-tokenize | vx-backbone | vx-flow | vx-codec | aplay -q"
    )  # fmt: skip
    add_model(result, TTS, what="where the weights are")
    add_device(result, auto_dtype="f32, for the sake of the sound")
    group = result.add_argument_group("output options")
    group.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="what to write (wav)")
    group.add_argument(
        "--gap-ms", type=gap, metavar="N", help="silence between two streams, in milliseconds (0)"
    )
    group.add_argument(
        "--out-dir", type=folder, metavar="DIR",
        help="write each stream to a file in DIR, which is made: 00000.wav and so on, .raw without a header, by the "
        "number of the stream; a file has its name once it is whole",
    )  # fmt: skip
    add_general(result, what="data")
    return result


def main() -> int:
    """Run the command; return its exit status."""
    return edge.run(parser(), _work)


def _work(args: argparse.Namespace, log: edge.Log) -> int:
    if args.out_dir is not None and args.gap_ms is not None:
        raise UsageError("--gap-ms is for streams that follow one another, and --out-dir keeps them apart")
    edge.open_stdin()
    output = _output(args)
    from voxtral_pipes.cli.ahead import ReadAhead
    from voxtral_pipes.cli.sound import play
    from voxtral_pipes.formats.frame import FrameReader
    from voxtral_pipes.stages.base import Drive
    from voxtral_pipes.stages.turns import Turns

    source = ReadAhead(functools.partial(edge.read_waiting, edge.STDIN))
    stage = make(args, source, log)
    sink = _sink(args, output, stage.codec.config.rate_hz, log)
    rows = _Rows(edge.passing_errors(FrameReader(source), log))
    frames = rows if output is None else Turns(rows, NEEDS, NAME).run()
    drive = Drive(stage, frames, report=log.error, ready=edge.settle)
    try:
        play(drive.run(), sink)
    finally:
        sink.close()
        log.note(rows.told(source, stage.codec.config))
    return 1 if drive.failed else 0


class _Rows:
    """Counts the rows of codes that have been taken from the input."""

    def __init__(self, frames: Iterable[Frame]) -> None:
        self._frames = frames
        self._bytes = 0

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._frames:
            codes = frame.tensors.get(NEEDS)
            self._bytes += len(codes.data) if codes else 0
            yield frame

    def told(self, source: ReadAhead, config: CodecConfig) -> str:
        """Say how far `source` was ahead, in rows as long as those that have come were on average."""
        share = source.most_bytes / max(1, source.taken_bytes)
        rows = round(self._bytes * share) // (2 * (1 + config.acoustic_dim))
        seconds = rows * config.frame_samples / config.rate_hz
        return (
            f"read ahead at most {source.most_bytes} bytes, about {rows} frames or {seconds:.1f} s of sound"
        )


def _output(args: argparse.Namespace) -> edge.Output | None:
    """Check where the sound is to go, before anything is loaded; None: into `--out-dir`."""
    if args.out_dir is None:
        return edge.Output(binary=True, force=args.force)
    try:
        args.out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--out-dir {args.out_dir}: {error.strerror}") from error
    return None


def _sink(args: argparse.Namespace, output: edge.Output | None, rate_hz: int, log: edge.Log) -> Sink:
    from voxtral_pipes.cli.sound import SoundFiles, SoundOut
    from voxtral_pipes.formats.wav_writer import SoundFormat

    form = SoundFormat(args.format, rate_hz)
    if output is None:
        return SoundFiles(form, args.out_dir, log)
    return SoundOut(form, output, args.gap_ms or 0)


def make(args: argparse.Namespace, source: ReadAhead, log: edge.Log) -> CodecStage:
    """Load the codec; input that is not for it is refused on the way, as soon as that is known."""
    from voxtral_pipes.formats.locate import locate_model
    from voxtral_pipes.models.checkpoint import TtsCheckpoint
    from voxtral_pipes.models.tts_shapes import codec_shapes

    checkpoint = TtsCheckpoint(locate_model(args.model, TTS, log.warn))
    source.check_hello(NEEDS, NAME, checkpoint.identity)
    # Only now torch, which takes a second to import.
    from voxtral_pipes.cli.model import load_stage
    from voxtral_pipes.models.codec import Codec
    from voxtral_pipes.stages.codec import CodecStage

    source.check_hello(NEEDS, NAME, checkpoint.identity)
    config = checkpoint.config.codec
    names = codec_shapes(config, checkpoint.names)
    tensors = load_stage(checkpoint, names, args, log, "f32" if args.dtype == "auto" else None)
    return CodecStage(Codec.of(tensors, config), checkpoint.identity)
