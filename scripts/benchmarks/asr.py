"""Speech recognition, stage by stage: in one process, through real pipes, live, and beside transformers.

Weights are random unless -m names a model; random weights of the full size time like real ones.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.asr_transformers import transformers_run
from benchmarks.memory import precision, stage_memory
from benchmarks.pipe import hearing
from benchmarks.products import Products, seconds_of
from benchmarks.report import machine, median, peak_gb, percentile, show, synchronize
from voxtral_pipes.config import AsrConfig, AudioConfig
from voxtral_pipes.formats.frame import Frame
from voxtral_pipes.formats.locate import locate_model
from voxtral_pipes.formats.wav import parse_raw
from voxtral_pipes.kernels import dispatch
from voxtral_pipes.kernels.precision import pick_precision
from voxtral_pipes.models.checkpoint import AsrCheckpoint
from voxtral_pipes.models.decode import Decoder
from voxtral_pipes.models.encode import Encoder
from voxtral_pipes.models.shapes import decoder_shapes, encoder_shapes
from voxtral_pipes.models.weights import load_weights
from voxtral_pipes.stages.base import Drive, Outgoing
from voxtral_pipes.stages.decode import DecodeStage
from voxtral_pipes.stages.encode import EncodeStage
from voxtral_pipes.stages.mel import MelStage, Source, source_frames

ROOT = Path(__file__).resolve().parents[2]
RATE_HZ = 16000
TICK_SAMPLES = 1280
MEMORY_S = 60.0


def noise(seconds: float) -> np.ndarray:
    """Make audio that is no silence: float32 noise at -26 dBFS, always the same."""
    rng = np.random.default_rng(1)
    return (0.05 * rng.standard_normal(int(seconds * RATE_HZ))).astype(np.float32)


def wav(audio: np.ndarray) -> bytes:
    """Wrap audio as a 16-bit WAV file."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(pcm(audio))
    return out.getvalue()


class Opened:
    """A model of which nothing is loaded yet."""

    def __init__(self, path: str, device: torch.device, dtype_name: str) -> None:
        self._checkpoint = checkpoint = AsrCheckpoint(locate_model(path))
        self.config: AsrConfig = checkpoint.config
        self.device = device
        self._encoder, self._decoder = list(encoder_shapes(self.config)), list(decoder_shapes(self.config))
        self.stored_bytes = [checkpoint.stored_bytes(names) for names in (self._encoder, self._decoder)]
        self.dtype = dispatch.torch_dtype(
            pick_precision(dtype_name, checkpoint.unpacked_bytes(self._encoder))
        )
        self.precision = precision(checkpoint, (*self._encoder, *self._decoder), self.dtype)

    def encoder(self) -> Encoder:
        """Load one half."""
        tensors = load_weights(self._checkpoint, self._encoder, self.device, self.dtype)
        return Encoder.of(tensors, self.config.encoder)

    def decoder(self) -> Decoder:
        """Load the other half."""
        tensors = load_weights(self._checkpoint, self._decoder, self.device, self.dtype)
        return Decoder.of(tensors, self.config.decoder)


class Loaded:
    """Both halves of a model and what loading them took."""

    def __init__(self, opened: Opened) -> None:
        self.config, self.device, self.dtype = opened.config, opened.device, opened.dtype
        self.load_s: list[float] = []

        def timed(load: Callable[[], Any]) -> Any:
            started = time.perf_counter()
            part = load()
            synchronize(self.device)
            self.load_s.append(time.perf_counter() - started)
            return part

        self.encode = EncodeStage(timed(opened.encoder), self.config)
        self.decode = DecodeStage(timed(opened.decoder), self.config)


