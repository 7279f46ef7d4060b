"""Speech synthesis, stage by stage: in one process and through real pipes.

Weights are random unless -m names a model; those of the full size time like real ones.  They do not end an utterance
by themselves, so that all of --frames are made.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import precision, stage_memory
from benchmarks.pipe import speaking
from benchmarks.report import machine, median, peak_gb, percentile, show, synchronize
from voxtral_pipes.config import GUIDANCE, TTS_FRAME_TICKS, TTS_RATE_HZ, TtsConfig
from voxtral_pipes.formats.locate import locate_model
from voxtral_pipes.kernels import dispatch
from voxtral_pipes.kernels.precision import pick_precision
from voxtral_pipes.models.backbone import Backbone, Speaker
from voxtral_pipes.models.checkpoint import TtsCheckpoint
from voxtral_pipes.models.codec import Codec
from voxtral_pipes.models.codes import CODE_OFFSET
from voxtral_pipes.models.flow import Flow, Sampler
from voxtral_pipes.models.noise import frame_noise
from voxtral_pipes.models.prompt import PromptIds
from voxtral_pipes.models.tts_shapes import backbone_shapes, codec_shapes, flow_shapes
from voxtral_pipes.models.voices import PUBLISHED
from voxtral_pipes.models.weights import load_weights

ROOT = Path(__file__).resolve().parents[2]
FRAME_MS = 1000 * TTS_FRAME_TICKS / TTS_RATE_HZ
TEXT_TOKENS = 20
LINES = ("The first line warms the pipe.", "The quick brown fox jumps over the lazy dog.")


class Opened:
    """A model of which nothing is loaded yet."""

    def __init__(self, path: str, device: torch.device, dtype_name: str) -> None:
        self._checkpoint = checkpoint = TtsCheckpoint(locate_model(path))
        self.config: TtsConfig = checkpoint.config
        self.device = device
        config = self.config
        self._names = {
            "backbone": list(backbone_shapes(config.backbone)),
            "flow": list(flow_shapes(config.flow)),
            "codec": list(codec_shapes(config.codec, checkpoint.names)),
        }
        self.stored_bytes = {part: checkpoint.stored_bytes(names) for part, names in self._names.items()}
        self._dtype = dispatch.torch_dtype(
            pick_precision(dtype_name, checkpoint.unpacked_bytes(self._names["backbone"]))
        )
        self.precision = precision(checkpoint, self._names["backbone"], self._dtype)
        self._voice = torch.randn(PUBLISHED["casual_female"], config.backbone.dim)
        text = [PromptIds().n_special + i for i in range(TEXT_TOKENS)]
        self.prompt = PromptIds().prompt(text, len(self._voice), config.backbone.vocab_size)

    def speaker(self, backbone: Backbone, frames: int) -> Speaker:
        """Give the backbone a voice and memory for `frames`; on CUDA its steps are recorded."""
        return Speaker(backbone, self._voice, PromptIds().audio, frames)

    def backbone(self) -> Backbone:
        """Load the backbone."""
        return Backbone.of(self._load("backbone", self._dtype), self.config.backbone)

    def flow(self) -> Flow:
        """Load the flow head."""
        return Flow.of(self._load("flow", self._dtype), self.config.flow)

    def codec(self) -> Codec:
        """Load the codec, which computes in float32."""
        return Codec.of(self._load("codec", torch.float32), self.config.codec)

    def _load(self, part: str, dtype: torch.dtype) -> dict[str, Any]:
        return {**load_weights(self._checkpoint, self._names[part], self.device, dtype)}


class Loaded:
    """All three parts of a model in one process, and what loading them took."""

    def __init__(self, opened: Opened, frames: int) -> None:
        self.config, self.device, self.prompt = opened.config, opened.device, opened.prompt
        self.load_s: dict[str, float] = {}

        def timed(what: str, load: Callable[[], Any]) -> Any:
            started = time.perf_counter()
            part = load()
            synchronize(self.device)
            self.load_s[f"load {what} s"] = time.perf_counter() - started
            return part

        self.speaker = opened.speaker(timed("backbone", opened.backbone), frames)
        self.flow: Flow = timed("flow", opened.flow)
        self.codec: Codec = timed("codec", opened.codec)


def memory(opened: Opened, steps: int, frames: int) -> dict[str, float]:
    """Return what each part takes: in the file, and on the device after loading and over an utterance."""
    config, device = opened.config, opened.device
    row = [CODE_OFFSET] * (1 + config.flow.acoustic_dim)

    def speak(backbone: Backbone, _: str) -> None:
        speaker = opened.speaker(backbone, frames)
        speaker.begin(opened.prompt, frames)
        for _frame in range(frames - 1):
            speaker.next(row)

    def flow(part: Flow, _: str) -> None:
        sampler, hidden = (
            Sampler(part, steps, GUIDANCE),
            torch.zeros(1, config.flow.input_dim, dtype=part.dtype),
        )
        for frame in range(frames):
            sampler(hidden, frame_noise(1, 0, frame, config.flow.acoustic_dim), allow_end=False)

    def sound(codec: Codec, _: str) -> None:
        state = codec.new_state()
        codec.warm(state)
        for _frame in range(frames):
            codec.step(state, torch.tensor([[row]], device=device))

    stored, given = opened.stored_bytes, [f"{frames} frames"] if frames else []
    return {
        **stage_memory("backbone", stored["backbone"], device, opened.backbone, speak, given),
        **stage_memory("flow", stored["flow"], device, opened.flow, flow, given),
        **stage_memory("codec", stored["codec"], device, opened.codec, sound, given),
    }


def one_process(model: Loaded, steps: int, frames: int) -> dict[str, float]:
    """Run one utterance in a loop, each stage timed; the codec is timed in the loop too, although pipes overlap it."""
    times: dict[str, list[float]] = {"backbone": [], "flow": [], "codec": []}

    def timed(what: str, act: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = act()
        synchronize(model.device)
        times[what].append(1e3 * (time.perf_counter() - started))
        return result

    sampler = Sampler(model.flow, steps, GUIDANCE)
    state = model.codec.new_state()
    model.codec.warm(state)
    started = time.perf_counter()
    hidden = model.speaker.begin(model.prompt, frames).cpu()
    prefill = 1e3 * (time.perf_counter() - started)
    first = 0.0
    for frame in range(frames):
        noise = frame_noise(1, 0, frame, model.config.flow.acoustic_dim)
        row = timed("flow", lambda hidden=hidden, noise=noise: sampler(hidden, noise, allow_end=False))
        row = row if row[0] > 1 else [2, *row[1:]]  # random weights may end: the clock should go on
        codes = torch.tensor([[row]], device=model.device)
        timed("codec", lambda codes=codes: model.codec.step(state, codes)[0].cpu())
        first = first or 1e3 * (time.perf_counter() - started)
        hidden = timed("backbone", lambda row=row: model.speaker.next(row).cpu())
    # The first codec frame has other paddings than the rest.
    per_frame = {name: median(values[1:]) for name, values in times.items()}
    loop = per_frame["backbone"] + per_frame["flow"]
    return {
        "prefill ms": prefill,
        "prompt to first audio ms": first,
        **{f"{name} ms a frame": value for name, value in per_frame.items()},
        "backbone and flow p99 ms": percentile(
            [a + b for a, b in zip(times["backbone"], times["flow"], strict=True)], 0.99
        ),
        "RTF (backbone and flow)": loop / FRAME_MS,
    }


def piped(path: str, device: str, dtype: str, steps: int, frames: int) -> dict[str, float]:
    """Speak two lines through real pipes: cold from the start, then warm."""
    frame_bytes = 2 * TTS_FRAME_TICKS
    started = time.perf_counter()
    pipe = speaking(path, device, dtype, steps, frames)

    def say(line: str) -> tuple[float, list[float]]:
        """Write a line; return when, and when each frame of its sound had come."""
        pipe.stdin.write(f"{line}\n".encode())
        pipe.stdin.flush()
        written = time.perf_counter()
        came = []
        while len(came) < frames and len(pipe.read(frame_bytes)) == frame_bytes:
            came.append(time.perf_counter())
        pipe.note_peaks()
        return written, came

    _, cold = say(LINES[0])
    time.sleep(0.2)
    written, came = say(LINES[1])
    pipe.stdin.close()
    peaks = pipe.wait()
    if len(cold) < frames or len(came) < frames:
        raise SystemExit("the model ended an utterance by itself: the figures would be of another length")
    per_frame = 1e3 * (came[-1] - came[0]) / (len(came) - 1)
    gaps = [1e3 * (after - before) for before, after in pairwise(came)]
    return {
        "start to first audio s": cold[0] - started,
        "text to first audio, warm ms": 1e3 * (came[0] - written),
        "ms a frame": per_frame,
        "ms a frame p99": percentile(gaps, 0.99),
        "RTF": per_frame / FRAME_MS,
        **peaks,
    }


def options(arguments: list[str]) -> argparse.Namespace:
    """Parse the options of `scripts/bench tts`."""
    parser = argparse.ArgumentParser(prog="scripts/bench tts", description=__doc__)
    parser.add_argument("-m", "--model", help="model to measure (else a random one is made)")
    parser.add_argument("--size", choices=("tiny", "full"), default="tiny", help="of the random model")
    parser.add_argument("--format", choices=("safetensors", "gguf-q4", "gguf-q8"), default="safetensors")
    parser.add_argument("--frames", type=int, default=200, help="of 80 ms, of each utterance")
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 4, 7], help="Euler steps")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=("auto", "f32", "bf16"))
    parser.add_argument("--no-pipes", action="store_true", help="measure inside one process only")
    parser.add_argument(
        "--memory-frames", type=int,
        help="of the utterance over which device memory is measured (as --frames on CUDA; 0 leaves it out)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run `scripts/bench tts`."""
    args = options(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = args.model
        if path is None:
            path = folder
            maker = [sys.executable, str(ROOT / "scripts/make-random-model"), "tts", "--endless"]
            subprocess.run([*maker, "--size", args.size, "--format", args.format, folder], check=True)
        show(measure(args, path), args.json)
    return 0


def measure(args: argparse.Namespace, path: str) -> dict[str, dict[str, Any]]:
    """Run what was asked for and return the figures by section."""
    device = dispatch.pick_device(args.device)
    results: dict[str, dict[str, Any]] = {"machine": machine()}
    opened = Opened(path, device, args.dtype)
    how = opened.precision
    default = args.frames if device.type == "cuda" else 0
    watched = default if args.memory_frames is None else args.memory_frames
    results[f"memory of each stage, {how}"] = memory(opened, args.steps[0], watched)
    model = Loaded(opened, args.frames)
    results[f"one process, loading, {how}"] = {**model.load_s}
    one_process(model, args.steps[0], min(8, args.frames))  # first calls choose algorithms and fill caches
    for steps in args.steps:
        results[f"one process, n = {steps}, {how}"] = one_process(model, steps, args.frames)
    results["one process, memory"] = peak_gb(device)
    del model
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if not args.no_pipes:
        for steps in args.steps:
            heard = piped(path, args.device, args.dtype, steps, args.frames)
            results[f"real pipes, n = {steps}, {how}"] = heard
    return results
