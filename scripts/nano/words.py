"""What the nano recogniser hears, and where words end in a recording."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int16 = npt.NDArray[np.int16]

RATE_HZ = 16000
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = (
    *DIGITS, "backward", "bed", "bird", "cat", "dog", "down", "follow", "forward", "go", "happy", "house", "learn",
    "left", "marvin", "no", "off", "on", "right", "sheila", "stop", "tree", "up", "visual", "wow", "yes",
)  # fmt: skip
"""The 35 of the Speech Commands set, the digits first."""
OTHERS = (
    "able", "about", "above", "after", "again", "air", "always", "animal", "answer", "apple", "away", "baby", "back",
    "ball", "because", "been", "begin", "behind", "below", "better", "black", "blue", "boat", "book", "both", "boy",
    "bread", "bring", "brother", "build", "busy", "call", "came", "carry", "change", "children", "city", "clear",
    "close", "cold", "come", "could", "country", "cut", "day", "deep", "door", "draw", "dry", "early", "earth",
    "easy", "eat", "enough", "every", "example", "eye", "face", "family", "far", "father", "feet", "few", "find",
    "fire", "fish", "food", "friend", "garden", "girl", "give", "good", "great", "green", "group", "grow", "hand",
    "hard", "hear", "hello", "help", "here", "high", "hold", "home", "horse", "hour", "idea", "island", "just",
    "keep", "kind", "large", "later", "letter", "light", "list", "little", "long", "love", "make", "many", "maybe",
    "measure", "money", "month", "more", "morning", "mother", "mountain", "move", "much", "music", "name", "near",
    "never", "night", "number", "ocean", "often", "open", "order", "other", "paper", "people", "picture", "place",
    "plant", "play", "please", "point", "power", "question", "quick", "rain", "ready", "river", "rock", "room",
    "school", "second", "sentence", "ship", "short", "simple", "sister", "sleep", "slow", "small", "song", "sound",
    "south", "speak", "story", "strong", "summer", "sun", "table", "talk", "teacher", "thank", "thing", "think",
    "thousand", "today", "together", "travel", "true", "turn", "under", "usual", "voice", "wait", "walk", "water",
    "weather", "white", "window", "winter", "woman", "wonder", "world", "year", "yellow", "young",
)  # fmt: skip
"""Words that it must not take for its own; none sounds the same as one of those."""

FRAME = RATE_HZ // 100
"""10 ms: what loudness is measured over."""
_TOP_DB, _ABOVE_NOISE_DB = 35.0, 10.0


def is_known(text: str) -> bool:
    """Tell whether a transcript is of known words alone."""
    return all(word in WORDS for word in text.split())


def voiced_span(samples: Int16) -> tuple[int, int]:
    """Return where sound begins and ends, in samples, by energy.

    A frame of 10 ms counts that is no more than 35 dB below the loudest, and clearly above the quietest tenth; one
    alone is a click.  All of a recording in which nothing stands out.
    """
    n_frames = len(samples) // FRAME
    if n_frames < 3:
        return 0, len(samples)
    frames = samples[: n_frames * FRAME].reshape(n_frames, FRAME).astype(np.float64)
    level = 10 * np.log10(np.square(frames).mean(axis=1) + 1)
    noise, peak = np.quantile(level, 0.1), level.max()
    loud = level > max(peak - _TOP_DB, noise + min(_ABOVE_NOISE_DB, (peak - noise) / 3))
    steady = np.flatnonzero(loud[1:] & loud[:-1])
    if not len(steady):
        return 0, len(samples)
    return int(steady[0]) * FRAME, (int(steady[-1]) + 2) * FRAME


def word_ends(samples: Int16, starts: tuple[int, ...]) -> tuple[int, ...]:
    """Return where each word ends, in samples: where sound ends before the next one starts."""
    ends = []
    for start, after in zip(starts, (*starts[1:], len(samples)), strict=True):
        ends.append(start + voiced_span(samples[start:after])[1])
    return tuple(ends)