def memory(opened: Opened, seconds: Sequence[float]) -> dict[str, float]:
    """Return what each half takes: in the file, and on the device after loading and over files of so many seconds."""
    config = opened.config
    frames = {f"{length:g} s": mel_of(noise(length), live=False) for length in seconds}

    def encode(encoder: Encoder, given: str) -> None:
        frames[given] = list(Drive(EncodeStage(encoder, config), frames[given]).run())

    def decode(decoder: Decoder, given: str) -> None:
        for _ in Drive(DecodeStage(decoder, config), frames[given]).run():
            pass

    inputs, (encoder_bytes, decoder_bytes) = list(frames), opened.stored_bytes
    return {
        **stage_memory("encoder", encoder_bytes, opened.device, opened.encoder, encode, inputs),
        **stage_memory("decoder", decoder_bytes, opened.device, opened.decoder, decode, inputs),
    }


def file_run(model: Loaded, audio: np.ndarray) -> dict[str, float]:
    """Run the stages one after the other over a whole file, timing each."""
    seconds = len(audio) / RATE_HZ
    times = {}
    started = time.perf_counter()
    mel_frames = mel_of(audio, live=False)
    times["mel ms"] = 1e3 * (time.perf_counter() - started)
    started = time.perf_counter()
    embeds = list(Drive(model.encode, mel_frames).run())
    times["encode ms"] = 1e3 * (time.perf_counter() - started)
    started = time.perf_counter()
    ids = sum(len(f.ids or ()) for f in Drive(model.decode, embeds).run())
    times["decode ms"] = 1e3 * (time.perf_counter() - started)
    times["total ms"] = sum(times.values())
    times["tokens"] = ids
    times["tok/s"] = 1e3 * ids / times["decode ms"]
    times["RTF"] = times["total ms"] / 1e3 / seconds
    return times


def mel_of(audio: np.ndarray, live: bool) -> list[Any]:
    """Run the mel stage over one stream and return its frames."""
    stage = mel_stage(AudioConfig())
    outgoing = Outgoing("vx-mel")
    source = Source(name="bench", live=live, warn=lambda line: None, raw=parse_raw(f"s16le:{RATE_HZ}:1"))
    data = pcm(audio)
    pieces = [data[i : i + 65536] for i in range(0, len(data), 65536)]
    return [
        outgoing.hello(stage.hello(), RATE_HZ),
        *source_frames(stage, source, pieces, 0, outgoing),
        Frame("end"),
    ]


def mel_stage(config: AudioConfig) -> MelStage:
    """Make the stage with the settings of the model."""
    return MelStage(
        config, delay_tokens=config.delay_ms // config.token_ms, left_pad_tokens=config.left_pad_tokens
    )


