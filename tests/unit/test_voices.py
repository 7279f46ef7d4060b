"""models/voices.py and models/saved_tensor.py: which voices there are, and their rows out of hostile files."""

from __future__ import annotations

import io
import json
import os
import random
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from voxtral_pipes.errors import BadModelError, UsageError
from voxtral_pipes.models.random_model import make_tts_model, tiny_tts_config
from voxtral_pipes.models.random_tts import SHORT_VOICES
from voxtral_pipes.models.voices import (
    DEFAULT,
    MAX_FILE_BYTES,
    PUBLISHED,
    Voice,
    pick,
    read_rows,
    row_table,
    voices_in,
)

DIM = 48
ROWS = torch.arange(5 * DIM, dtype=torch.float32).reshape(5, DIM).bfloat16()


def voice(path: Path, rows: int | None = None) -> Voice:
    return Voice(path.stem, rows, path)


def saved(path: Path, held: Any, **options: Any) -> Path:
    torch.save(held, path, **options)
    return path


def rezipped(
    path: Path, edit: Callable[[str, bytes], bytes | None], method: int = zipfile.ZIP_STORED
) -> Path:
    """Write what torch.save makes of ROWS again, each entry edited, or left out where that gives None."""
    buffer = io.BytesIO()
    torch.save(ROWS, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w", method) as target:
        for name in source.namelist():
            content = edit(name.partition("/")[2], source.read(name))
            if content is not None:
                target.writestr(name, content)
    return path


def without(entry: str) -> Callable[[str, bytes], bytes | None]:
    return lambda name, content: None if name == entry else content


def replaced(entry: str, new: bytes) -> Callable[[str, bytes], bytes | None]:
    return lambda name, content: new if name == entry else content


def refused(path: Path, message: str, rows: int | None = None) -> None:
    with pytest.raises(BadModelError, match=message) as caught:
        read_rows(voice(path, rows), DIM)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)


# --- rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_are_what_torch_and_safetensors_saved(tmp_path: Path, dtype: torch.dtype) -> None:
    rows = ROWS.to(dtype)
    padded = torch.cat((rows, rows))
    save_file({"embedding": rows, "other": padded}, tmp_path / "a.safetensors")
    save_file({"any name": rows}, tmp_path / "b.safetensors")
    paths = [
        tmp_path / "a.safetensors",
        tmp_path / "b.safetensors",
        saved(tmp_path / "c.pt", rows),
        saved(tmp_path / "d.pt", {"embedding": rows}),
        saved(tmp_path / "e.pt", padded[5:]),
        saved(tmp_path / "f.pt", torch.nn.Parameter(rows)),
        saved(tmp_path / "g.pt", rows, pickle_protocol=4),
    ]
    for path in paths:
        got = read_rows(voice(path, 5), DIM)
        assert got.dtype == dtype and torch.equal(got, rows), path.name
        got[0, 0] = 7  # memory of its own
        assert torch.equal(read_rows(voice(path), DIM), rows)


