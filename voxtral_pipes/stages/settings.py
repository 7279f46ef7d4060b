"""What the `open` frame of an ASR stream decides for every stage (design.md section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from voxtral_pipes.config import AudioConfig
from voxtral_pipes.errors import BadInputError

MAX_PROMPT_TOKENS = 8192
"""A prompt of over ten minutes (the decoder's window) is a mistake, or an attack on memory."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Padding, delay and prompt length of one stream, in positions of 80 ms."""

    delay_tokens: int
    left_pad_tokens: int
    prompt_tokens: int
    live: bool

    @classmethod
    def of(cls, meta: Mapping[str, Any], audio: AudioConfig) -> StreamSettings:
        """Read the `m` of an open frame; what it lacks has the model's default.

        Raises:
            BadInputError: a value is no count, or the prompt is not as long as padding and delay make it.
        """
        delay = _count(meta, "delay_tokens", audio.delay_ms // audio.token_ms)
        left_pad = _count(meta, "left_pad_tokens", audio.left_pad_tokens)
        if 1 + left_pad + delay > MAX_PROMPT_TOKENS:
            raise BadInputError(
                f"open asks for a prompt of 1 + {left_pad} + {delay} tokens, {MAX_PROMPT_TOKENS} at most are taken"
            )
        prompt = _count(meta, "prompt_tokens", 1 + left_pad + delay)
        if prompt != 1 + left_pad + delay:
            raise BadInputError(
                f"open says {prompt} prompt_tokens, but 1 + {left_pad} of left padding + {delay} of delay "
                f"are {1 + left_pad + delay}"
            )
        return cls(delay, left_pad, prompt, meta.get("live") is True)


def _count(meta: Mapping[str, Any], key: str, default: int) -> int:
    value = meta.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_PROMPT_TOKENS:
        raise BadInputError(f"open says {key} = {value!r:.40}, not a count of 0 to {MAX_PROMPT_TOKENS}")
    return value
