"""Token ids to text and to times (asr.md sections 11 and 12).

Text travels as bytes: a code point may be spread over several tokens, with special tokens between them.
Carried from one id to the next are the 0 to 3 bytes of an unfinished code point.
"""

from __future__ import annotations

from codecs import utf_8_decode
from typing import Protocol

from voxtral_pipes.errors import BadInputError

TOKEN_MS = 80
"""Audio per decoder position."""


class Vocabulary(Protocol):
    """What detokenisation asks of a vocabulary (`voxtral_pipes.formats.tekken.Tekken`)."""

    n_special: int
    vocab_size: int

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of an id below `vocab_size`; none for a special one."""


def detokenise(vocabulary: Vocabulary, held: bytes, token: int) -> tuple[str, bytes]:
    """Add one id to a text.

    `held` is what the previous call returned, b"" at the start of a stream.  Returns the text that is
    complete now and the 0 to 3 bytes that wait for the rest of their code point.  A special id adds and
    breaks nothing.  Invalid bytes become U+FFFD as in `bytes.decode(errors="replace")`, whatever the cutting.

    Raises:
        BadInputError: the id is not in the vocabulary.
    """
    if not 0 <= token < vocabulary.vocab_size:
        raise BadInputError(
            f"token id {token} is not in the vocabulary of {vocabulary.vocab_size}; "
            "is this the tokenizer of the model?"
        )
    if token < vocabulary.n_special:
        return "", held
    joined = held + vocabulary.token_bytes(token)
    text, used = utf_8_decode(joined, "replace", False)
    return text, joined[used:]


def finish(held: bytes) -> str:
    """Return what an unfinished code point becomes at the end of a stream: U+FFFD, or nothing."""
    return utf_8_decode(held, "replace", True)[0]


def time_ms(tick: int, tick_rate_hz: int, delay_tokens: int) -> int:
    """Return when the word of the position that starts at `tick` was spoken, in ms (design.md section 4).

    The model writes a word `delay_tokens` positions after hearing it; nothing starts before the audio does.
    """
    return max(0, 1000 * tick // tick_rate_hz - TOKEN_MS * delay_tokens)
