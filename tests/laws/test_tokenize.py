"""What must hold for any text, cut in any way: the laws of vx-tokenize."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from id_streams import vocabulary

from voxtral_pipes.errors import BadInputError
from voxtral_pipes.formats.frame import encode
from voxtral_pipes.models.normalize import normalize
from voxtral_pipes.models.text import split
from voxtral_pipes.stages.tokenize import Settings, Tokenize, frames

VOCABULARY = vocabulary()
TEXT = st.text(
    st.one_of(
        st.sampled_from("abAB .,!?;—\n\r\t\"'()*_`[]#$1,0-。、😀é日\u0301\x00\u200b"),
        st.characters(codec="utf-8"),
    ),
    max_size=120,
)
SETTINGS = st.builds(
    Settings, whole=st.booleans(), normalize=st.booleans(), max_chars=st.sampled_from([0, 1, 5, 20, 500])
)

quick = settings(max_examples=150, deadline=None)


def run(pieces: list[bytes], chosen: Settings) -> tuple[bytes, str]:
    """Return what is written for an input, and the error it ends with."""
    written = b""
    try:
        for frame in frames(Tokenize(VOCABULARY, chosen).utterances(pieces), "stdin"):
            written += encode(frame)
    except BadInputError as error:
        return written, str(error)
    return written, ""


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(bounds)]


@quick
@given(
    text=TEXT,
    bad=st.sampled_from([b"", b"", b"\xff", b"\xe2\x82"]),
    places=st.lists(st.integers(0, 999)),
    chosen=SETTINGS,
)
def test_any_cutting_gives_the_same_output(
    text: str, bad: bytes, places: list[int], chosen: Settings
) -> None:
    data = text.encode() + bad + text.encode()
    assert run(cut(data, places), chosen) == run([data], chosen)
    assert run([data[at : at + 1] for at in range(len(data))], chosen) == run([data], chosen)


@quick
@given(text=TEXT, more=TEXT, chosen=SETTINGS)
def test_more_lines_never_change_earlier_ones(text: str, more: str, chosen: Settings) -> None:
    chosen = Settings(normalize=chosen.normalize, max_chars=chosen.max_chars)
    shorter, _ = run([f"{text}\n".encode()], chosen)
    assert run([f"{text}\n{more}".encode()], chosen)[0].startswith(shorter)


@quick
@given(text=TEXT, max_chars=st.integers(1, 40))
def test_cutting_loses_white_space_alone_and_no_word_is_cut(text: str, max_chars: int) -> None:
    pieces = list(split(text, max_chars))
    assert "".join("".join(pieces).split()) == "".join(text.split())
    for piece in pieces:
        assert len(piece) <= max_chars or len(piece.split()) == 1
    if len(text) > max_chars:
        assert all(piece and piece == piece.strip() for piece in pieces)
        at = 0
        for piece in pieces:
            at = text.index(piece, at) + len(piece)
            # Between two letters of the same word nothing is cut.
            assert not (at < len(text) and text[at].isalnum() and piece[-1].isalnum())


@quick
@given(text=TEXT)
def test_normalized_text_has_no_markup_left_to_find(text: str) -> None:
    said = normalize(text)
    assert said == " ".join(said.split())
    assert not set("()\n\u200b") & set(said) and "--" not in said
