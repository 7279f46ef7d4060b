from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from id_streams import N_SPECIAL, PATTERN, PIECES, tekken_json, vocabulary
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from voxtral_pipes.errors import BadModelError, NoModelError
from voxtral_pipes.formats import tekken as module
from voxtral_pipes.formats.tekken import BUILTIN_SPECIAL, Tekken

TEXTS = [
    "Hello world", "Paris is a beautiful city!", "  two  spaces\n\nand lines\t", "1234567 and 3.14",
    "don't I'll we've",
    "Füße, naïve café, œuvre", "Привет, мир", "こんにちは世界。", "你好，世界", "안녕하세요 세계",
    "مرحبا بالعالم", "שלום עולם",
    "नमस्ते दुनिया", "สวัสดีชาวโลก", "👩‍👩‍👧‍👦 😀 🇫🇷", "e\u0301 a\u0308",
    "\x00\x01\x1b[31m", "<s>[INST] </s> [STREAMING_PAD]", "", " ",
]  # fmt: skip


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def reference(published_file: Path) -> Tekkenizer:
    return Tekkenizer.from_file(published_file)


def write(path: Path, top: dict[str, Any], *, age_s: float = 60, size: int = 0) -> Path:
    text = json.dumps(top)
    path.write_text(text + " " * max(0, size - len(text)))
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


# --- the published vocabulary


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [22177, 4304]),
        ("Paris is a beautiful city!", [42572, 1395, 1261, 15568, 5970, 1033]),
    ],
)
def test_published_prompts_give_their_ids(published: Tekken, text: str, ids: list[int]) -> None:
    assert published.encode(text) == ids


def test_encoding_agrees_with_the_reference(published: Tekken, reference: Tekkenizer) -> None:
    draw = random.Random(5)
    mixed = ["".join(draw.choices("".join(TEXTS) + "aeiou \n", k=60)) for _ in range(200)]
    for text in [*TEXTS, *mixed]:
        ids = published.encode(text)
        assert ids == reference.encode(text, bos=False, eos=False)
        assert b"".join(map(published.token_bytes, ids)).decode() == text


def test_the_bytes_of_an_id_agree_with_the_reference(published: Tekken, reference: Tekkenizer) -> None:
    assert published.vocab_size == reference.n_words == 131072
    for token in [*range(990, 1300), *range(1300, 131072, 41), 131071]:
        assert published.token_bytes(token) == reference.id_to_byte_piece(token, SpecialTokenPolicy.IGNORE)


def test_the_names_of_old_files_agree_with_the_reference(published: Tekken, reference: Tekkenizer) -> None:
    for token in range(20):
        assert published.special_name(token) == reference.id_to_piece(token)
        assert published.special(BUILTIN_SPECIAL[token]) == token


def test_the_vocabulary_is_truncated_before_encoding(published_file: Path, published: Tekken) -> None:
    """Entries past the vocabulary would take part in merges and give ids that no model has."""
    top = json.loads(published_file.read_bytes())
    beyond = [entry["token_str"] for entry in top["vocab"][130072:] if entry["token_str"]]
    assert len(beyond) > 19000
    for text in random.Random(1).sample(beyond, 300):
        ids = published.encode(text)
        assert max(ids) < 131072
        assert b"".join(map(published.token_bytes, ids)).decode() == text


def test_encoding_is_that_of_tiktoken_over_the_first_pieces() -> None:
    encoding = tiktoken.Encoding(
        "x", pat_str=PATTERN, mergeable_ranks={p: r for r, p in enumerate(PIECES)}, special_tokens={}
    )
    assert vocabulary().encode("Hello the world.") == [
        N_SPECIAL + r for r in encoding.encode("Hello the world.")
    ]


def test_lone_surrogates_are_replaced() -> None:
    assert vocabulary().encode("\udc80") == vocabulary().encode("�")


# --- ids and names


def test_special_ids_have_no_bytes_and_others_only_up_to_the_vocabulary() -> None:
    tekken = vocabulary()
    assert tekken.token_bytes(0) == tekken.token_bytes(N_SPECIAL - 1) == b""
    assert tekken.token_bytes(N_SPECIAL) == b"\0"
    assert tekken.token_bytes(tekken.vocab_size - 1) == PIECES[-1]
    for token in (-1, tekken.vocab_size, 2**32):
        with pytest.raises(ValueError, match="not in the vocabulary"):
            tekken.token_bytes(token)


