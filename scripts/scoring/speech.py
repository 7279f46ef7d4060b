"""Texts spoken by real pipes of commands, several texts in each pipe and several pipes at a time."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from scoring.chain import run_chain
from voxtral_pipes.errors import BadInputError
from voxtral_pipes.formats.frame import FrameReader
from voxtral_pipes.models.codes import END_AUDIO


@dataclass(frozen=True, slots=True)
class Manner:
    """How texts are spoken."""

    model: str | None
    """None: what the commands find by themselves; so with the voice."""
    voice: str | None
    steps: int | None
    """Of vx-flow for each frame; None: as many as it takes by itself."""
    seed: int
    max_frames: int
    """Of 80 ms; speech that has not ended by then does not end."""
    device: str
    dtype: str
    jobs: int
    texts_per_pipe: int


@dataclass(frozen=True, slots=True)
class Spoken:
    """What a pipe made of one text: a recording, or an error."""

    index: int
    audio: Path | None
    frames: int
    """Of 80 ms, that of the end not counted."""
    ended: bool
    """The model ended it, and not the limit."""
    error: str | None = None


def voices_of(model: str | None) -> list[str]:
    """Name the voices of a model.

    Raises:
        BadInputError: it is none that speaks.
    """
    named = [] if model is None else ["-m", model]
    listed = run_chain([["vx-backbone", "-q", *named, "--list-voices"]], 1)
    return [line.split()[0] for line in listed.decode().splitlines()]


def speak(texts: Sequence[str], manner: Manner, folder: Path) -> Iterator[Spoken]:
    """Speak texts of one line each into `folder`, `INDEX.wav`; what is done comes at once, in no order.

    The noise of a frame depends on the place of its text in the pipe, and so do the recordings: on
    `texts_per_pipe`, but not on `jobs`.
    """
    size = manner.texts_per_pipe
    groups = [range(first, min(first + size, len(texts))) for first in range(0, len(texts), size)]
    with ThreadPoolExecutor(manner.jobs) as pool:
        for done in as_completed([pool.submit(_group, texts, group, manner, folder) for group in groups]):
            yield from done.result()


def _group(texts: Sequence[str], group: range, manner: Manner, folder: Path) -> list[Spoken]:
    """Speak texts in one pipe; if it fails, each in its own, so that an error is of one text."""
    try:
        return _pipe(texts, group, manner, folder)
    except BadInputError as error:
        if len(group) == 1:
            return [Spoken(group[0], None, 0, False, str(error))]
    return [one for index in group for one in _group(texts, range(index, index + 1), manner, folder)]


def _pipe(texts: Sequence[str], group: range, manner: Manner, folder: Path) -> list[Spoken]:
    model = [] if manner.model is None else ["-m", manner.model]
    shared = [*model, "--device", manner.device, "--dtype", manner.dtype]
    voice = [] if manner.voice is None else ["--voice", manner.voice]
    steps = [] if manner.steps is None else ["-n", str(manner.steps)]
    # Pipes with the same seed would begin with the same noise.
    seed = str(manner.seed + group[0])
    with tempfile.TemporaryDirectory(prefix="speech-", dir=folder) as place:
        codes, sound = Path(place) / "codes", Path(place) / "sound"
        run_chain(
            [
                ["vx-tokenize", "-q", *model, "--max-chars", "0"],  # each line one stream, however long
                ["vx-backbone", "-q", *shared, *voice, "--max-frames", str(manner.max_frames)],
                ["vx-flow", "-q", *shared, *steps, "--seed", seed],
                ["tee", "--", str(codes)],
                ["vx-codec", "-q", *shared, "--out-dir", str(sound)],
            ],
            manner.jobs,
            "".join(f"{texts[index]}\n" for index in group),
        )
        ends = _ends(codes)
        if ends.keys() != set(range(len(group))):
            raise BadInputError(f"{len(group)} texts went into the pipe, {len(ends)} streams came out")
        spoken = []
        for stream, index in enumerate(group):
            audio = folder / f"{index:05}.wav"
            shutil.move(sound / f"{stream:05}.wav", audio)
            spoken.append(Spoken(index, audio, *ends[stream]))
    return spoken


def _ends(codes: Path) -> dict[int, tuple[int, bool]]:
    """Read from what vx-flow wrote how many frames each stream has, and whether the model ended it."""
    ends: dict[int, tuple[int, bool]] = {}
    with codes.open("rb") as file:
        for frame in FrameReader(file):
            if frame.stream is None:
                continue
            count, ended = ends.setdefault(frame.stream, (0, False))
            if "codes" in frame.tensors:
                rows = frame.tensors["codes"].numpy()
                ended = bool((rows[:, 0] == END_AUDIO).any())
                ends[frame.stream] = count + len(rows) - ended, ended
    return ends
