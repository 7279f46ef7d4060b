from __future__ import annotations

import time

import pytest

from voxtral_pipes.errors import BadInputError
from voxtral_pipes.models.text import MAX_LINE_BYTES, MAX_WHOLE_BYTES, decode, is_blank, lines, split, whole


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"a", [b"a"]),
        (b"a\n", [b"a"]),
        (b"a\r\n", [b"a"]),
        (b"\n\na\n", [b"", b"", b"a"]),
        (b"a\rb\r\r\nc\r", [b"a\rb\r", b"c\r"]),
        (b" a \x00\x1b\x0c\n", [b" a \x00\x1b\x0c"]),
    ],
)
def test_lines_lose_their_terminator_and_nothing_else(data: bytes, expected: list[bytes]) -> None:
    assert list(lines([data])) == expected
    assert list(lines(bytes([byte]) for byte in data)) == expected


def test_a_line_is_given_as_soon_as_it_ends() -> None:
    taken = []

    def pieces():
        for piece in (b"a\nb", b"c\n", b"d"):
            taken.append(piece)
            yield piece

    found = lines(pieces())
    assert (next(found), taken) == (b"a", [b"a\nb"])
    assert (next(found), taken) == (b"bc", [b"a\nb", b"c\n"])


@pytest.mark.parametrize("piece", [1 << 16, 999_983, 2_000_000])
def test_an_endless_line_is_refused(piece: int) -> None:
    for end in (b"\n", b"\r\n"):
        assert [*lines([b"x" * MAX_LINE_BYTES + end])] == [b"x" * MAX_LINE_BYTES]
    endless = iter(lambda: b"x" * piece, b"")
    found = lines(part for group in ([b"one\n"], endless) for part in group)
    assert next(found) == b"one"
    with pytest.raises(BadInputError, match="line 2 is longer"):
        next(found)


def test_the_whole_input_loses_its_last_terminator_only() -> None:
    assert whole([b"a\r\n", b"b\n\n"]) == b"a\r\nb\n"
    assert whole([b"a\n\r", b"\n"]) == b"a\n"
    assert whole([b"a\r"]) == b"a\r"
    assert whole([]) == b""
    with pytest.raises(BadInputError, match="16 MiB"):
        whole(iter(lambda: b"x" * (MAX_WHOLE_BYTES // 8), b""))


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"\xff", r"line 7, byte 1 \(0xff\)"),
        ("é".encode() + b"\xe9t", r"line 7, byte 3 \(0xe9\)"),
        (b"a\n\nbc\xc0\x80", r"line 9, byte 3 \(0xc0\)"),
        (b"a\xe2\x82", r"line 7, byte 2 \(0xe2\)"),
        (b"\xed\xa0\x80", r"line 7, byte 1 \(0xed\)"),
    ],
)
def test_what_is_no_utf8_is_named(data: bytes, place: str) -> None:
    with pytest.raises(BadInputError, match=place):
        decode(data, 7)


def test_a_byte_order_mark_is_no_text_where_the_input_begins() -> None:
    assert decode(b"\xef\xbb\xbfhi", 1) == "hi"
    assert decode(b"hi\xef\xbb\xbf", 1) == "hi\ufeff" and decode(b"\xef\xbb\xbfhi", 2) == "\ufeffhi"
    with pytest.raises(BadInputError, match=r"line 1, byte 5 \(0xff\)"):
        decode(b"\xef\xbb\xbfa\xff", 1)


def test_blank_is_white_space_alone() -> None:
    assert all(is_blank(text) for text in ("", " ", "\t \n", "\u3000\u00a0"))
    assert not any(is_blank(text) for text in (".", "\x00", "\x1b", "\u200b"))


SPLITS = [
    # Each utterance takes as many sentences as fit.
    ("One. Two. Three. Four.", 10, ["One. Two.", "Three.", "Four."]),
    ("One! Two? Three… Four.", 11, ["One! Two?", "Three…", "Four."]),
    ("  One.   Two.  ", 6, ["One.", "Two."]),
    ('He said "no." She left.', 15, ['He said "no."', "She left."]),
    ("(It was late.) He went.", 16, ["(It was late.)", "He went."]),
    # What is no end of a sentence.
    ("Pi is 3.14 or so. Yes it is.", 18, ["Pi is 3.14 or so.", "Yes it is."]),
    ("It was Dr. Smith and Mr. Jones who came", 30, ["It was Dr. Smith and Mr. Jones", "who came"]),
    ("J. S. Bach wrote a lot, etc. and so on", 25, ["J. S. Bach wrote a lot,", "etc. and so on"]),
    ("Wait... what was that noise", 20, ["Wait... what was", "that noise"]),
    ('"Is it?" he asked. Yes.', 18, ['"Is it?" he asked.', "Yes."]),
    ('"Is it?" he asked.', 12, ['"Is it?" he', "asked."]),
    ("See example.com now please", 18, ["See example.com", "now please"]),
    # A sentence that does not fit: clauses, then spaces; a word stays whole.
    ("first part, second part; third part", 24, ["first part, second part;", "third part"]),
    ("one two three four", 9, ["one two", "three", "four"]),
    ("a verylongword b", 4, ["a", "verylongword", "b"]),
    ("well—known and well-known", 10, ["well—", "known and", "well-known"]),
    ("abc, verylongword, d", 5, ["abc,", "verylongword,", "d"]),
    # Scripts without spaces, and others' full stops.
    ("今日は。元気ですか？はい、元気です。", 10, ["今日は。元気ですか？", "はい、元気です。"]),
    ("「今日は。」元気、です", 7, ["「今日は。」", "元気、です"]),
    ("नमस्ते। आप कैसे हैं।", 12, ["नमस्ते।", "आप कैसे हैं।"]),
    ("مرحبا. كيف حالك؟ بخير", 17, ["مرحبا. كيف حالك؟", "بخير"]),
    # Paragraphs end sentences, other line ends are spaces.
    ("A title\n\nThe text\ngoes on.", 20, ["A title", "The text\ngoes on."]),
]


@pytest.mark.parametrize(("text", "max_chars", "expected"), SPLITS)
def test_long_texts_are_cut_where_a_voice_would_pause(text: str, max_chars: int, expected: list[str]) -> None:
    assert list(split(text, max_chars)) == expected


def test_a_text_that_fits_is_not_touched() -> None:
    text = "  One.  Two.\n "
    assert list(split(text, len(text))) == list(split(text, 0)) == [text]
    assert list(split("x" * 5000, 0)) == ["x" * 5000]


@pytest.mark.parametrize(
    "text",
    ["." * 400_000, ".)" * 200_000, "x" * 400_000, "a " * 200_000, "—" * 400_000, "\n \n" * 130_000, "," * 400_000],
)  # fmt: skip
@pytest.mark.parametrize("max_chars", [1, 500, 100_000])
def test_hostile_texts_take_no_longer(text: str, max_chars: int) -> None:
    begun = time.process_time()
    pieces = list(split(text, max_chars))
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert time.process_time() - begun < 5
