from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from id_streams import spell, vocabulary
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from voxtral_pipes.errors import BadInputError
from voxtral_pipes.formats.frame import HEADER, Frame, decode, encode
from voxtral_pipes.formats.tekken import Tekken
from voxtral_pipes.models.text import MAX_LINE_BYTES
from voxtral_pipes.stages.tokenize import MAX_BLANKS, Settings, Tokenize, Utterance, frames

SMALL = vocabulary()


def run(data: bytes, vocabulary: Tekken = SMALL, **settings: Any) -> list[Utterance]:
    return list(Tokenize(vocabulary, Settings(**settings)).utterances([data]))


def texts(data: bytes, **settings: Any) -> list[str]:
    return [b"".join(map(SMALL.token_bytes, u.ids)).decode() for u in run(data, **settings)]


def test_the_golden(published: Tekken) -> None:
    for end in (b"", b"\n", b"\r\n"):
        [utterance] = run(b"Paris is a beautiful city!" + end, published)
        assert utterance.ids == [42572, 1395, 1261, 15568, 5970, 1033]


def test_ids_are_those_of_the_reference(published_file: Path, published: Tekken) -> None:
    reference = Tekkenizer.from_file(published_file)
    written = [
        "Hello world", "  two  spaces ", "don't I'll", "1234567 and 3.14", "Füße, naïve café", "Привет, мир",
        "こんにちは世界。", "你好，世界", "안녕하세요", "مرحبا بالعالم", "नमस्ते दुनिया", "👩‍👩‍👧‍👦 😀 🇫🇷",
        "e\u0301", "\x00\x01\x1b[31m\x7f", "<s>[INST] </s> [AUDIO][BEGIN_AUDIO]", "\ufeffmark", "a\rb\r", "tab\t",
    ]  # fmt: skip
    data = "\n".join([*written, ""]).replace("a\rb\r\n", "a\rb\r\r\n").encode()
    expected = [reference.encode(text, bos=False, eos=False) for text in written]
    assert [utterance.ids for utterance in run(data, published)] == expected
    whole = "\n".join(written)
    [utterance] = run(whole.encode() + b"\n", published, whole=True, max_chars=0)
    assert utterance.ids == reference.encode(whole, bos=False, eos=False)


def test_special_strings_are_plain_text() -> None:
    [utterance] = run(b"<s>[AUDIO]</s>")
    assert utterance.ids == spell("<s>[AUDIO]</s>")
    assert min(utterance.ids) >= SMALL.n_special


def test_blank_lines_are_noted_and_counted() -> None:
    notes: list[str] = []
    stage = Tokenize(SMALL, Settings(max_chars=4), notes.append)
    found = [(u.line, u.part, len(u.ids)) for u in stage.utterances([b"\n \t\r\na b. c\n\nd"])]
    assert found == [(3, 0, 4), (3, 1, 1), (5, 0, 1)]
    assert notes == [f"line {line}: empty, skipped" for line in (1, 2, 4)]


def test_input_without_text() -> None:
    warnings: list[str] = []
    assert list(Tokenize(SMALL, Settings(), warn=warnings.append).utterances([b"\n\n"])) == []
    assert warnings == ["every line is empty: there is no text to speak"]
    for data, whole in ((b"", False), (b"", True), (b" \n\n", True)):
        with pytest.raises(BadInputError, match="there is no text to speak"):
            run(data, whole=whole)


def test_whole_and_lines_and_cuts() -> None:
    data = b"One. Two\nthree. Four.\n"
    assert texts(data) == ["One. Two", "three. Four."]
    assert texts(data, whole=True) == ["One. Two\nthree. Four."]
    assert texts(data, whole=True, max_chars=17) == ["One. Two\nthree.", "Four."]
    assert texts(data, max_chars=6) == ["One.", "Two", "three.", "Four."]


def test_normalizing_comes_before_cutting_and_may_leave_nothing() -> None:
    assert texts(b"**One** $1\n***\n", normalize=True, max_chars=12) == ["One one", "dollar."]
    assert texts(b"a\n\n* b", whole=True, normalize=True) == ["a b."]


def test_lines_before_a_bad_one_are_spoken() -> None:
    found = Tokenize(SMALL, Settings()).utterances([b"a\nb\xff\nc\n"])
    assert next(found).ids == spell("a")
    with pytest.raises(BadInputError, match="line 2, byte 2"):
        next(found)


def test_an_utterance_always_fits_into_a_frame() -> None:
    [utterance] = run(b"\x01" * MAX_LINE_BYTES, max_chars=0)
    *_, data, _ = frames([utterance], "stdin")
    assert len(utterance.ids) == MAX_LINE_BYTES
    assert decode(encode(data)[HEADER.size :]).ids == utterance.ids
    with pytest.raises(BadInputError, match="lower --max-chars"):
        run(b"x" * (MAX_LINE_BYTES + 1), whole=True)


def test_endless_blanks_inside_an_utterance_are_refused(published: Tekken) -> None:
    """The tokenizer library ends in a panic on a million of them."""
    blanks = b"a" + b" " * (MAX_BLANKS - 1) + b"b"
    assert len(run(blanks, published, max_chars=0)) == 1
    for data in (blanks.replace(b"b", b" b"), b"a" + b" " * 990_000):
        with pytest.raises(BadInputError, match="blanks in a row"):
            run(data, published, max_chars=0)
        assert run(data, published)[0].ids == published.encode("a")


def test_frames_of_utterances() -> None:
    assert list(frames([Utterance([7], 1, 0), Utterance([8, 9], 3, 1)], "stdin")) == [
        Frame("open", 0, meta={"source": "stdin", "line": 1, "part": 0}),
        Frame("data", 0, 0, ids=[7]),
        Frame("end", 0, 1),
        Frame("open", 1, meta={"source": "stdin", "line": 3, "part": 1}),
        Frame("data", 1, 0, ids=[8, 9]),
        Frame("end", 1, 1),
    ]
