"""Shards that are missing, in another order, damaged or foreign, and manifests that are wrong, are refused."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from shards import F32, WHOLE, build, cut, join, names, pair, quiet, tensor

from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.names import MANIFEST, part_name
from voxtral_pipes.formats.shard_check import look, sums
from voxtral_pipes.formats.shard_set import Manifest, find_shards

pytestmark = pytest.mark.usefixtures("without_waiting_for_the_disk")


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def append(path: Path, data: bytes) -> None:
    path.write_bytes(path.read_bytes() + data)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def copy(path: Path, other: Path) -> None:
    other.write_bytes(path.read_bytes())


Harm = Callable[[Path], object]
RAW: dict[str, tuple[Harm, str]] = {
    "first missing": (lambda h: (h / "shard-aa").unlink(), "shard-aa is missing"),
    "middle missing": (lambda h: (h / "shard-ac").unlink(), "shard-ac is missing"),
    "last missing": (lambda h: (h / "shard-ah").unlink(), "shard is missing|is missing"),
    "first twice": (lambda h: copy(h / "shard-aa", h / "shard-ab"), "GGUF file of its own|ab holds what shard-aa"),
    "last twice": (lambda h: copy(h / "shard-ag", h / "shard-ah"), "twice, or foreign|shard-ah has"),
    "middle truncated": (lambda h: shorten(h / "shard-ac"), "shard-ac has 229 bytes"),
    "last truncated": (lambda h: shorten(h / "shard-ah"), "truncated|shard-ah has"),
    "last empty": (lambda h: (h / "shard-ah").write_bytes(b""), "shard-ah has 0 bytes"),
    "too long": (lambda h: append(h / "shard-ac", b"x"), "shard-ac has 231"),
    "foreign one more": (lambda h: (h / "shard-ai").write_bytes(bytes(100)), "shard-ah has|not in manifest"),
    "foreign name": (lambda h: (h / "shard-ba").write_bytes(bytes(100)), "is missing|not in manifest"),
    "nothing but a link": (lambda h: (h / "shard-ac").rename(h / "x").with_name("shard-ac").symlink_to("none"), "-ac"),
    "a directory": (lambda h: (h / "shard-ac").rename(h / "x").with_name("shard-ac").mkdir(), "not a regular file"),
}  # fmt: skip


@pytest.mark.parametrize("manifest", [False, True])
@pytest.mark.parametrize("case", RAW)
def test_harmed_raw_pieces_are_refused(tmp_path: Path, case: str, manifest: bool) -> None:
    home = cut(WHOLE, tmp_path / "shards", 230, manifest=manifest)
    assert names(home)[-1] == "shard-ah"
    harm, message = RAW[case]
    harm(home)
    with pytest.raises(BadModelError, match=message) as caught:
        join(home)
    assert "\n" not in str(caught.value)
    with pytest.raises(BadModelError):
        list(sums(look(home), quiet))


def test_a_manifest_tells_order_and_every_bit(tmp_path: Path) -> None:
    home = cut(WHOLE, tmp_path / "shards", 200, manifest=True)
    swap(home / "shard-af", home / "shard-ag")
    assert look(home).manifest  # the headers are right
    with pytest.raises(BadModelError, match="shard-af holds what shard-ag should hold"):
        join(home)
    swap(home / "shard-af", home / "shard-ag")
    data = bytearray((home / "shard-ae").read_bytes())
    data[77] ^= 1
    (home / "shard-ae").write_bytes(data)
    with pytest.raises(BadModelError, match="shard-ae is damaged or foreign"):
        join(home)
    with pytest.raises(BadModelError, match="shard-ae is damaged or foreign"):
        list(sums(look(home), quiet))


def test_a_manifest_allows_bytes_that_are_no_whole_model(tmp_path: Path) -> None:
    for number, data in enumerate((WHOLE[:-40], b"GGUFxxxx" * 9)):
        assert join(cut(data, tmp_path / f"with{number}", 100, manifest=True)) == data
        with pytest.raises(BadModelError):
            join(cut(data, tmp_path / f"without{number}", 100))


def part(home: Path, number: int) -> Path:
    return sorted(home.glob("m-*"))[number]


PARTS: dict[str, tuple[Harm, str]] = {
    "first missing": (lambda h: part(h, 0).unlink(), "m-00001-of-00004.gguf is missing"),
    "last missing": (lambda h: part(h, -1).unlink(), "m-00004-of-00004.gguf is missing"),
    "reordered": (lambda h: swap(part(h, 1), part(h, 2)), "its name says 1|another order|has"),
    "doubled": (lambda h: copy(part(h, 1), part(h, 2)), "split.no is 1|holds what|has"),
    "truncated": (lambda h: part(h, 1).write_bytes(part(h, 1).read_bytes()[:-33]), "truncated|has"),
    "longer": (lambda h: append(part(h, 1), bytes(64)), "follow the last tensor|has"),
    "foreign": (lambda h: copy(part(h.parent / "other", 1), part(h, 1)), "split.count is|has"),
    "of two sets": (lambda h: copy(part(h, 1), h / "m-00002-of-00009.gguf"), "several sets|not in manifest"),
    "outside": (lambda h: copy(part(h, 1), h / "m-00005-of-00004.gguf"), "outside of its own set|not in manifest"),
    "two sets": (lambda h: copy(part(h, 1), h / "n-00001-of-00001.gguf"), "several files"),
    "both styles": (lambda h: (h / "shard-aa").write_bytes(b"1"), "several files"),
}  # fmt: skip


@pytest.mark.parametrize("manifest", [False, True])
@pytest.mark.parametrize("case", PARTS)
def test_harmed_parts_are_refused(tmp_path: Path, case: str, manifest: bool) -> None:
    cut(build([tensor(f"other{i}", (64,), F32) for i in range(9)], []), tmp_path / "other", 600, "gguf-split")
    home = cut(WHOLE, tmp_path / "parts", 750, "gguf-split", manifest=manifest)
    assert len(list(home.glob("m-*"))) == 4
    harm, message = PARTS[case]
    harm(home)
    if manifest and "several files" in message:  # the manifest says which
        assert join(home) == WHOLE
        return
    with pytest.raises(BadModelError, match=message):
        join(home)


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    for number in range(2):
        pairs = [pair("split.count", 2, struct.pack("<H", 2)), pair("split.no", 2, struct.pack("<H", number))]
        (tmp_path / part_name("m", number, 2)).write_bytes(build([tensor("a", (8,), F32)], pairs))
    with pytest.raises(BadModelError, match="'a' is in a part before this one"):
        join(tmp_path)


MANIFESTS = {
    "not JSON": (b"{", "not valid JSON"),
    "other": (b"{}", "no manifest of vx-shard"),
    "format": (b'{"format": "x"}', "format"),
    "version": (b'{"format": "vx-shard", "version": 2}', "version"),
    "style": (b'{"format": "vx-shard", "version": 1, "style": "zip"}', "style"),
    "no parts": (b'{"format": "vx-shard", "version": 1, "style": "raw", "parts": []}', "parts has 0"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_malformed_manifests(tmp_path: Path, case: str) -> None:
    data, message = MANIFESTS[case]
    (tmp_path / MANIFEST).write_bytes(data)
    with pytest.raises(BadModelError, match=message):
        find_shards(tmp_path / MANIFEST)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../in"}, "not a file name"), ({"name": ""}, "not a file name"), ({"name": "shard-ab"}, "twice"),
        ({"size": -1}, "size"), ({"size": 2**70}, "size"), ({"size": 7}, "its parts have"),
        ({"sha256": "0" * 63}, "sha256"), ({"sha256": None}, "sha256"), ({"name": "shard-aaa"}, "is missing"),
    ],
)  # fmt: skip
def test_malformed_entries_of_a_manifest(tmp_path: Path, change: dict[str, object], message: str) -> None:
    home = cut(WHOLE, tmp_path / "shards", 200, manifest=True)
    values = json.loads((home / MANIFEST).read_bytes())
    assert values["sha256"] == hashlib.sha256(WHOLE).hexdigest() and values["size"] == len(WHOLE)
    values["parts"][0].update(change)
    (home / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(BadModelError, match=message):
        find_shards(home)


def test_manifests_of_something_else_do_not_matter(tmp_path: Path) -> None:
    home = cut(WHOLE, tmp_path / "shards", 200)
    for other in (b"{}", b'{"format": 3}', b'{"name": "app", "parts": 1, "format": "web"}'):
        (home / MANIFEST).write_bytes(other)
        assert join(home) == join(home / "shard-ac") == WHOLE


def test_a_manifest_is_read_as_written(tmp_path: Path) -> None:
    home = cut(WHOLE, tmp_path / "shards", 200, manifest=True)
    assert Manifest.read(home / MANIFEST).encode() == (home / MANIFEST).read_bytes()