def pcm(audio: np.ndarray) -> bytes:
    """Turn float32 samples into s16le."""
    return (np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes()


def live_ticks(model: Loaded, audio: np.ndarray, paced: bool) -> dict[str, float]:
    """Feed 80 ms at a time, at the speed of speech if `paced`, and time each tick from audio to token."""
    mel, _ = mel_stage(model.config.audio).open(RATE_HZ, live=True, source="bench")
    encoder, meta = model.encode.open(0, {"live": True})
    decoder, _ = model.decode.open(0, meta)
    ticks: list[float] = []
    first = 0.0
    started = time.perf_counter()
    for number in range(len(audio) // TICK_SAMPLES):
        due = started + (number + 1) * TICK_SAMPLES / RATE_HZ
        if paced and (wait := due - time.perf_counter()) > 0:
            time.sleep(wait)
        begun = time.perf_counter()
        heard = 0
        for piece in mel.push(audio[number * TICK_SAMPLES : (number + 1) * TICK_SAMPLES]):
            for rows in encoder.push(piece.frame()):
                heard += sum(1 for _ in decoder.push(rows.frame()))
        if heard and not first:
            first = time.perf_counter() - started
        if heard == 1:
            ticks.append(1e3 * (time.perf_counter() - begun))
    return {
        "first sample to first token ms": 1e3 * first,
        "ticks": len(ticks),
        "tick p50 ms": percentile(ticks, 0.5),
        "tick p99 ms": percentile(ticks, 0.99),
        "tick max ms": max(ticks, default=float("nan")),
    }


def piped_file(path: str, device: str, dtype: str, audio: np.ndarray) -> dict[str, float]:
    """Run a file through real pipes, starts and loading included."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        file.write(wav(audio))
        file.flush()
        started = time.perf_counter()
        with Path(file.name).open("rb") as source:
            pipe = hearing(path, device, dtype, source)
        first = None
        lines = 0
        for _ in pipe.stdout:
            first = first or time.perf_counter() - started
            lines += 1
            pipe.note_peaks()
        total = time.perf_counter() - started
        return {
            "wall s": total,
            "start to first token s": first or float("nan"),
            "first token to last s": total - (first or float("nan")),
            "tokens": lines,
            **pipe.wait(),
        }


def recorded_products(model: Loaded, audio: np.ndarray) -> dict[str, Products]:
    """Run the stages over a whole file and return the products of each."""
    made = {"encoder": Products(), "decoder": Products()}
    mel_frames = mel_of(audio, live=False)
    with made["encoder"]:
        embeds = list(Drive(model.encode, mel_frames).run())
    with made["decoder"]:
        for _ in Drive(model.decode, embeds).run():
            pass
    return made


def times_of(products: Mapping[str, Products]) -> dict[str, float]:
    """Time the products of each stage, and of all."""
    times = {f"{name} s": seconds_of(part.made) for name, part in products.items()}
    return {**times, "sum s": sum(times.values())}


def piped_live(path: str, device: str, dtype: str, audio: np.ndarray, delay_tokens: int) -> dict[str, float]:
    """Feed a warm pipe at the speed of speech and time each token from the audio that completes it."""
    pipe = hearing(path, device, dtype, subprocess.PIPE)
    samples = np.frombuffer(pcm(audio), "<i2")
    sent: list[float] = []
    arrived: list[tuple[int, float]] = []

    def read() -> None:
        for _ in pipe.stdout:
            arrived.append((len(arrived), time.perf_counter()))
            pipe.note_peaks()

    def lead(count: int) -> None:
        """Send audio before the clock starts: the pipe loads, and answers with its first token."""
        pipe.stdin.write(samples[: count * TICK_SAMPLES].tobytes())
        pipe.stdin.flush()
        while not arrived:
            time.sleep(0.005)

    reader = threading.Thread(target=read)
    reader.start()
    warm = delay_tokens + 2
    lead(warm)
    time.sleep(0.5)
    started = time.perf_counter()
    n_ticks = len(samples) // TICK_SAMPLES
    for number in range(warm, n_ticks):
        due = started + (number - warm) * TICK_SAMPLES / RATE_HZ
        time.sleep(max(0.0, due - time.perf_counter()))
        pipe.stdin.write(samples[number * TICK_SAMPLES : (number + 1) * TICK_SAMPLES].tobytes())
        pipe.stdin.flush()
        sent.append(time.perf_counter())
    pipe.stdin.close()
    reader.join()
    # Tick k of the audio completes position left_pad + k - 1 (the last 2.5 ms of its mel lie in the next tick), and
    # the first token is that of position left_pad + delay.
    known = dict(arrived)
    delays = [
        1e3 * (known[token] - when)
        for number, when in enumerate(sent, start=warm)
        if (token := number - 1 - delay_tokens) in known
    ]
    return {
        "ticks": len(delays),
        "audio to token p50 ms": percentile(delays, 0.5),
        "audio to token p99 ms": percentile(delays, 0.99),
        **pipe.wait(),
    }


def options(arguments: list[str]) -> argparse.Namespace:
    """Parse the options of `scripts/bench asr`."""
    parser = argparse.ArgumentParser(prog="scripts/bench asr", description=__doc__)
    parser.add_argument("-m", "--model", help="model to measure (else a random one is made)")
    parser.add_argument("--size", choices=("tiny", "full"), default="tiny", help="of the random model")
    parser.add_argument(
        "--format", choices=("safetensors", "hf", "gguf-q4", "gguf-q8"), default="safetensors"
    )
    parser.add_argument("--seconds", type=float, default=16.0, help="audio of the file run")
    parser.add_argument(
        "--live-seconds", type=float, default=16.0, help="audio of the paced runs; 0 leaves them out"
    )
    parser.add_argument("--repeat", type=int, default=3, help="file runs; the median is shown")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=("auto", "f32", "bf16"))
    parser.add_argument("--no-pipes", action="store_true", help="measure inside one process only")
    parser.add_argument(
        "--compare",
        choices=("transformers", "products"),
        help="time in the same run: transformers' generate(), or our own matrix products and nothing else (CPU)",
    )
    parser.add_argument(
        "--memory-seconds", type=float,
        help="audio, beside that of the file run, over which device memory is measured (60 on CUDA; 0 leaves it out)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    if args.compare == "products" and args.no_pipes:
        parser.error("--compare products times them before and after real pipes: not with --no-pipes")
    if args.compare == "transformers" and find_spec("transformers") is None:
        parser.error(
            "--compare transformers: it is not installed; `scripts/setup` installs it, with the tests"
        )
    return args


def main(arguments: list[str]) -> int:
    """Run `scripts/bench asr`."""
    args = options(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = args.model
        if path is None:
            path = folder
            maker = [sys.executable, str(ROOT / "scripts/make-random-model"), "asr"]
            subprocess.run([*maker, "--size", args.size, "--format", args.format, folder], check=True)
        show(measure(args, path), args.json)
    return 0


def measure(args: argparse.Namespace, path: str) -> dict[str, dict[str, Any]]:
    """Run what was asked for and return the figures by section."""
    device = dispatch.pick_device(args.device)
    if args.compare == "products" and device.type != "cpu":
        raise SystemExit("--compare products: on a CPU only; on a GPU a step is one graph")
    results: dict[str, dict[str, Any]] = {"machine": machine()}
    opened = Opened(path, device, args.dtype)
    how = opened.precision
    default = MEMORY_S if device.type == "cuda" else 0
    longer = default if args.memory_seconds is None else args.memory_seconds
    results[f"memory of each stage, {how}"] = memory(opened, [args.seconds, longer] if longer else [])
    model = Loaded(opened)
    audio = noise(args.seconds)
    file_run(model, noise(2.0))  # first calls choose algorithms and fill caches
    runs = [file_run(model, audio) for _ in range(args.repeat)]
    results[f"one process, file of {args.seconds:g} s, {how}"] = {
        "load encoder s": model.load_s[0],
        "load decoder s": model.load_s[1],
        **{name: median([run[name] for run in runs]) for name in runs[0]},
        **peak_gb(device),
    }
    if args.live_seconds:
        live = noise(args.live_seconds)
        results[f"one process, live, paced, {how}"] = live_ticks(model, live, paced=True)
    products = recorded_products(model, audio) if args.compare == "products" else {}
    del model
    if args.compare == "transformers":
        mel = mel_of(audio, live=False)
        theirs = transformers_run(opened.config, device, opened.dtype, mel, args.seconds)
        results["transformers generate(), the same run"] = theirs
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if not args.no_pipes:
        before = times_of(products)
        piped = piped_file(path, args.device, args.dtype, audio)
        results[f"real pipes, file of {args.seconds:g} s, {how}"] = piped
        if products:
            results["its bare products, before and after it"] = {
                name: {"before": first, "after": then}
                for (name, first), then in zip(before.items(), times_of(products).values(), strict=True)
            }
        if args.live_seconds:
            results[f"real pipes, live, paced, {how}"] = piped_live(path, args.device, args.dtype, live, 6)
    return results
