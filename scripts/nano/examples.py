"""Training examples: which words are said when, and what is to be written when.

Drawn on the host from the seed and the number of the step alone; the sound itself is put together on the device
(`nano.sounds`).  An example is a padded stream of fixed length: left padding, audio, right padding (asr.md section 4).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nano.pack import Int16, Pack, Utterance
from nano.vocabulary import N_SPECIAL, PIECES
from nano.words import DIGITS, FRAME, RATE_HZ, WORDS, is_known, voiced_span
from voxtral_pipes.errors import BadInputError
from voxtral_pipes.formats.tekken import PUBLISHED_SPECIAL

TOKEN_SAMPLES = 1280
LEFT_PAD = 32
TAIL = 11
"""Right padding beyond the delay, in tokens."""
BOS, EOS = PUBLISHED_SPECIAL["<s>"], PUBLISHED_SPECIAL["</s>"]
PAD, WORD = PUBLISHED_SPECIAL["[STREAMING_PAD]"], PUBLISHED_SPECIAL["[STREAMING_WORD]"]
IGNORED = -100
DELAYS = range(3, 13)
"""In tokens of 80 ms: 240 to 960 ms."""

_IDS = {word: N_SPECIAL + PIECES.index(f" {word}".encode()) for word in WORDS}
NARROW = 0.3
"""Examples that sound as recordings of fsdd do: by telephone, most of them trimmed and hissing; others seldom are."""
TRIMMED, TRIMMED_NARROW = 0.12, 0.7
"""Utterances cut as a trimmer of silence does that is too eager: without their f, s or th, or the end that fades."""
QUIETEST, LOUDEST_CUT = 32.0, 15.0
"""In decibels below the loudest moment: from where to where a trimmer takes sound for silence."""
PARTNERED, LEAST_SHARE, MOST_SHARE = 0.4, 0.2, 0.7
"""Single words that are not cut and are said by two at a time, and how much of them is the second one's voice."""
MOST_STRETCH = 1.7
"""By how much that one's word is made faster or slower for it at most."""
PARTNER_MARGIN = RATE_HZ * 30 // 1000
MURMURED, MOST_MURMURS = 0.35, 4
"""Examples in which others speak in the background, of whom nothing is to be written."""
LOUDEST_MURMUR, QUIETEST_MURMUR = 20.0, 36.0
"""In decibels below those who speak."""
ENDED = 0.25
"""Examples in which some silence is fed as an end."""
_SOURCES = {
    "digits": {
        "fsdd": 0.17,
        "speech_commands": 0.27,
        "espeak-ng": 0.2,
        "espeak-ng-foreign": 0.24,
        "flite": 0.08,
    },
    "words": {
        "speech_commands": 0.64,
        "espeak-ng": 0.14,
        "espeak-ng-foreign": 0.14,
        "flite": 0.04,
    },
}
"""How often each is taken, by kind.  fsdd are four men alone, whom to know by heart is no use."""
_RARE = 0.04
"""How often any other source is."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Plan:
    """A batch: placed utterances (one row each in the first six), and what the decoder is fed and shall answer."""

    row: Ints
    source: Ints
    """Where it begins in the bank of all samples."""
    length: Ints
    """There, in samples."""
    at: Ints
    """Where it begins in its row, in samples from the start of the padded stream."""
    speed: Floats
    gain: Floats
    share: Floats
    """How much of it is another speaker's voice, who says the same word at the same time."""
    partner_source: Ints
    partner_length: Ints
    partner_at: Ints
    partner_speed: Floats
    partner_gain: Floats
    """Of that one; the utterance itself where there is none."""
    first: Ints
    """[B] samples of each row before and from which on there is padding: no noise is there."""
    last: Ints
    delays: Ints
    paces: Floats
    """[B]: about what all speeds of a row are."""
    narrow: npt.NDArray[np.bool_]
    """[B]: which of them sound as fsdd does."""
    tokens: Ints
    """[B, N]: fed."""
    targets: Ints
    """[B, N]: to be answered; -100 where that does not count."""
    phones: Ints
    """What is said in the rows of `spelt`, one row after the other, from 1 on."""
    spelt: Ints
    """Rows all of whose phones are known."""
    n_phones: Ints
    """In each of them."""

    @property
    def heard(self) -> Ints:
        """How long each utterance lasts at its speed, in samples."""
        return (self.length / self.speed).astype(np.int64)

    @property
    def partners(self) -> Plan:
        """The same as the other speakers say it."""
        return replace(
            self,
            source=self.partner_source,
            length=self.partner_length,
            at=self.partner_at,
            speed=self.partner_speed,
            gain=self.partner_gain,
        )


