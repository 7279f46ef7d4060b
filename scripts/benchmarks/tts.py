"""Speech synthesis, stage by stage: in one process and through real pipes.

Weights are random unless -m names a model; random weights of the full size time like real ones, and do not end an
utterance by themselves, so that all of --frames are made.
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

from benchmarks.pipe import speaking
from benchmarks.report import machine, median, peak_gb, percentile, show, synchronize
from voxtral_pipes.config import TTS_FRAME_TICKS, TTS_RATE_HZ, TtsConfig
from voxtral_pipes.formats.locate import locate_model
from voxtral_pipes.kernels import dispatch
from voxtral_pipes.kernels.precision import pick_precision
from voxtral_pipes.models.backbone import Backbone, Speaker
from voxtral_pipes.models.checkpoint import TtsCheckpoint
from voxtral_pipes.models.codec import Codec
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
GUIDANCE = 1.2


class Loaded:
    """All three parts of a model in one process, and what loading them took."""

    def __init__(self, path: str, device: torch.device, dtype_name: str, frames: int) -> None:
        checkpoint = TtsCheckpoint(locate_model(path))
        self.config: TtsConfig = checkpoint.config
        self.device = device
        self.load_s: dict[str, float] = {}
        config = self.config
        names = list(backbone_shapes(config.backbone))
        self.dtype = dispatch.torch_dtype(pick_precision(dtype_name, checkpoint.stored_bytes(names)))

        def part(what: str, wanted: list[str], dtype: torch.dtype, make: Callable[[Any], Any]) -> Any:
            started = time.perf_counter()
            made = make(load_weights(checkpoint, wanted, device, dtype))
            synchronize(device)
            self.load_s[f"load {what} s"] = time.perf_counter() - started
            return made

        voice = torch.randn(PUBLISHED["casual_female"], config.backbone.dim)
        backbone = part("backbone", names, self.dtype, lambda t: Backbone.of(t, config.backbone))
        self.speaker = Speaker(backbone, voice, PromptIds().audio, frames)
        self.flow = part(
            "flow", list(flow_shapes(config.flow)), self.dtype, lambda t: Flow.of(t, config.flow)
        )
        wanted = list(codec_shapes(config.codec, checkpoint.names))
        self.codec = part("codec", wanted, torch.float32, lambda t: Codec.of(t, config.codec))
        text = [PromptIds().n_special + i for i in range(TEXT_TOKENS)]
        self.prompt = PromptIds().prompt(text, len(voice), config.backbone.vocab_size)


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
        while len(came) < frames and len(pipe.stdout.read(frame_bytes)) == frame_bytes:
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
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run `scripts/bench tts`."""
    args = options(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = args.model
        if path is None:
            path = folder
            maker = [sys.executable, str(ROOT / "scripts/make-random-model"), "tts"]
            subprocess.run([*maker, "--size", args.size, "--format", args.format, folder], check=True)
        show(measure(args, path), args.json)
    return 0


def measure(args: argparse.Namespace, path: str) -> dict[str, dict[str, Any]]:
    """Run what was asked for and return the figures by section."""
    device = dispatch.pick_device(args.device)
    results: dict[str, dict[str, Any]] = {"machine": machine()}
    model = Loaded(path, device, args.dtype, args.frames)
    results["one process, loading"] = {**model.load_s}
    one_process(model, args.steps[0], min(8, args.frames))  # first calls choose algorithms and fill caches
    for steps in args.steps:
        results[f"one process, n = {steps}, {model.dtype}"] = one_process(model, steps, args.frames)
    results["one process, memory"] = peak_gb(device)
    del model
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if not args.no_pipes:
        for steps in args.steps:
            results[f"real pipes, n = {steps}"] = piped(path, args.device, args.dtype, steps, args.frames)
    return results
