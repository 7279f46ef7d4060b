"""vx-backbone: text ids on stdin, hidden states on stdout, codes back by a socket.  Latency: one frame."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from voxtral_pipes.cli import edge
from voxtral_pipes.cli.options import Parser, add_device, add_general, add_model, given_path, positive
from voxtral_pipes.cli.watch import Watch
from voxtral_pipes.config import MAX_FRAMES, TTS_RATE_HZ
from voxtral_pipes.errors import BadInputError, VoxError
from voxtral_pipes.formats.family import TTS

if TYPE_CHECKING:
    from voxtral_pipes.cli.feedback import Listener
    from voxtral_pipes.formats.frame import Frame
    from voxtral_pipes.formats.locate import ModelFiles
    from voxtral_pipes.formats.tekken import Tekken
    from voxtral_pipes.models.backbone import Speaker
    from voxtral_pipes.models.voices import Voice
    from voxtral_pipes.stages.backbone import BackboneStage, Codes

NAME = "vx-backbone"

DESCRIPTION = """\
Speak text: turn the token ids of vx-tokenize into hidden states, one for every 80 ms of speech.

input   frames with token ids 'i', a stream for each utterance: the ids of the text alone
output  tensor hidden [1,3072], f32 or bf16 as computed

Each state depends on the codes that vx-flow makes of the one before.  They come back by a socket
that hello announces, so vx-flow must be the next command, on this machine; tee may stand between."""


def parser() -> Parser:
    """Describe the command line."""
    result = Parser(
        NAME, DESCRIPTION, "echo hi | vx-tokenize | vx-backbone --voice casual_female | vx-flow | vx-codec | aplay"
    )  # fmt: skip
    group = result.add_argument_group("voice options")
    group.add_argument("--voice", metavar="NAME", help="who speaks: a name of --list-voices (casual_female)")
    group.add_argument(
        "--list-voices", action="store_true",
        help="print the voices of the model, one a line: name, language, rows; then exit",
    )  # fmt: skip
    group.add_argument(
        "--voices", metavar="DIR", type=given_path,
        help="where the embeddings of the voices are, NAME.pt or NAME.safetensors (voice_embedding beside the weights)",
    )  # fmt: skip
    group = result.add_argument_group("speech options")
    group.add_argument(
        "--max-frames", type=positive, metavar="N", default=MAX_FRAMES,
        help="end a stream after N frames of 80 ms although the model has not ended it (default 2048, 164 s)",
    )  # fmt: skip
    group.add_argument(
        "--codes", metavar="FILE", type=given_path,
        help="take the codes of each frame from a saved stream of codes (vx-flow | tee FILE) instead of from vx-flow",
    )  # fmt: skip
    add_model(result, TTS, what="where the weights are", tokenizer=True)
    add_device(result)
    add_general(result)
    return result


def main() -> int:
    """Run the command; return its exit status."""
    return edge.run(parser(), _work)


def _work(args: argparse.Namespace, log: edge.Log) -> int:
    if args.list_voices:
        return _list(args, log)
    loop = _Loop(args, log)
    source, output = edge.open_stdin(loop.wait), edge.Output(binary=True, force=args.force)
    edge.survive_interrupt()
    from voxtral_pipes.config import BackboneConfig
    from voxtral_pipes.stages.base import Hello

    hello = Hello({"hidden": {"d": "f32", "h": [-1, BackboneConfig().dim]}})
    try:
        return edge.filter_frames(
            NAME,
            hello,
            lambda: _make(args, loop, log),
            source,
            output,
            log,
            rate_hz=TTS_RATE_HZ,
            through=loop.until_end,
        )
    finally:
        loop.close()


class _Loop:
    """What closes the circle, made when the model is known to be there."""

    def __init__(self, args: argparse.Namespace, log: edge.Log) -> None:
        self._path: Path | None = args.codes
        self._log = log
        self._listener: Listener | None = None
        self._ended = False
        self.watch = Watch()
        """For the codes."""

    def codes(self, model: Mapping[str, str]) -> Codes:
        """Read the saved codes, or listen for vx-flow."""
        if self._path is not None:
            return _saved(self._path, model)
        from voxtral_pipes.cli.feedback import Listener

        self._listener = listener = Listener(self._log, edge.reader_gone, self.watch)
        edge.before_death(listener.close)
        listener.listen()
        return listener

    def wait(self, descriptor: int) -> None:
        """Wait for text.

        Raises:
            BrokenPipeError: vx-flow has gone meanwhile, and nobody is left to speak to.
        """
        # Behind the end of the text it goes when it likes.
        if self._listener is not None and not self._ended:
            self._listener.wait(descriptor)

    def until_end(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Pass on frames, and see whether they have come to the end of the pipe."""
        for frame in frames:
            self._ended = frame.stream is None and frame.kind in ("end", "error")
            yield frame

    def close(self) -> None:
        """Leave no socket behind."""
        if self._listener is not None:
            self._listener.close()