def test_specials_are_found_by_the_name_in_the_file_first() -> None:
    given = [
        {"rank": 7, "token_str": "[STREAMING_PAD]", "is_control": True},
        {"rank": 8, "token_str": "[OTHER]", "is_control": True},
    ]
    tekken = Tekken.parse(json.dumps(tekken_json(special_tokens=given)).encode())
    assert tekken.special("[STREAMING_PAD]") == 7
    assert tekken.special("[OTHER]") == 8
    assert tekken.special("[STREAMING_WORD]") == 33
    assert [tekken.special_name(i) for i in (7, 8, 33, 40)] == [
        "[STREAMING_PAD]",
        "[OTHER]",
        "[STREAMING_WORD]",
        "<SPECIAL_40>",
    ]
    with pytest.raises(BadModelError, match="no special token '<nothing>'"):
        tekken.special("<nothing>")


def test_a_published_number_beyond_the_specials_is_not_taken() -> None:
    tekken = Tekken.parse(
        json.dumps(tekken_json(default_num_special_tokens=4, default_vocab_size=264)).encode()
    )
    assert tekken.special("</s>") == 2
    with pytest.raises(BadModelError, match="STREAMING_PAD"):
        tekken.special("[STREAMING_PAD]")


def test_the_audio_section_is_kept() -> None:
    assert vocabulary().audio == {}
    assert Tekken.parse(json.dumps(tekken_json(audio={"frame_rate": 12.5})).encode()).audio == {
        "frame_rate": 12.5
    }


# --- hostile files


def entry(at: int, **changes: Any) -> Callable[[dict[str, Any]], Any]:
    def change(top: dict[str, Any]) -> None:
        top["vocab"][at].update(changes)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda top: top.pop("config"), "lacks 'config' or 'vocab'"),
        (lambda top: top.pop("vocab"), "lacks 'config' or 'vocab'"),
        (lambda top: top.update(config=[]), "lacks 'config' or 'vocab'"),
        (lambda top: top.update(vocab={}), "'vocab' is not a list"),
        (lambda top: top.update(audio=[]), "'audio' is not an object"),
        (lambda top: top["config"].pop("pattern"), "config.pattern"),
        (lambda top: top["config"].pop("default_vocab_size"), "config.default_vocab_size is None"),
        (lambda top: top["config"].update(default_num_special_tokens=True), "is True, not a number"),
        (lambda top: top["config"].update(default_vocab_size=10**30), "text tokens; there are"),
        (lambda top: top["config"].update(default_vocab_size=255 + N_SPECIAL), "255 text tokens"),
        (
            lambda top: top["config"].update(
                default_num_special_tokens=10**9, default_vocab_size=10**9 + 256
            ),
            "10000",
        ),
        (lambda top: top["vocab"].pop(3), r"vocab\[3\] does not have the rank 3"),
        (lambda top: top["vocab"].insert(5, 5), r"vocab\[5\] does not have the rank 5"),
        (entry(5, rank=5.0), r"vocab\[5\] does not have the rank"),
        (entry(0, rank=False), r"vocab\[0\] does not have the rank"),
        (entry(5, token_bytes="!!!!"), "rank 5 are not base64"),
        (entry(5, token_bytes="BQ"), "rank 5 are not base64"),
        (entry(5, token_bytes=5), "rank 5 are not base64"),
        (entry(5, token_bytes="Bg=="), "not the byte 5"),
        (entry(257, token_bytes=""), "rank 257 are empty"),
        (entry(257, token_bytes="AA=="), "repeated"),
        (lambda top: top["vocab"][9].pop("token_bytes"), "rank 9 are not base64"),
        (lambda top: top.update(special_tokens={}), "'special_tokens' is not a list"),
        (lambda top: top.update(special_tokens=["x"]), r"special_tokens\[0\] lacks"),
        (lambda top: top.update(special_tokens=[{"rank": 64, "token_str": "x"}]), "rank below 64"),
        (lambda top: top.update(special_tokens=[{"rank": i, "token_str": "x"} for i in (0, 1)]), "twice"),
        (lambda top: top.update(special_tokens=[{"rank": 0, "token_str": x} for x in "ab"]), "twice"),
    ],
)
def test_malformed_files_are_refused_in_one_line(
    change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    top = tekken_json()
    change(top)
    with pytest.raises(BadModelError, match=message) as caught:
        Tekken.parse(json.dumps(top).encode(), "x.json")
    assert str(caught.value).startswith("x.json: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff\xfe", b"null", b"[" * 100000, b'{"config": 1' + b"0" * 9000 + b"}"]
)
def test_what_is_no_json_is_refused(raw: bytes) -> None:
    with pytest.raises(BadModelError):
        Tekken.parse(raw)


