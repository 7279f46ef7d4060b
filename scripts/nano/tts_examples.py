"""Batches of training data: stretches of sound for the codec, prompts and codes for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nano.tts_pack import Speech
from nano.tts_size import N_SPECIAL, VOCAB_SIZE
from voxtral_pipes.models.codes import CODE_OFFSET
from voxtral_pipes.models.prompt import MARKS, PromptIds

PROMPT_IDS = PromptIds(n_special=N_SPECIAL)
_ENDINGS = ("", "", "", ".", ".", "!", "?")


def padded(samples: np.ndarray, frame: int) -> Tensor:
    """Return float32 samples in -1 to 1, filled with silence to whole frames."""
    whole = -(-len(samples) // frame) * frame
    out = torch.zeros(whole)
    out[: len(samples)] = torch.from_numpy(samples.astype(np.float32) / 32768)
    return out


def changed_sound(samples: np.ndarray, frame: int, draw: np.random.Generator) -> np.ndarray:
    """Say it a little faster or slower, louder or softer, and begin anywhere in the first frame; int16."""
    at = np.arange(0, len(samples) - 1, np.exp(draw.uniform(-0.06, 0.06)))
    spoken = np.interp(at, np.arange(len(samples)), samples) * 10 ** (draw.uniform(-3, 1) / 20)
    return (
        np.concatenate((np.zeros(draw.integers(frame)), spoken)).round().clip(-32768, 32767).astype(np.int16)
    )


class Stretches:
    """Random stretches of the sounds of a split."""

    def __init__(self, speech: Speech, split: str, frames: int, frame: int) -> None:
        """Each has `frames` frames of `frame` samples; behind one utterance the next ones follow, in a circle."""
        sounds = [speech.audio(one) for one in speech.utterances if one.split == split]
        whole = torch.from_numpy(np.concatenate(sounds)) if sounds else torch.zeros(1, dtype=torch.int16)
        self._begins = np.cumsum([0, *map(len, sounds[:-1])])
        self._length = frames * frame
        self._starts = len(whole)
        self._samples = torch.cat((whole, whole.repeat(self._length // len(whole) + 1)[: self._length]))

    def draw(self, count: int, seed: int) -> Tensor:
        """Draw float32 [count, samples]: by the seed alone, some louder, some quieter.

        Half of them begin where an utterance does, for that is where a decoder begins.
        """
        rng = np.random.default_rng(seed)
        anywhere = rng.integers(0, self._starts, count)
        starts = np.where(rng.random(count) < 0.5, rng.choice(self._begins, count), anywhere)
        rows = torch.stack([self._samples[at : at + self._length] for at in starts]).float() / 32768
        gains = torch.from_numpy(10 ** (rng.uniform(-6, 3, count) / 20)).float()
        return (rows * gains[:, None]).clamp(-1, 1)


@dataclass(frozen=True, slots=True)
class Line:
    """One utterance as codes."""

    text: str
    voice: int
    codes: Tensor
    """int16 [n, 37], offset included."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Utterances side by side, filled up behind."""

    ids: Tensor
    voice: Tensor
    codes: Tensor
    frame: Tensor
    """int64 [B, L], the number of the frame that is fed at a position, else -1."""
    reads: Tensor
    """int64 [B, n + 1], the position whose hidden state gives a frame; the last one gives END_AUDIO."""
    lengths: Tensor
    """int64 [B], frames of each."""
    spoken: Tensor
    """int64, the frames that there are, numbered through all rows of n."""

    def to(self, device: torch.device) -> Batch:
        """Return it on a device."""
        parts = (self.ids, self.voice, self.codes, self.frame, self.reads, self.lengths, self.spoken)
        return Batch(*(part.to(device, non_blocking=True) for part in parts))


def collate(lines: Sequence[Line], rows: int) -> Batch:
    """Put prompts around texts as vx-backbone does, and codes behind them."""
    n_most = max(len(line.codes) for line in lines)
    prompts = [
        PROMPT_IDS.prompt([N_SPECIAL + byte for byte in line.text.encode()], rows, VOCAB_SIZE)
        for line in lines
    ]
    length = max(len(prompt) + len(line.codes) for prompt, line in zip(prompts, lines, strict=True))
    ids = torch.zeros(len(lines), length, dtype=torch.int64)
    frame = torch.full_like(ids, -1)
    codes = torch.full((len(lines), n_most, lines[0].codes.shape[1]), CODE_OFFSET)
    reads = torch.zeros(len(lines), n_most + 1, dtype=torch.int64)
    for b, (prompt, line) in enumerate(zip(prompts, lines, strict=True)):
        n, p = len(line.codes), len(prompt)
        ids[b, :p] = torch.tensor(prompt)
        frame[b, p : p + n] = torch.arange(n)
        codes[b, :n] = line.codes
        reads[b, : n + 1] = torch.arange(p - 1, p + n)
    lengths = torch.tensor([len(line.codes) for line in lines])
    spoken = (torch.arange(n_most) < lengths[:, None]).flatten().nonzero()[:, 0]
    return Batch(ids, torch.tensor([line.voice for line in lines]), codes, frame, reads, lengths, spoken)


def positions(line: Line, rows: int) -> int:
    """Return how many positions an utterance takes."""
    return MARKS + rows + len(line.text.encode()) + len(line.codes)


def varied(line: Line, rng: np.random.Generator) -> Line:
    """Write the text as people do: now and then a capital, or a mark at its end."""
    text = line.text
    if rng.random() < 0.3:
        text = text[:1].upper() + text[1:]
    elif rng.random() < 0.3:
        text = text.lower()
    if text[-1].isalnum():
        text += _ENDINGS[rng.integers(len(_ENDINGS))]
    return Line(text, line.voice, line.codes)


def batch_of(lines: Sequence[Line], count: int, rows: int, seed: int) -> Batch:
    """Draw a batch by the seed alone; utterances in it are of about one length."""
    rng = np.random.default_rng(seed)
    middle = rng.integers(len(lines))
    spread = max(count, len(lines) // 6)
    first = int(np.clip(middle - spread // 2, 0, max(len(lines) - spread, 0)))
    chosen = rng.integers(first, min(first + spread, len(lines)), count)
    return collate([varied(lines[i], rng) for i in chosen], rows)