def test_the_folder_inside_the_archive_may_have_any_name(tmp_path: Path) -> None:
    """tts.md section 2: voice_embed, archive, or the stem of the file."""
    source = saved(tmp_path / "somebody.pt", ROWS)
    for folder in ("voice_embed", "archive", "x y"):
        path = tmp_path / "casual_male.pt"
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                new.writestr(f"{folder}/{name.partition('/')[2]}", old.read(name))
        assert torch.equal(read_rows(voice(path), DIM), ROWS)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "run"

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (mark,)

    class Sly:
        """What torch itself allows, and yet no tensor."""

        def __reduce__(self) -> Any:
            return torch._utils._rebuild_sparse_tensor, (torch.sparse_coo, ())

    for number, held in enumerate((Evil(), {"embedding": Evil()}, [ROWS, Evil()], Sly())):
        refused(saved(tmp_path / f"{number}.pt", held), "it asks for|which no tensor needs")
    refused(saved(tmp_path / "old.pt", Evil(), _use_new_zipfile_serialization=False), "not a zip file")
    assert not mark.exists()
    torch.load(tmp_path / "0.pt", weights_only=False)  # it would have been
    assert mark.exists()


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"a": ROWS, "b": ROWS}, "holds a dict, not a tensor"),
        ({}, "holds a dict, not a tensor"),
        ({"a": "text"}, "holds a str, not a tensor"),
        ("text", "holds a str, not a tensor"),
        (ROWS.double(), "DoubleStorage"),
        (ROWS.to(torch.int64), "LongStorage"),
        (ROWS.float().to(torch.complex64), "ComplexFloatStorage"),
        (ROWS.float().to_sparse(), "sparse"),
        (ROWS.to("meta"), "meta"),
        (ROWS.T, "not contiguous"),
        (ROWS[:1].expand(7, DIM), "not contiguous"),
        (ROWS[:1].expand(1 << 40, DIM), "LONG1"),
        (ROWS[:, :40].contiguous(), r"a tensor \[5, 40\], not rows of 48"),
        (ROWS[0], r"a tensor \[48\], not rows of 48"),
        (ROWS[None].contiguous(), r"a tensor \[1, 5, 48\], not rows of 48"),
        (ROWS[:0], "has 0 rows"),
        (ROWS[:4].contiguous(), "has 4 rows, but tekken.json gives the voice bad 5"),
        (torch.cat((ROWS[1:], torch.full((1, DIM), float("nan")).bfloat16())), "not finite"),
        (torch.cat((ROWS[1:], torch.full((1, DIM), float("inf")).bfloat16())), "not finite"),
    ],
)  # fmt: skip
def test_other_things_than_a_voice_are_refused(tmp_path: Path, held: object, message: str) -> None:
    refused(saved(tmp_path / "bad.pt", held), message, rows=5)


def test_archives_that_are_not_complete_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", ROWS)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        refused(path, "not a zip file")
    refused(rezipped(path, without("data.pkl")), "it holds no data.pkl")
    refused(rezipped(path, without("data/0")), "it holds no data/0")
    refused(
        rezipped(path, replaced("data/0", b"\0" * 100)), r"a tensor \[5, 48\] of BF16 cannot be 100 bytes"
    )
    refused(rezipped(path, replaced("byteorder", b"big")), "not little-endian")
    refused(rezipped(path, replaced("data.pkl", b"\x80\x02" + b"(" * 5000)), "data.pkl declares 5002 bytes")
    refused(rezipped(path, lambda name, content: content, zipfile.ZIP_DEFLATED), "is compressed")
    assert torch.equal(read_rows(voice(rezipped(path, without("byteorder"))), DIM), ROWS)


def test_a_damaged_file_is_refused_or_harmless(tmp_path: Path) -> None:
    whole = saved(tmp_path / "a.pt", torch.ones(2, 3)).read_bytes()
    rng, path = random.Random(1), tmp_path / "b.pt"
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            assert read_rows(voice(path), 3).shape[1] == 3
        except BadModelError as error:
            assert "\n" not in str(error)


