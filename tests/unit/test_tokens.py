from __future__ import annotations

import pytest
from id_streams import N_SPECIAL, PAD, vocabulary

from voxtral_pipes.errors import BadInputError
from voxtral_pipes.models.tokens import detokenise, finish, time_ms


def decode(data: bytes) -> list[str]:
    """Return what each byte, as a token of its own, completes; then what the end gives."""
    tekken, held, texts = vocabulary(), b"", []
    for byte in data:
        text, held = detokenise(tekken, held, N_SPECIAL + byte)
        assert len(held) <= 3
        texts.append(text)
    return [*texts, finish(held)]


def test_a_code_point_comes_with_its_last_byte() -> None:
    assert decode("aé€😀".encode()) == ["a", "", "é", "", "", "€", "", "", "", "😀", ""]


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"a\x80b",
        b"\xf0\x9f\x98",
        b"\xe2\x82",
        b"\xc3(",
        b"\xed\xa0\x80",
        b"\xf0\x9f\x98\xf0\x9f\x98\x80",
    ],
)
def test_invalid_bytes_are_replaced_as_in_one_piece(data: bytes) -> None:
    assert "".join(decode(data)) == data.decode(errors="replace")


def test_a_special_token_inside_a_character_breaks_nothing() -> None:
    tekken = vocabulary()
    text, held = detokenise(tekken, b"", N_SPECIAL + 0xC3)
    assert (text, held) == ("", b"\xc3")
    assert detokenise(tekken, held, PAD) == ("", b"\xc3")
    assert detokenise(tekken, held, N_SPECIAL + 0xA9) == ("é", b"")


def test_the_zero_byte_is_text() -> None:
    assert decode(b"\0") == ["\0", ""]


def test_an_id_beyond_the_vocabulary_is_refused() -> None:
    tekken = vocabulary()
    for token in (tekken.vocab_size, 2**31, -1):
        with pytest.raises(BadInputError, match=f"{token} is not in the vocabulary of {tekken.vocab_size}"):
            detokenise(tekken, b"", token)


def test_times_are_those_of_the_source() -> None:
    assert time_ms(1280 * 6, 16000, 6) == 0
    assert time_ms(1280 * 7, 16000, 6) == 80
    assert time_ms(1280 * 7, 16000, 0) == 560
    assert time_ms(-40960, 16000, 6) == 0
    assert time_ms(1920 * 10, 24000, 0) == 800
