"""Models in pieces: the pipe gives the same bytes from every form, and joining gives back the file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from preloaded import run_preloaded
from processes import environment, shell

from voxtral_pipes.formats.locate import files_at
from voxtral_pipes.models.random_model import make_asr_model, tiny_config

WEIGHTS = {"gguf-q4": "*.gguf", "safetensors": "consolidated.safetensors"}


@pytest.mark.parametrize("form", WEIGHTS)
def test_every_form_is_the_same_model(tmp_path: Path, form: str) -> None:
    whole = make_asr_model(
        tmp_path / "whole", tiny_config(), "gguf-q4" if form == "gguf-q4" else "safetensors"
    )
    [weights] = whole.glob(WEIGHTS[form])
    raw, parts = tmp_path / "raw", tmp_path / "parts"
    line = f"vx-shard split --manifest --size 200K {weights} {raw}"
    if form == "gguf-q4":
        line += f" && vx-shard split --style gguf-split --allow-oversize --size 400K {weights} {parts}/model"
    done = shell(line)
    assert (done.returncode, done.stderr) == (0, b"")
    forms = [whole, raw, raw / "shard-ac", raw / "manifest.json"]
    if form == "gguf-q4":
        forms += [parts, sorted(parts.iterdir())[1]]
    for home in (raw, parts):
        if home.is_dir():
            for name in ("params.json", "tekken.json"):
                shutil.copy(whole / name, home)
    held = files_at(whole).open()
    for path in forms:
        pieces = files_at(path).open()
        assert dict(pieces.tensors) == dict(held.tensors)
        assert all(pieces.bytes(name) == held.bytes(name) for name in held.tensors)
    if form == "gguf-q4":
        mel = shell("head -c 9000 /dev/zero | vx-mel --raw s16le:16000:1").stdout
        heard = [run_preloaded("vx-encode", ("-m", path), environment(), mel) for path in (whole, raw, parts)]
        assert [(done.returncode, done.stderr) for done in heard] == [(0, b"")] * 3
        assert len({done.stdout for done in heard}) == 1 and len(heard[0].stdout) > 1000
    for path in (raw, parts):
        if path.is_dir():
            done = shell(f"vx-shard verify --deep {path} && vx-shard join {path} - | cmp - {weights}")
            assert (done.returncode, done.stderr) == (0, b"")
