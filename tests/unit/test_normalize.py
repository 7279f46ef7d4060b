from __future__ import annotations

import time

import pytest

from voxtral_pipes.models.normalize import normalize, words_of

TABLE = [
    # Markdown
    ("# A title", "A title."),
    ("**bold**, *slanted*, __bold__ and _slanted_", "bold, slanted, bold and slanted."),
    ("a `name` in ~~the~~ text", "a name in the text."),
    ("see [the page](https://example.org/a_b) and ![a cat](cat.png)", "see the page and a cat."),
    ("- one\n- two\n> three\n\n---\n```sh\nfour\n```", "one two three four."),
    ("2 * 3 * 4 and snake_case_name", "2 * 3 * 4 and snake_case_name."),
    # characters without width, line ends
    ("ze\u200bro wi\u2060dth\ufeff", "zero width."),
    ("one\ntwo\r\nthree   four", "one two three four."),
    # money
    ("$1", "one dollar."),
    ("It costs $5.20 or €3.", "It costs five dollars and twenty cents or three euros."),
    ("£0.01, £0.50 and £1,250.99", "one penny, fifty pence and one thousand two hundred fifty pounds and "
     "ninety-nine pence."),
    ("$0 or $7.00 or $1.5", "zero dollars or seven dollars or one dollar and fifty cents."),
    ("$1.5 million and €2 billion", "one point five million dollars and two billion euros."),
    ("$5.55M, US$5, $1,2345, $5-10, $999999999999999999", "$5.55M, US$5, $1,2345, $5-10, $999999999999999999."),
    # numbers
    ("1,000,000 people", "one million people."),
    ("12,345,678.05 of 999,999 and 2000000", "twelve million three hundred forty-five thousand six hundred "
     "seventy-eight point zero five of 999,999 and 2000000."),
    ("1,000,0000 and 1,000,000k", "1,000,0000 and 1,000,000k."),
    # parentheses and dashes
    ("the dog (a poodle) barked", "the dog — a poodle — barked."),
    ("It ended (badly).", "It ended — badly."),
    ("(First) this (second), that", "First — this — second, that."),
    ("wait -- what--no", "wait — what—no."),
    # ends
    ("No!!! Why??? What?!?! OK...", "No! Why? What?! OK..."),
    ("already done.", "already done."),
    ('He said "yes!"', 'He said "yes!"'),
    ('He said "yes"', 'He said "yes".'),
    ("and then:", "and then."),
    ("元気です。", "元気です。"),
    ("नमस्ते।", "नमस्ते।"),
    # nothing to say
    ("", ""), ("  ", ""), ("***", ""), ("\u200b", ""), ("()", ""), (",", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), TABLE)
def test_text_is_written_as_it_is_spoken(text: str, expected: str) -> None:
    assert normalize(text) == expected


@pytest.mark.parametrize(("text", "expected"), TABLE)
def test_normalizing_twice_changes_nothing_more(text: str, expected: str) -> None:
    assert normalize(expected) == expected


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"), (13, "thirteen"), (20, "twenty"), (21, "twenty-one"), (100, "one hundred"),
        (999, "nine hundred ninety-nine"), (1000, "one thousand"), (10**6 + 1, "one million one"),
        (10**12 + 2 * 10**9, "one trillion two billion"),
    ],
)  # fmt: skip
def test_numbers_in_words(number: int, words: str) -> None:
    assert words_of(number) == words


def test_numbers_that_have_no_words_are_refused() -> None:
    for number in (-1, 10**15):
        with pytest.raises(ValueError):
            words_of(number)


@pytest.mark.parametrize(
    "unit", ["*", "**a", "_", "__a", "`", "~~", "[", "[a](", "![", "(", ")", "-", "- ", "> ", "#", "$1", "1,000", "9",
             "$9.", "!?", "—", ". ", "\n", "``` "],
)  # fmt: skip
def test_hostile_text_takes_no_longer(unit: str) -> None:
    begun = time.process_time()
    normalize(unit * (200_000 // len(unit)))
    assert time.process_time() - begun < 3
