"""models/prompt.py: the published golden, ids by name, and texts that are none."""

from __future__ import annotations

import io
import json
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from id_streams import tekken_json
from processes import environment

from voxtral_pipes.errors import BadInputError, BadModelError
from voxtral_pipes.formats.frame import FrameReader, encode
from voxtral_pipes.formats.tekken import Tekken
from voxtral_pipes.models.prompt import MARKS, PromptIds
from voxtral_pipes.models.voices import PUBLISHED
from voxtral_pipes.stages.base import Outgoing
from voxtral_pipes.stages.base import Output as Data

TEXT = "Paris is a beautiful city!"
GOLDEN = [1, 25, *[24] * 147, 36, 42572, 1395, 1261, 15568, 5970, 1033, 35, 25]
"""tts.md section 3, made by mistral-common."""
VOCAB = 131072


def test_the_published_golden(published: Tekken) -> None:
    ids = PromptIds.of(published)
    assert ids == PromptIds()
    prompt = ids.prompt(published.encode(TEXT), PUBLISHED["casual_male"], VOCAB)
    assert prompt == GOLDEN and len(prompt) == 158


def test_every_prompt_is_a_voice_and_a_text_between_marks(published: Tekken) -> None:
    """For all voices and texts of many kinds: P = N + T + 5."""
    rng = random.Random(1)
    for voice, rows in PUBLISHED.items():
        text = (
            "".join(rng.choice("ab é日本🙂 <s>[AUDIO]!?") for _ in range(rng.randint(1, 40))).strip() or voice
        )
        ids = published.encode(text)
        prompt = PromptIds().prompt(ids, rows, VOCAB)
        assert len(prompt) == rows + len(ids) + MARKS
        assert prompt[: 2 + rows + 1] == [1, 25, *[24] * rows, 36]
        assert prompt[2 + rows + 1 : -2] == ids and prompt[-2:] == [35, 25]
        assert prompt.count(24) == rows  # special strings in a text are text
        assert b"".join(published.token_bytes(i) for i in ids).decode() == text


def test_ids_survive_the_pipe(published: Tekken) -> None:
    sent, ids = Outgoing("vx-tokenize"), published.encode(TEXT)
    frames = [sent.open(0, {}), sent.data(0, Data(0, 0, ids=ids))]
    _, data = FrameReader(io.BytesIO(b"".join(map(encode, frames))))
    assert PromptIds().prompt(data.ids or [], 147, VOCAB) == GOLDEN


def test_the_golden_from_the_command_line(published_file: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["vx-tokenize", "--ids", "--tokenizer", str(published_file)], input=f"{TEXT}\n".encode(), capture_output=True,
        timeout=60, check=True, env=environment(None, XDG_CACHE_HOME=str(tmp_path)),
    )  # fmt: skip
    assert PromptIds().prompt([int(word) for word in done.stdout.split()], 147, VOCAB) == GOLDEN


NAMES = {
    "<s>": "bos", "[AUDIO]": "audio", "[BEGIN_AUDIO]": "begin_audio", "[REPEAT_AUDIO_TEXT]": "repeat_audio_text",
    "[NEXT_AUDIO_TEXT]": "next_audio_text",
}  # fmt: skip


def with_special(*tokens: tuple[str, int]) -> Tekken:
    entries = [{"token_str": name, "rank": rank, "is_control": True} for name, rank in tokens]
    return Tekken.parse(json.dumps(tekken_json(special_tokens=entries)).encode())


def test_ids_are_resolved_by_name() -> None:
    moved = dict(zip(NAMES, (50, 51, 52, 53, 54), strict=True))
    ids = PromptIds.of(with_special(*moved.items()))
    assert ids == PromptIds(**{NAMES[name]: rank for name, rank in moved.items()}, n_special=64)
    assert ids.prompt([100, 101], 3, 200) == [50, 52, 51, 51, 51, 54, 100, 101, 53, 52]
    # What a file does not name is as published.
    some = PromptIds.of(with_special(("[NEXT_AUDIO_TEXT]", 60)))
    assert some == replace(PromptIds(), next_audio_text=60, n_special=64)


def test_a_vocabulary_without_room_for_them_is_refused() -> None:
    config = {"default_num_special_tokens": 30, "default_vocab_size": 290}
    small = Tekken.parse(json.dumps(tekken_json(**config)).encode())
    with pytest.raises(BadModelError, match=r"no special token '\[REPEAT_AUDIO_TEXT\]'"):
        PromptIds.of(small)
    with pytest.raises(BadModelError, match="a vocabulary of 36 has no special token 36"):
        replace(PromptIds(), n_special=10).prompt([20], 3, 36)


@pytest.mark.parametrize("wrong", [0, 1, 2, 24, 25, 35, 36, 999, VOCAB, VOCAB + 5, 2**32 - 1, -1])
def test_ids_that_are_no_text_are_refused(wrong: int) -> None:
    for text in ([wrong], [1000, 1001, wrong], [wrong, 1000]):
        with pytest.raises(
            BadInputError,
            match=f"^the token id {wrong} is no text: text ids are 1000 to 131071 here; .*same tekken",
        ):
            PromptIds().prompt(text, 3, VOCAB)
    assert len(PromptIds().prompt([1000, VOCAB - 1], 3, VOCAB)) == 2 + 3 + MARKS


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(BadInputError, match="no token ids: there is no text to speak"):
        PromptIds().prompt([], 3, VOCAB)
