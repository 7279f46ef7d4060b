from __future__ import annotations

from itertools import pairwise

from voxtral_pipes.models.cues import Cue, CueCutter

POSITION_MS = 80


def cues(text: str, *, word_ms: int = 160) -> list[Cue]:
    """Cut a text spoken at one word every `word_ms`; "|" is a second of silence."""
    cutter, now = CueCutter(), 0
    found: list[Cue] = []
    for word in text.split(" "):
        if word == "|":
            for _ in range(13):
                now += POSITION_MS
                found += cutter.wait(now)
            continue
        found += cutter.add(f" {word}", now, now + POSITION_MS)
        now += word_ms
    return found + list(cutter.flush())


def texts(text: str, **options: int) -> list[str]:
    return [cue.text for cue in cues(text, **options)]


def test_a_cue_ends_with_the_sentence() -> None:
    assert texts("We went there yesterday. Nobody came! Did you? No.") == [
        "We went there yesterday.", "Nobody came!", "Did you? No.",
    ]  # fmt: skip


def test_quotes_and_brackets_belong_to_the_sentence() -> None:
    assert texts('He said "go home now." Then (at last.) we left') == [
        'He said "go home now."',
        "Then (at last.)",
        "we left",
    ]


def test_titles_initials_and_numbers_are_no_sentences() -> None:
    assert texts("Here comes Mr. Smith with Prof. J. Doe at 3.5 o'clock") == [
        "Here comes Mr. Smith with Prof. J. Doe at 3.5 o'clock"
    ]


def test_a_pause_ends_a_cue_and_shows_it_for_a_second_at_most_until_the_next() -> None:
    assert [(c.start_ms, c.end_ms, c.text) for c in cues("well | and so")] == [
        (0, 880, "well"),
        (1200, 2200, "and so"),
    ]


def test_a_cue_has_two_lines_of_42_columns() -> None:
    found = cues("the quick brown fox jumps over the lazy dog " * 5, word_ms=80)
    assert len(found) > 2
    assert all(len(cue.lines) <= 2 and max(map(len, cue.lines)) <= 42 for cue in found)
    assert (
        " ".join(cue.text for cue in found).split()
        == ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"] * 5
    )


def test_lines_are_about_equal() -> None:
    assert cues("one two three four five six seven eight nine ten", word_ms=80)[0].lines == (
        "one two three four five", "six seven eight nine ten",
    )  # fmt: skip


def test_a_cue_lasts_six_seconds_and_rather_ends_after_a_comma() -> None:
    found = cues("a b c d e f, g h i j k l m", word_ms=700)
    assert [cue.text for cue in found] == ["a b c d e f,", "g h i j k l m"]
    assert all(cue.end_ms - cue.start_ms <= 6000 for cue in cues("a " * 40, word_ms=700))


def test_cues_do_not_overlap() -> None:
    found = cues("Yes this is it. " * 12, word_ms=80)
    assert all(a.end_ms <= b.start_ms and a.start_ms < a.end_ms for a, b in pairwise(found))


def test_japanese_breaks_between_characters_and_after_its_full_stop() -> None:
    found = cues("これは日本語の長い文章です。もう一つの文があります、そして改行もできるはずですよね、はい。")
    assert found[0].text == "これは日本語の長い文章です。"
    assert all(2 * len(line) <= 42 and line[0] not in "、。" for cue in found for line in cue.lines)


def test_a_word_without_end_is_broken() -> None:
    found = cues("x" * 500)
    assert "".join(cue.text for cue in found) == "x" * 500
    assert max(len(line) for cue in found for line in cue.lines) == 42
    assert sum(len(cue.text) for cue in cues("\u0301" * 2000)) == 2000


def test_control_characters_are_left_out() -> None:
    assert texts("a\x1b[31mb\x00 c\td") == ["a[31mb c d"]
