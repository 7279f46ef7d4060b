"""pocketsphinx as an independent judge of speech: a recogniser of another make, with its own model of US English.

It was trained on recordings, in which no silence is quite silent; digital silence spoils its means.  So sound is
brought to one peak, and noise that is hardly heard is laid under it and around it: of the everyday sentences as
espeak-ng says them it then gets 32 words wrong in a hundred, instead of 86.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scoring.pipes import Heard
from voxtral_pipes.models.mel import Resampler

Float32 = npt.NDArray[np.float32]

RATE_HZ = 16000
_PEAK, _NOISE = 0.5, 1e-3
"""Of full scale; the noise is normal, and -60 dBFS."""
_AROUND = RATE_HZ // 5
_SILENCE, _BLOCK_MS = 10 ** (-50 / 20), 20
"""Of full scale, RMS of a block."""


def sphinx_label() -> str:
    """Name the judge with its version.

    Raises:
        ImportError: the package pocketsphinx is not installed.
    """
    import pocketsphinx  # noqa: F401

    return f"pocketsphinx {version('pocketsphinx')}, its en-us model"


def hear(files: Sequence[Path], jobs: int) -> Iterator[Heard]:
    """Transcribe recordings in so many processes; each as it is done, the same whatever their number.

    Raises:
        ImportError: the package pocketsphinx is not installed.
    """
    sphinx_label()
    if jobs == 1:
        yield from (_hear(index, file) for index, file in enumerate(files))
        return
    # Not forked: there are threads by now, and locks that they hold.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(_hear, index, file) for index, file in enumerate(files)]):
            yield done.result()


def read_sound(file: Path) -> tuple[Float32, int]:
    """Read the samples, mean of all channels, and their rate in Hz."""
    import soundfile

    samples, rate_hz = soundfile.read(file, dtype="float32", always_2d=True)
    return samples.mean(axis=1, dtype=np.float32), rate_hz


def is_silent(samples: Float32, rate_hz: int) -> bool:
    """Tell whether no 20 ms are louder than -50 dBFS, or there is nothing at all."""
    if not len(samples):
        return True
    block = max(1, rate_hz * _BLOCK_MS // 1000)
    padded = np.pad(samples, (0, -len(samples) % block)).reshape(-1, block).astype(np.float64)
    return bool(np.sqrt(np.square(padded).mean(axis=1)).max() < _SILENCE)


def prepared(samples: Float32, rate_hz: int) -> npt.NDArray[np.int16]:
    """Bring sound to what pocketsphinx was made for: 16 kHz, resampled as vx-mel does it, and no digital silence."""
    resampler = Resampler(rate_hz, RATE_HZ)
    at_rate = np.concatenate([resampler.push(samples), resampler.flush()]).astype(np.float64)
    at_rate *= _PEAK / max(float(np.abs(at_rate).max(initial=0)), 1e-9)
    around = np.pad(at_rate, _AROUND)
    around += np.random.default_rng(0).normal(0, _NOISE, len(around))  # drawn anew for each, so of no order
    return (np.clip(around, -1, 1) * 32767).astype(np.int16)


def _hear(index: int, file: Path) -> Heard:
    samples, rate_hz = read_sound(file)
    decoder = _decoder()
    # Nothing is to be left of the recordings before: neither what it took for their noise (start_utt keeps that, and
    # start_stream, which does not, is deprecated), nor their means, which are those of one piece.
    decoder.reinit_feat()
    decoder.start_utt()
    decoder.process_raw(prepared(samples, rate_hz).tobytes(), no_search=False, full_utt=True)
    decoder.end_utt()
    found = decoder.hyp()
    return Heard(index, found.hypstr if found else "")


@cache
def _decoder() -> Any:
    """Load its models, which takes a second; one for each process."""
    from pocketsphinx import Decoder

    return Decoder(samprate=RATE_HZ, cmn="batch", loglevel="FATAL")