BOUNDED = """
import resource, sys, torch
from pathlib import Path
from voxtral_pipes.errors import BadModelError
from voxtral_pipes.models.voices import Voice, read_rows
ok, *bad = (Voice("v", None, Path(path)) for path in sys.argv[1:])
read_rows(ok, 48)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for voice in bad:
    try:
        read_rows(voice, 48)
        print("read", voice.path.name)
    except BadModelError:
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10, "MiB")
"""


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """Bombs: 400 MB of zeros, compressed; a pickle that grows a table of 64 GB; sizes that are only said."""
    paths = [saved(tmp_path / "ok.pt", ROWS)]
    for number, edit in enumerate(
        (replaced("data/0", b"\0" * (400 << 20)), replaced("data.pkl", b"\0" * 5000))
    ):
        paths.append(rezipped(tmp_path / f"{number}.pt", edit, zipfile.ZIP_DEFLATED))
    huge_memo = b"\x80\x02Nr\xff\xff\xff\xef."  # LONG_BINPUT
    paths.append(rezipped(tmp_path / "memo.pt", replaced("data.pkl", huge_memo)))
    long_text = b"\x80\x02X\xff\xff\xff\x7fa."  # BINUNICODE of 2 GB
    paths.append(rezipped(tmp_path / "text.pt", replaced("data.pkl", long_text)))
    said = (tmp_path / "ok.pt").read_bytes()
    place = said.rindex(b"PK\x01\x02", 0, said.index(b"data/0", said.index(b"PK\x01\x02"))) + 20
    paths.append(tmp_path / "said.pt")
    paths[-1].write_bytes(said[:place] + b"\xf0\xff\xff\x7f" * 2 + said[place + 8 :])
    paths.append(tmp_path / "long.pt")
    with paths[-1].open("wb") as file:
        file.truncate(1 << 40)
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, *map(str, paths)], capture_output=True, text=True, timeout=60, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30)),
    )  # fmt: skip
    grown, unit = done.stdout.split()
    assert unit == "MiB" and int(grown) < 40


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    refused(tmp_path / "gone.pt", "cannot be read: No such file")
    (tmp_path / "folder.pt").mkdir()
    refused(tmp_path / "folder.pt", "not a regular file")
    os.mkfifo(tmp_path / "fifo.pt")
    refused(tmp_path / "fifo.pt", "not a regular file")
    with (tmp_path / "long.safetensors").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    refused(tmp_path / "long.safetensors", "16777217 bytes, which no voice has")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": ROWS, "b": ROWS.clone()}, "holds 2 tensors, and none is 'embedding'"),
        ({}, "holds 0 tensors"),
        ({"embedding": ROWS.to(torch.int64)}, "'embedding' is I64, not F32"),
        ({"embedding": ROWS.double()}, "F64"),
        ({"embedding": ROWS[:, :3].contiguous()}, r"a tensor \[5, 3\], not rows of 48"),
        ({"embedding": ROWS[0].contiguous()}, r"a tensor \[48\], not rows of 48"),
        ({"embedding": ROWS[:0]}, "has 0 rows"),
        ({"embedding": ROWS[:4].contiguous()}, "has 4 rows, but tekken.json gives the voice bad 5"),
        ({"embedding": ROWS / 0}, "not finite"),
    ],
)
def test_other_safetensors_are_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    save_file(tensors, tmp_path / "bad.safetensors")
    refused(tmp_path / "bad.safetensors", message, rows=5)
    (tmp_path / "bad.safetensors").write_bytes((tmp_path / "bad.safetensors").read_bytes()[:-1] or b"x")
    with pytest.raises(BadModelError):
        read_rows(voice(tmp_path / "bad.safetensors"), DIM)


def test_a_file_without_rows_is_refused_where_no_table_says_how_many(tmp_path: Path) -> None:
    refused(saved(tmp_path / "a.pt", ROWS[:0]), "no rows")


# --- names


def test_the_published_voices() -> None:
    voices = voices_in(None, PUBLISHED)
    assert len(voices) == 20 and sum(PUBLISHED.values()) == 2920
    assert {name: voice.rows for name, voice in voices.items()} == PUBLISHED
    assert {voice.language for voice in voices.values()} == {
        "en", "fr", "es", "de", "it", "pt", "nl", "ar", "hi",
    }  # fmt: skip
    assert [name for name, voice in voices.items() if voice.language == "en"] == [
        "casual_female", "casual_male", "cheerful_female", "neutral_female", "neutral_male",
    ]  # fmt: skip
    assert (voices["fr_male"].rows, voices["fr_male"].language) == (97, "fr")
    assert DEFAULT in voices


