"""Greedy transcripts in the training process, and their word errors on the dev half of a pack.

The last word has `scripts/wer`, which goes through the real pipe; this is what can be done every few minutes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nano.examples import BOS, EOS, LEFT_PAD, PAD, TAIL, TOKEN_SAMPLES
from nano.forward import Weights, decode, encode
from nano.front import Front
from nano.pack import Int16, Pack
from nano.vocabulary import N_SPECIAL, PIECES
from nano.words import RATE_HZ
from voxtral_pipes.config import AsrConfig

_BATCH = 64
_SILENCE_S = 30


@torch.no_grad()
def answer(weights: Weights, config: AsrConfig, samples: Tensor, delays: Tensor) -> Tensor:
    """Decode padded streams float32 [B, 1280 N] greedily: what is answered at each position, int64 [B, N].

    The whole decoder runs for each position: it is small, and no ring has to be kept.
    """
    mel = Front(config.audio, samples.device)(samples)
    audio = encode(weights, config, mel)
    batch, steps = audio.shape[:2]
    fed = torch.full((batch, steps + 1), PAD, device=samples.device)
    fed[:, 0] = BOS
    prompt = LEFT_PAD + delays
    for at in range(int(prompt.min()), steps):
        logits = decode(weights, config, audio[:, : at + 1], fed[:, : at + 1], delays)[:, -1]
        chosen = logits.argmax(-1)
        fed[:, at + 1] = torch.where(at >= prompt, chosen, PAD)
    return fed[:, 1:]


def words_of(ids: Sequence[int]) -> list[str]:
    """Return the words of answered ids, up to the first end."""
    held = b""
    for token in ids:
        if token == EOS:
            break
        if token >= N_SPECIAL:
            held += PIECES[token - N_SPECIAL]
    return held.decode(errors="replace").split()


def word_errors(reference: Sequence[str], heard: Sequence[str]) -> int:
    """Count the fewest insertions, deletions and substitutions."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(reference, 1):
        before, row = row, [i]
        for j, other in enumerate(heard, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (word != other)))
    return row[-1]


def padded(samples: Int16, delay: int, tokens: int | None = None) -> np.ndarray:
    """Put a recording into a padded stream: float32 [1280 N], with zeros up to `tokens` positions if given."""
    audio_tokens = -(-len(samples) // TOKEN_SAMPLES)
    needed = LEFT_PAD + audio_tokens + delay + TAIL
    stream = np.zeros(max(needed, tokens or 0) * TOKEN_SAMPLES, np.float32)
    begin = LEFT_PAD * TOKEN_SAMPLES
    stream[begin : begin + len(samples)] = samples / 32768
    return stream


def dev_scores(
    weights: Weights, config: AsrConfig, pack: Pack, device: torch.device, *, delay: int = 6, most: int = 500
) -> dict[str, dict[str, float]]:
    """Return word errors by source and kind of the dev half, and the words said of silence and noise."""
    chosen: dict[str, list[tuple[Int16, list[str]]]] = defaultdict(list)
    for one in pack.utterances:
        if one.split == "dev":
            chosen[f"{one.source} {one.kind}"].append((pack.audio(one), one.text.split()))
    draw = np.random.default_rng(0)
    quiet = [np.zeros(_SILENCE_S * RATE_HZ, np.int16)]
    quiet += [draw.normal(0, rms, _SILENCE_S * RATE_HZ).astype(np.int16) for rms in (10, 100, 1000)]
    chosen["silence and noise"] = [(samples, []) for samples in quiet]
    scores = {}
    for name, items in chosen.items():
        some = items[:: -(-len(items) // most)]
        errors = _count(weights, config, some, device, delay)
        n_words = sum(len(text) for _, text in some)
        scores[name] = {
            "files": len(some),
            "words": n_words,
            "errors": sum(errors),
            "rate": round(sum(errors) / max(1, n_words), 4),
            "files wrong": round(sum(map(bool, errors)) / len(errors), 4),
        }
    return scores


def _count(
    weights: Weights,
    config: AsrConfig,
    items: Sequence[tuple[Int16, list[str]]],
    device: torch.device,
    delay: int,
) -> list[int]:
    errors = []
    in_order = sorted(items, key=lambda item: len(item[0]))
    for first in range(0, len(in_order), _BATCH):
        group = in_order[first : first + _BATCH]
        longest = len(padded(group[-1][0], delay)) // TOKEN_SAMPLES
        samples = np.stack([padded(one, delay, longest) for one, _ in group])
        delays = torch.full((len(group),), delay, device=device)
        ids = answer(weights, config, torch.from_numpy(samples).to(device), delays).cpu()
        for (one, text), row in zip(group, ids.tolist(), strict=True):
            own = len(padded(one, delay)) // TOKEN_SAMPLES
            errors.append(word_errors(text, words_of(row[LEFT_PAD + delay : own])))
    return errors