def _saved(path: Path, model: Mapping[str, str]) -> Codes:
    from voxtral_pipes.formats.frame import FrameReader
    from voxtral_pipes.stages.backbone import SavedCodes

    try:
        with path.open("rb") as file:
            return SavedCodes(FrameReader(file), model)
    except VoxError as error:
        raise type(error)(f"--codes {path}: {error}") from error
    except OSError as error:
        raise BadInputError(f"--codes {path}: {error.strerror or error}") from error


def _make(args: argparse.Namespace, loop: _Loop, log: edge.Log) -> BackboneStage:
    """Find out everything that hello says; torch is imported afterwards, when vx-flow knows where to answer."""
    from voxtral_pipes.formats.locate import locate_model
    from voxtral_pipes.kernels.precision import pick_precision
    from voxtral_pipes.models.checkpoint import TtsCheckpoint
    from voxtral_pipes.models.prompt import PromptIds
    from voxtral_pipes.models.tts_shapes import backbone_shapes
    from voxtral_pipes.models.voices import DEFAULT, pick
    from voxtral_pipes.stages.backbone import BackboneOptions, BackboneStage

    files = locate_model(args.model, TTS, log.warn)
    checkpoint = TtsCheckpoint(files)
    config = checkpoint.config.backbone
    tekken = _tekken(args, files, log)
    voice = pick(DEFAULT if args.voice is None else args.voice, _voices(args, files, tekken))
    ids = PromptIds() if tekken is None else PromptIds.of(tekken)
    names = list(backbone_shapes(config))
    precision = pick_precision(args.dtype, checkpoint.unpacked_bytes(names))

    def load() -> Speaker:
        from voxtral_pipes.cli.model import load_stage
        from voxtral_pipes.models.backbone import Backbone, Speaker
        from voxtral_pipes.models.voices import read_rows

        rows = read_rows(voice, config.dim)
        tensors = load_stage(checkpoint, names, args, log, precision)
        backbone = Backbone.of(tensors, config)
        loop.watch.begin(backbone.stack.device.type, log)
        return Speaker(backbone, rows, ids.audio, min(args.max_frames, config.max_positions))

    codes = loop.codes(checkpoint.identity)
    options = BackboneOptions(args.max_frames, edge.interrupted, log.warn)
    return BackboneStage(config, precision, load, codes, voice, ids, options, checkpoint.identity)


def _tekken(args: argparse.Namespace, files: ModelFiles, log: edge.Log) -> Tekken | None:
    from voxtral_pipes.cli.model import read_tekken

    without = "the published special ids are used, and the rows of voices are not checked"
    return read_tekken(args, files, log, TTS, without=without)


def _voices(args: argparse.Namespace, files: ModelFiles, tekken: Tekken | None) -> Mapping[str, Voice]:
    from voxtral_pipes.models.voices import FOLDER, row_table, voices_in

    folder = args.voices or files.weights[0].parent / FOLDER
    table = None if tekken is None else row_table(tekken.audio, tekken.name)
    return voices_in(folder if args.voices or folder.is_dir() else None, table)


def _list(args: argparse.Namespace, log: edge.Log) -> int:
    """Print the voices of the model."""
    from voxtral_pipes.formats.locate import locate_model
    from voxtral_pipes.models.checkpoint import TtsCheckpoint

    output = edge.Output(binary=False)
    files = locate_model(args.model, TTS, log.warn)
    TtsCheckpoint(files)  # what is no synthesis model has no voices
    voices = _voices(args, files, _tekken(args, files, log))
    lines = [f"{voice.name:<16} {voice.language:<3} {voice.rows or '-'}" for voice in voices.values()]
    output.write("".join(f"{line}\n" for line in lines).encode())
    return 0