def answers(ends: Sequence[tuple[int, str]], delay: int, n_audio: int) -> Ints:
    """Return what a stream of `n_audio` audio tokens answers from position L - 1 on: int64 [n_audio + 11].

    `ends` are words and where they end, in samples of the audio, in order.  A word is written when it has been heard
    whole, `delay` tokens later: WORD, then its piece; one that would overlap waits for the one before.
    """
    out = np.full(n_audio + TAIL, PAD)
    free = 0
    for end, word in ends:
        place = max(free, -(-end // TOKEN_SAMPLES) - 1, 0)
        if place + 1 < len(out):
            out[place : place + 2] = WORD, _IDS[word]
        free = place + 2
    # What follows the audio's end is zeros, as silence may be: the end can be told only where it must come.
    if out[-1] == PAD:
        out[-1] = EOS
    return out


def fed(answered: Ints, draw: np.random.Generator) -> Ints:
    """Return what the decoder is fed: what was answered, and in some examples an end where nothing was said.

    Ends come too early in long silence, are fed back and end nothing (asr.md section 11.2); words may follow.
    """
    out = answered.copy()
    if draw.random() < ENDED:
        first, last = sorted(draw.integers(len(out) + 1, size=2))
        some = draw.random(len(out)) < draw.uniform(0.1, 1.1)
        some[:first] = some[last:] = False
        out[some & (out == PAD)] = EOS
    return out


def trimmed(one: Utterance, samples: Int16, draw: np.random.Generator) -> Utterance:
    """Leave out the beginning of an utterance that is quieter than drawn, and half of the time such an end."""
    whole = len(samples) // FRAME
    level = np.square(samples[: whole * FRAME].reshape(whole, FRAME).astype(np.float32)).mean(axis=1)
    loud = np.flatnonzero(level > level.max(initial=0) * 10 ** (-draw.uniform(LOUDEST_CUT, QUIETEST) / 10))
    if not len(loud) or one.ends is None:
        return one
    first = int(loud[0]) * FRAME
    last = (int(loud[-1]) + 1) * FRAME if draw.random() < 0.5 else len(samples)
    ends = tuple(min(max(end - first, 0), last - first) for end in one.ends)
    return replace(one, at=one.at + first, samples=last - first, ends=ends)


class Examples:
    """Draws batches from the training half of a pack; `cuts` has some utterances begin and end too late."""

    def __init__(self, pack: Pack, *, tokens: int, batch: int, seed: int, cuts: bool = True) -> None:
        self._tokens, self._batch, self._seed, self._pack = tokens, batch, seed, pack
        self._phones = {
            word: [pack.phones.index(phone) + 1 for phone in said.split()]
            for word, said in pack.pronunciations.items()
        }
        self._cuts = cuts
        self._starts: dict[str, int] = {}
        total = 0
        for name, samples in pack.sounds.items():
            self._starts[name] = total
            total += len(samples)
        usable = [
            one
            for one in pack.utterances
            if one.split == "train" and one.ends is not None and one.kind != "noise"
        ]
        self._pools: dict[tuple[str, str], list[Utterance]] = defaultdict(list)
        """By what is wanted and source."""
        self._voices: dict[tuple[str, str], dict[str, list[Utterance]]] = defaultdict(
            lambda: defaultdict(list)
        )
        """The same by speaker."""
        for one in usable:
            known = is_known(one.text)
            digits = known and all(word in DIGITS for word in one.text.split())
            for kind in ["digits"] * digits + ["words"] * (known and not digits) + ["others"] * (not known):
                self._pools[kind, one.source].append(one)
                self._voices[kind, one.source][one.speaker].append(one)
        self._by_text = {key: _grouped(pool) for key, pool in self._pools.items()}
        self._by_word: dict[str, dict[str, list[Utterance]]] = defaultdict(lambda: defaultdict(list))
        """Single words, by word and source."""
        for one in usable:
            if is_known(one.text) and " " not in one.text and one.text:
                self._by_word[one.text][one.source].append(one)
        self._single = {one for pools in self._by_word.values() for pool in pools.values() for one in pool}
        self._spans: dict[Utterance, tuple[int, int, float]] = {}

    def plan(self, step: int) -> Plan:
        """Draw the batch of a step."""
        draw = np.random.default_rng((self._seed, step))
        placed: list[tuple[int, int, int, int, float, float]] = []
        partners: list[tuple[int, int, int, float, float, float]] = []
        first, last, delays = (np.zeros(self._batch, np.int64) for _ in range(3))
        paces = np.exp(draw.uniform(-0.3, 0.36, self._batch)).astype(np.float32)
        narrow = draw.random(self._batch) < NARROW if self._cuts else np.zeros(self._batch, np.bool_)
        tokens = np.full((self._batch, self._tokens), PAD)
        targets = np.full((self._batch, self._tokens), IGNORED)
        spelt: dict[int, list[int]] = {}
        for row in range(self._batch):
            delay = int(draw.integers(DELAYS.start, DELAYS.stop))
            n_audio = self._tokens - LEFT_PAD - delay - TAIL
            ends = []
            said: list[str] = []
            begin = LEFT_PAD * TOKEN_SAMPLES
            limit = n_audio * TOKEN_SAMPLES - int(draw.integers(TOKEN_SAMPLES))
            final = 0
            cut = TRIMMED_NARROW if narrow[row] else TRIMMED
            for one, at, speed, gain in self._layout(draw, limit, float(paces[row]), cut):
                placed.append((row, self._starts[one.sound] + one.at, one.samples, begin + at, speed, gain))
                partners.append(self._partner(draw, one, begin + at, speed, gain) or (*placed[-1][1:], 0.0))
                final = at + int(one.samples / speed)
                said += one.text.split()
                if is_known(one.text):
                    assert one.ends is not None
                    ends += [
                        (at + int(end / speed), word)
                        for end, word in zip(one.ends, one.text.split(), strict=True)
                    ]
            if said and self._cuts and draw.random() < MURMURED:
                for murmur in self._murmurs(draw, row, begin, limit):
                    placed.append(murmur)
                    partners.append((*murmur[1:], 0.0))
            if ends and draw.random() < 0.5:  # recordings often end with their last word
                limit = min(limit, final + int(draw.integers(RATE_HZ // 2)))
            first[row], last[row], delays[row] = begin, begin + limit, delay
            out = answers(ends, delay, n_audio)
            tokens[row, 0] = BOS
            tokens[row, LEFT_PAD + delay + 1 :] = fed(out[:-1], draw)
            targets[row, LEFT_PAD + delay :] = out
            if all(word in self._phones for word in said):
                spelt[row] = [phone for word in said for phone in self._phones[word]]
        where = np.array([one[:4] for one in placed], np.int64).reshape(-1, 4)
        how = np.array([one[4:] for one in placed], np.float32).reshape(-1, 2)
        row_of, source, length, at_of = where.T.copy()
        speed_of, gain_of = how.T.copy()
        their_source, their_length, their_at = (
            np.array([one[:3] for one in partners], np.int64).reshape(-1, 3).T.copy()
        )
        their_speed, their_gain, share = (
            np.array([one[3:] for one in partners], np.float32).reshape(-1, 3).T.copy()
        )
        phones = np.array([phone for one in spelt.values() for phone in one], np.int64)
        spelt_rows = np.array(list(spelt), np.int64)
        n_phones = np.array(list(map(len, spelt.values())), np.int64)
        return Plan(
            row_of, source, length, at_of, speed_of, gain_of, share, their_source, their_length, their_at,
            their_speed, their_gain,
            first, last, delays, paces, narrow, tokens, targets, phones, spelt_rows, n_phones,
        )  # fmt: skip

    def _layout(
        self, draw: np.random.Generator, limit: int, pace_of_all: float, cut: float
    ) -> Iterator[tuple[Utterance, int, float, float]]:
        """Yield utterances of one example, where each begins, its speed and its gain."""
        kind = draw.choice(["nothing", "digits", "words", "mixed"], p=[0.06, 0.38, 0.36, 0.2])
        if kind == "nothing":
            return
        low, high = [(-0.08, 0.15), (0.0, 0.4), (0.3, 2.5)][draw.choice(3, p=[0.4, 0.4, 0.2])]
        at = 0 if draw.random() < 0.3 else int(draw.integers(int(1.2 * RATE_HZ)))
        alone = draw.random() < 0.2
        same = draw.random() < 0.6
        pool = self._one_speaker(draw, kind) if same and kind != "mixed" else None
        while True:
            one = pool[draw.integers(len(pool))] if pool else self._any(draw, kind)
            if self._cuts and draw.random() < cut:
                one = trimmed(one, self._pack.audio(one), draw)
            pace = float(pace_of_all * draw.uniform(0.95, 1.05))
            length = int(one.samples / pace)
            if at + length > limit:
                return
            yield one, at, pace, float(10 ** (draw.normal(0, 2) / 20))
            if alone:
                return
            at = max(0, at + length + int(draw.uniform(low, high) * RATE_HZ))

    def _murmurs(
        self, draw: np.random.Generator, row: int, begin: int, limit: int
    ) -> Iterator[tuple[int, int, int, int, float, float]]:
        """Yield what is said in the background of a row, anywhere in so many samples: as it is placed."""
        for _ in range(int(draw.integers(1, MOST_MURMURS + 1))):
            one = self._any(draw, "mixed")
            gain = 10 ** (-draw.uniform(LOUDEST_MURMUR, QUIETEST_MURMUR) / 20)
            at = begin + int(draw.integers(max(1, limit - one.samples)))
            yield row, self._starts[one.sound] + one.at, one.samples, at, float(draw.uniform(0.8, 1.3)), gain

    def _partner(
        self, draw: np.random.Generator, one: Utterance, at: int, speed: float, gain: float
    ) -> tuple[int, int, int, float, float, float] | None:
        """Draw who else says a word that begins `at`, as loud: source, length, place, speed, gain and share."""
        if not self._cuts or draw.random() >= PARTNERED or one not in self._single:
            return None
        kind = "digits" if one.text in DIGITS else "words"
        sources = self._by_word[one.text]
        others = sources[_drawn(draw, kind, list(sources))]
        other = others[draw.integers(len(others))]
        first, last, level = self._span(one)
        their_first, their_last, their_level = self._span(other)
        their_speed = (their_last - their_first) / (last - first) * speed
        if not 1 / MOST_STRETCH < their_speed / speed < MOST_STRETCH:
            return None
        margin = min(PARTNER_MARGIN, their_first, other.samples - their_last)
        place = at + int(first / speed - margin / their_speed)
        source = self._starts[other.sound] + other.at + their_first - margin
        share = float(draw.uniform(LEAST_SHARE, MOST_SHARE))
        length = their_last - their_first + 2 * margin
        return source, length, place, their_speed, gain * level / their_level, share

    def _span(self, one: Utterance) -> tuple[int, int, float]:
        """Return where a word begins and ends in its utterance, in samples, and its level there."""
        if one not in self._spans:
            samples = self._pack.audio(one)
            first, last = voiced_span(samples)
            power = np.square(samples[first:last], dtype=np.float64).mean()
            self._spans[one] = first, last, max(1.0, float(power)) ** 0.5
        return self._spans[one]

    def _source(self, draw: np.random.Generator, kind: str) -> str | None:
        sources = [source for known, source in self._pools if known == kind]
        return _drawn(draw, kind, sources) if sources else None

    def _one_speaker(self, draw: np.random.Generator, kind: str) -> list[Utterance] | None:
        source = self._source(draw, kind)
        if source is None:
            return None
        speakers = [pool for pool in self._voices[kind, source].values() if len(pool) >= 4]
        return speakers[draw.integers(len(speakers))] if speakers else None

    def _any(self, draw: np.random.Generator, kind: str) -> Utterance:
        if kind == "mixed":
            kind = str(draw.choice(["digits", "words", "others"], p=[0.3, 0.5, 0.2]))
        for wanted in (kind, "digits", "words"):
            if (source := self._source(draw, wanted)) is not None:
                texts = self._by_text[wanted, source]
                same = texts[draw.integers(len(texts))]
                return same[draw.integers(len(same))]
        raise BadInputError("the pack holds no words to train with")


def _drawn(draw: np.random.Generator, kind: str, sources: Sequence[str]) -> str:
    """Draw one of some sources, each as often as it should be."""
    shares = _SOURCES["digits" if kind == "digits" else "words"]
    weights = np.array([shares.get(source, _RARE) for source in sources])
    return sources[draw.choice(len(sources), p=weights / weights.sum())]


def _grouped(pool: Sequence[Utterance]) -> list[list[Utterance]]:
    """Group by text, so that rare words come as often as others."""
    groups: dict[str, list[Utterance]] = defaultdict(list)
    for one in pool:
        groups[one.text if " " not in one.text else ""].append(one)
    return list(groups.values())