def test_a_huge_file_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "tekken.json"
    with path.open("wb") as file:
        file.truncate(module.MAX_FILE_BYTES + 1)
    with pytest.raises(BadModelError, match="over 64 MiB"):
        Tekken.read(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NoModelError, match="no such file"):
        Tekken.read(tmp_path / "tekken.json")
    with pytest.raises(BadModelError, match="directory"):
        Tekken.read(tmp_path)


def test_a_pattern_that_is_no_pattern_is_found_on_encoding() -> None:
    tekken = Tekken.parse(json.dumps(tekken_json(pattern="(")).encode())
    with pytest.raises(BadModelError, match="pattern"):
        tekken.encode("x")


# --- the cache


def cached(cache_home: Path) -> list[Path]:
    return sorted(cache_home.glob("voxtral-pipes/tekken/*"))


def same(a: Tekken, b: Tekken) -> bool:
    return all(
        [
            [a.token_bytes(i) for i in range(a.vocab_size)]
            == [b.token_bytes(i) for i in range(b.vocab_size)],
            [a.special_name(i) for i in range(a.n_special)]
            == [b.special_name(i) for i in range(b.n_special)],
            a.encode("Hello the world") == b.encode("Hello the world"),
            (a.name, a.pattern, a.audio, a.n_special) == (b.name, b.pattern, b.audio, b.n_special),
        ]
    )


def test_the_second_reading_does_not_parse(
    tmp_path: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "tekken.json", tekken_json(audio={"frame_rate": 12.5}), size=2 << 20)
    first = Tekken.read(path, pytest.fail)
    assert len(cached(cache_home)) == 1
    monkeypatch.setattr(Tekken, "parse", lambda *arguments: pytest.fail("parsed again"))
    assert same(Tekken.read(path, pytest.fail), first)


def test_a_changed_file_is_parsed_again(tmp_path: Path, cache_home: Path) -> None:
    path = write(tmp_path / "tekken.json", tekken_json(), size=2 << 20)
    assert Tekken.read(path).audio == {}
    write(path, tekken_json(audio={"x": 1}), size=2 << 20, age_s=50)
    assert Tekken.read(path).audio == {"x": 1}
    assert Tekken.read(path).audio == {"x": 1}
    assert len(cached(cache_home)) == 1


@pytest.mark.parametrize("damage", [b"", b"VXTEKKEN", b"x" * 3000])
def test_a_corrupt_cache_is_made_anew(tmp_path: Path, cache_home: Path, damage: bytes) -> None:
    path = write(tmp_path / "tekken.json", tekken_json(), size=2 << 20)
    first = Tekken.read(path)
    (file,) = cached(cache_home)
    good = file.read_bytes()
    file.write_bytes(damage)
    notes: list[str] = []
    assert same(Tekken.read(path, notes.append), first)
    assert len(notes) == 1 and "corrupt" in notes[0]
    assert file.read_bytes() == good
    for at in range(0, len(good), 97):
        file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert same(Tekken.read(path), first)


def test_a_cache_that_cannot_be_written_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = write(tmp_path / "tekken.json", tekken_json(), size=2 << 20)
    notes: list[str] = []
    Tekken.read(path, notes.append)
    assert notes and all("cache was not" in note for note in notes)


def test_small_and_new_files_are_not_cached(tmp_path: Path, cache_home: Path) -> None:
    Tekken.read(write(tmp_path / "small.json", tekken_json()))
    Tekken.read(write(tmp_path / "new.json", tekken_json(), size=2 << 20, age_s=0))
    assert cached(cache_home) == []


def test_the_cache_does_not_grow(tmp_path: Path, cache_home: Path) -> None:
    for number in range(10):
        Tekken.read(write(tmp_path / f"{number}.json", tekken_json(), size=1 << 20))
    assert len(cached(cache_home)) == 8
