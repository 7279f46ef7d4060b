"""Transcripts of recordings by real pipes of commands, several recordings in each pipe and several pipes at a time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from scoring.chain import run_chain
from voxtral_pipes.errors import BadInputError, VoxError


@dataclass(frozen=True, slots=True)
class Settings:
    """How recordings are transcribed."""

    model: str | None
    """None: what the commands find by themselves."""
    delay_ms: int | None
    device: str
    dtype: str
    jobs: int
    files_per_pipe: int


@dataclass(frozen=True, slots=True)
class Heard:
    """What a pipe made of one recording: a text, or an error."""

    index: int
    text: str
    error: str | None = None


def transcribe(files: Sequence[Path], settings: Settings) -> Iterator[Heard]:
    """Transcribe recordings; what is done comes at once, in no order."""
    # No more in a pipe than leaves every job one; in turn, as long recordings often stand together.
    size = min(settings.files_per_pipe, -(-len(files) // settings.jobs))
    n_pipes = -(-len(files) // size)
    groups = [list(range(first, len(files), n_pipes)) for first in range(n_pipes)]
    with ThreadPoolExecutor(settings.jobs) as pool:
        for done in as_completed([pool.submit(_group, files, group, settings) for group in groups]):
            yield from done.result()


def _group(files: Sequence[Path], group: Sequence[int], settings: Settings) -> list[Heard]:
    """Send recordings through one pipe; if it fails, each through its own, so that an error is of one file."""
    heard: list[Heard] = []
    with tempfile.TemporaryDirectory(prefix="wer-") as folder:
        inputs: list[tuple[int, Path]] = []
        for index in group:
            try:
                inputs.append((index, _as_wav(files[index], Path(folder) / f"{index}.wav")))
            except VoxError as error:
                heard.append(Heard(index, "", str(error)))
        if not inputs:
            return heard
        try:
            return heard + _pipe(inputs, settings)
        except BadInputError as error:
            if len(inputs) == 1:
                return [*heard, Heard(inputs[0][0], "", str(error))]
        for one in inputs:
            try:
                heard += _pipe([one], settings)
            except BadInputError as error:
                heard.append(Heard(one[0], "", str(error)))
    return heard


def _as_wav(source: Path, target: Path) -> Path:
    """Return a WAV as it is, and write anything else as one of 16 bits at its own rate."""
    if source.suffix.lower() == ".wav":
        return source.absolute()
    import soundfile

    try:
        samples, rate_hz = soundfile.read(source, dtype="int16", always_2d=True)
        soundfile.write(target, samples, rate_hz, subtype="PCM_16")
    except (soundfile.LibsndfileError, OSError) as error:
        raise BadInputError(f"{source}: cannot be read: {error}") from error
    return target


def _pipe(inputs: Sequence[tuple[int, Path]], settings: Settings) -> list[Heard]:
    model = [] if settings.model is None else ["-m", settings.model]
    shared = [*model, "--device", settings.device, "--dtype", settings.dtype]
    delay = [] if settings.delay_ms is None else ["--delay-ms", str(settings.delay_ms)]
    written = run_chain(
        [
            ["vx-mel", "-q", *model, *delay, "--", *(str(path) for _, path in inputs)],
            ["vx-encode", "-q", *shared],
            ["vx-decode", "-q", *shared],
            ["vx-detok", "-q", *model, "--format", "jsonl"],
        ],
        settings.jobs,
    )
    texts = [""] * len(inputs)
    for line in written.splitlines():
        piece = json.loads(line)
        texts[piece["stream"]] += piece["text"]
    return [Heard(index, text.strip()) for (index, _), text in zip(inputs, texts, strict=True)]
