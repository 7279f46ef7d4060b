"""The prompt of the speech backbone: a voice, then the text (tts.md section 3).

    <s> [BEGIN_AUDIO] [AUDIO] x N [NEXT_AUDIO_TEXT] text [REPEAT_AUDIO_TEXT] [BEGIN_AUDIO]

The rows of the voice take the places of the N [AUDIO]; the last position gives frame 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from voxtral_pipes.errors import BadInputError, BadModelError
from voxtral_pipes.formats.tekken import N_SPECIAL, PUBLISHED_SPECIAL, Tekken

MARKS = 5
"""Positions of a prompt that are neither voice nor text."""


@dataclass(frozen=True, slots=True)
class PromptIds:
    """Ids with a meaning of their own; the defaults are the published ones."""

    bos: int = PUBLISHED_SPECIAL["<s>"]
    audio: int = PUBLISHED_SPECIAL["[AUDIO]"]
    begin_audio: int = PUBLISHED_SPECIAL["[BEGIN_AUDIO]"]
    repeat_audio_text: int = PUBLISHED_SPECIAL["[REPEAT_AUDIO_TEXT]"]
    next_audio_text: int = PUBLISHED_SPECIAL["[NEXT_AUDIO_TEXT]"]
    n_special: int = N_SPECIAL
    """Ids below this are special, and no text."""

    @classmethod
    def of(cls, tekken: Tekken) -> PromptIds:
        """Resolve them by name."""
        return cls(
            bos=tekken.special("<s>"),
            audio=tekken.special("[AUDIO]"),
            begin_audio=tekken.special("[BEGIN_AUDIO]"),
            repeat_audio_text=tekken.special("[REPEAT_AUDIO_TEXT]"),
            next_audio_text=tekken.special("[NEXT_AUDIO_TEXT]"),
            n_special=tekken.n_special,
        )

    def prompt(self, text: Sequence[int], voice_rows: int, vocab_size: int) -> list[int]:
        """Put a prompt around the ids of a text.

        Raises:
            BadInputError: there is no text, or an id in it is special or not in the vocabulary.
            BadModelError: the vocabulary is too small for a prompt.
        """
        if not text:
            raise BadInputError("the stream brought no token ids: there is no text to speak")
        wrong = next((i for i in text if not self.n_special <= i < vocab_size), None)
        if wrong is not None:
            raise BadInputError(
                f"the token id {wrong} is no text: text ids are {self.n_special} to {vocab_size - 1} here; are "
                "vx-tokenize and vx-backbone using the same tekken.json?"
            )
        special = (self.bos, self.audio, self.begin_audio, self.repeat_audio_text, self.next_audio_text)
        if max(special) >= vocab_size:
            raise BadModelError(f"a vocabulary of {vocab_size} has no special token {max(special)}")
        voice = [self.audio] * voice_rows
        return [
            self.bos, self.begin_audio, *voice, self.next_audio_text, *text, self.repeat_audio_text, self.begin_audio,
        ]  # fmt: skip
