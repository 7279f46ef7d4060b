"""vx-flow: hidden states on stdin, codes on stdout and back to vx-backbone.  Latency: none."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from voxtral_pipes.cli import edge
from voxtral_pipes.cli.options import Parser, add_device, add_general, add_model, given_path, positive
from voxtral_pipes.cli.watch import Watch
from voxtral_pipes.config import GUIDANCE, MAX_EULER_STEPS, TTS_RATE_HZ
from voxtral_pipes.errors import BadInputError, UsageError
from voxtral_pipes.formats.family import TTS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from voxtral_pipes.formats.frame import Frame
    from voxtral_pipes.models.flow import Sampler
    from voxtral_pipes.stages.flow import Back, FlowOptions, FlowStage

NAME = "vx-flow"
MAX_GUIDANCE = 1000
MAX_NOISE_BYTES = 64 << 20
"""Of --noise through a pipe, which is held in memory; ten hours of speech."""

DESCRIPTION = """\
Turn the hidden states of vx-backbone into codes: one of meaning, 36 of sound, for every 80 ms.

input   tensor hidden [n,3072], f32 or bf16
output  tensor codes u16 [1,37]; the last row of a stream is END_AUDIO, 1 and then 2s

Behind vx-backbone it answers each state by the socket that hello announces; a saved stream of
hidden states gives codes as well."""


def parser() -> Parser:
    """Describe the command line."""
    result = Parser(NAME, DESCRIPTION, "vx-flow -m DIR --seed 7 < hidden.vx | vx-codec -m DIR > out.wav")
    group = result.add_argument_group("sampling options")
    group.add_argument(
        "-n", "--steps", type=_steps, metavar="N",
        help="Euler steps a frame: fewer are faster, more are better (7, or what the model says)",
    )  # fmt: skip
    group.add_argument(
        "--cfg", type=_guidance, metavar="A", default=GUIDANCE,
        help="weight of the text against no text: v = A v(text) + (1 - A) v(none) (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--seed", type=_seed, metavar="S",
        help="same seed, same codes, bit for bit on one device (else drawn; -v shows it, and the open frame holds it)",
    )  # fmt: skip
    group.add_argument(
        "--noise", type=given_path, metavar="FILE",
        help="take the noise from FILE instead of a seed, npy [frames,36]: row f is for frame f, the end too; one "
        "stream only",
    )  # fmt: skip
    group.add_argument(
        "--no-empty",
        action="store_true",
        help="do not let a stream end at its first frame, with nothing said",
    )
    add_model(result, TTS, what="where the weights are")
    add_device(result)
    add_general(result)
    return result


def main() -> int:
    """Run the command; return its exit status."""
    return edge.run(parser(), _work)


def _steps(text: str) -> int:
    steps = positive(text)
    if steps > MAX_EULER_STEPS:
        raise argparse.ArgumentTypeError(f"{steps} are too many; {MAX_EULER_STEPS} is the most")
    return steps


def _guidance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    if abs(value) > MAX_GUIDANCE:  # far beyond any use, and far from where float32 ends
        raise argparse.ArgumentTypeError(f"{text!r} is too much; {MAX_GUIDANCE} is the most")
    return value


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text[:21]) >= 1 << 64:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a whole number of 0 to 2^64 - 1")
    return int(text)


def _work(args: argparse.Namespace, log: edge.Log) -> int:
    watch = Watch()
    source, output = edge.open_stdin(watch.wait), edge.Output(binary=True, force=args.force)
    from voxtral_pipes.cli.feedback import Answers, connect
    from voxtral_pipes.config import FlowConfig
    from voxtral_pipes.stages.base import Hello

    back = Answers(None)

    def answering(frames: Iterable[Frame]) -> Iterable[Frame]:
        """Connect before anything is looked for or loaded: vx-backbone waits for it, and learns of what fails."""
        nonlocal back
        first = next(iter(frames := iter(frames)), None)
        if first is None:
            return frames
        if first.kind == "hello":
            back = connect(first, log)
        return chain([first], frames)

    hello = Hello({"codes": {"d": "u16", "h": [-1, 1 + FlowConfig().acoustic_dim]}})
    try:
        return edge.filter_frames(
            NAME,
            hello,
            lambda: _make(args, back, watch, log),
            source,
            output,
            log,
            rate_hz=TTS_RATE_HZ,
            through=answering,
        )
    finally:
        back.close()


def _make(args: argparse.Namespace, back: Back, watch: Watch, log: edge.Log) -> FlowStage:
    from voxtral_pipes.formats.locate import locate_model

    files = locate_model(args.model, TTS, log.warn)
    from voxtral_pipes.models.checkpoint import TtsCheckpoint
    from voxtral_pipes.models.tts_shapes import flow_shapes
    from voxtral_pipes.stages.flow import FlowStage

    checkpoint = TtsCheckpoint(files)
    config = checkpoint.config.flow
    options = _options(args, config.acoustic_dim, config.steps, log)

    def load() -> Sampler:
        from voxtral_pipes.cli.model import load_stage
        from voxtral_pipes.models.flow import Flow, Sampler

        tensors = load_stage(checkpoint, flow_shapes(config), args, log)
        flow = Flow.of(tensors, config)
        watch.begin(flow.device.type, log)
        return Sampler(flow, options.steps, options.guidance)

    return FlowStage(config, options, load, back, checkpoint.identity)


def _options(args: argparse.Namespace, width: int, default_steps: int, log: edge.Log) -> FlowOptions:
    import secrets

    from voxtral_pipes.stages.flow import FlowOptions

    if args.noise is not None and args.seed is not None:
        raise UsageError("--seed draws the noise that --noise gives: one of them")
    noise = None if args.noise is None else _noise(args.noise, width)
    seed = secrets.randbits(32) if args.seed is None else args.seed
    steps = default_steps if args.steps is None else args.steps
    log.note(
        f"{steps} steps, cfg {args.cfg:g}, " + (f"noise of {args.noise}" if args.noise else f"--seed {seed}")
    )
    return FlowOptions(steps, args.cfg, seed, noise, args.no_empty)


def _noise(path: Path, width: int) -> npt.NDArray[np.float32]:
    """Read --noise; a pipe, `<(...)` of the shell, becomes a file first, for it is mapped."""
    import tempfile

    from voxtral_pipes.models.noise import read_noise

    try:
        if not path.is_fifo():
            return read_noise(path, width)
        with path.open("rb") as pipe:
            data = pipe.read(MAX_NOISE_BYTES + 1)
        if len(data) > MAX_NOISE_BYTES:
            raise BadInputError(f"{path} gives over {MAX_NOISE_BYTES >> 20} MiB")
        with tempfile.NamedTemporaryFile(prefix="vx-noise-") as file:
            file.write(data)
            file.flush()
            try:
                return read_noise(Path(file.name), width)
            except BadInputError as error:
                raise BadInputError(str(error).replace(file.name, str(path))) from error
    except BadInputError as error:
        raise BadInputError(f"--noise {error}") from error