def test_a_random_model_has_them_all_in_both_forms(tmp_path: Path) -> None:
    for format, ending in (("safetensors", ".pt"), ("gguf-q4", ".safetensors")):
        home = make_tts_model(tmp_path / format, tiny_tts_config(), format)  # type: ignore[arg-type]
        table = row_table(json.loads((home / "tekken.json").read_text())["audio"], "tekken.json")
        voices = voices_in(home / "voice_embedding", table)
        assert list(voices) == list(PUBLISHED)
        for name, voice in voices.items():
            assert voice.path is not None and voice.path.suffix == ending
            assert read_rows(pick(name.upper(), voices), 128).shape == (SHORT_VOICES[name], 128)


def folder_of(home: Path, *names: str) -> Path:
    folder = home / "voice_embedding"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return folder


def test_a_voice_may_be_named_in_any_case(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "Casual_Male.pt", "de_male.safetensors")
    voices = voices_in(folder, {"casual_male": 3, "de_male": 4})
    for name in ("casual_male", "CASUAL_MALE", "Casual_Male"):
        assert pick(name, voices) == Voice("casual_male", 3, folder / "Casual_Male.pt")
    assert row_table({"voice_num_audio_tokens": {"Casual_Male": 3}}, "t") == {"casual_male": 3}


def test_safetensors_go_before_pt_and_other_files_are_no_voices(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path, "a.pt", "a.safetensors", "b.pt", "c.wav", "README", "._b.pt", "x\ny.pt", "e\x1b.pt"
    )
    (folder / os.fsdecode(b"caf\xe9.pt")).touch()
    voices = voices_in(folder, None)
    assert {name: voice.path and voice.path.name for name, voice in voices.items()} == {
        "a": "a.safetensors", "b": "b.pt",
    }  # fmt: skip
    assert voices["b"].language == "-" and voices["b"].rows is None
    assert pick("b", voices).path == folder / "b.pt"  # without a tekken.json nothing is checked


def test_an_unknown_voice_lists_the_known_ones(tmp_path: Path) -> None:
    voices = voices_in(folder_of(tmp_path, "ann.pt", "bob.pt"), None)
    with pytest.raises(UsageError, match=r"^--voice eve: there is no such voice; there are ann, bob$"):
        pick("eve", voices)
    with pytest.raises(UsageError, match="there are none"):
        pick("eve", {})


@pytest.mark.parametrize("name", ["me.wav", "ME.MP3", "./me", "/tmp/me.opus", "voices/me.flac"])
def test_a_recording_is_told_why_it_cannot_speak(name: str) -> None:
    with pytest.raises(UsageError, match=r"recordings: .* lacks the encoder .* \(--list-voices\)") as caught:
        pick(name, voices_in(None, PUBLISHED))
    assert str(caught.value).startswith(f"--voice {name}: ")


def test_table_and_folder_must_agree(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "ann.pt", "stranger.pt")
    voices = voices_in(folder, {"ann": 3, "bob": 4})
    assert {name: voice.rows for name, voice in voices.items()} == {"ann": 3, "bob": 4, "stranger": None}
    with pytest.raises(
        BadModelError, match=r"stranger.pt is a voice that the model's tekken.json does not list"
    ):
        pick("stranger", voices)
    with pytest.raises(BadModelError, match=r"the voice bob has no embedding: voice_embedding/bob.pt"):
        pick("bob", voices)
    assert voices_in(None, None) == {}
    with pytest.raises(BadModelError, match="gone cannot be read"):
        voices_in(tmp_path / "gone", None)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "has no voices"),
        ({}, "has no voices"),
        ([["a", 3]], "has no voices"),
        ({"a": 0}, "the voice 'a' has 0 rows"),
        ({"a": -3}, "has -3 rows"),
        ({"a": 3.0}, r"has 3\.0 rows"),
        ({"a": True}, "has True rows"),
        ({"a": "3"}, "has '3' rows"),
        ({"a": 10**30}, "has 10000000000000000000 rows"),
        ({"a\n": 3}, "no name of a voice"),
        ({"\x1b[2J": 3}, "no name of a voice"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(table: object, message: str) -> None:
    with pytest.raises(BadModelError, match=message):
        row_table({"voice_num_audio_tokens": table}, "tekken.json")
