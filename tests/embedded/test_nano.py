"""The embedded models as they are shipped: whole, small, loadable, described."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from voxtral_pipes.formats.embedded import FOLDERS, HOME
from voxtral_pipes.formats.family import ASR, TTS
from voxtral_pipes.formats.locate import ModelFiles, files_at
from voxtral_pipes.formats.tekken import Tekken
from voxtral_pipes.models.checkpoint import AsrCheckpoint, Checkpoint, TtsCheckpoint
from voxtral_pipes.models.voices import DEFAULT, FOLDER, read_rows, row_table, voices_in

MAX_BYTES = 16 << 20
FAMILIES = (ASR, TTS)


def opened(family: str, name: str) -> tuple[ModelFiles, Checkpoint]:
    files = files_at(HOME / FOLDERS[name][family])
    return files, AsrCheckpoint(files) if family == ASR else TtsCheckpoint(files)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", FOLDERS)
def test_files_are_there_and_fit_their_settings(family: str, name: str) -> None:
    files, checkpoint = opened(family, name)
    assert files.params is not None and files.tekken is not None
    assert len(files.weights) == 1 and files.pieces == "file"
    kinds = {checkpoint.info(tensor).type for tensor in checkpoint.names}
    if name == "nano":
        assert files.layout == "mistral" and kinds == {"BF16"}
    else:
        assert files.layout == "gguf" and "Q4_0" in kinds


@pytest.mark.parametrize("family", FAMILIES)
def test_both_forms_are_one_model(family: str) -> None:
    (files, checkpoint), (packed_files, packed) = (opened(family, name) for name in FOLDERS)
    assert checkpoint.fingerprint == packed.fingerprint
    assert checkpoint.config == packed.config  # type: ignore[attr-defined]
    for ours, theirs in ((files.tekken, packed_files.tekken), (files.params, packed_files.params)):
        assert ours is not None and theirs is not None
        assert json.loads(ours.read_text()) == json.loads(theirs.read_text())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", FOLDERS)
def test_the_vocabulary_spells(family: str, name: str) -> None:
    files, _ = opened(family, name)
    assert files.tekken is not None
    vocabulary = Tekken.read(files.tekken)
    ids = vocabulary.encode("seven left")
    assert b"".join(vocabulary.token_bytes(i) for i in ids) == b"seven left"


@pytest.mark.parametrize("name", FOLDERS)
def test_voices_can_be_read(name: str) -> None:
    files, checkpoint = opened(TTS, name)
    assert files.tekken is not None and isinstance(checkpoint, TtsCheckpoint)
    table = row_table(Tekken.read(files.tekken).audio, "tekken.json")
    voices = voices_in(files.weights[0].parent / FOLDER, table)
    assert DEFAULT in voices
    for voice in voices.values():
        assert read_rows(voice, checkpoint.config.backbone.dim).shape[0] == voice.rows


def test_they_are_small_and_described() -> None:
    shipped = [path for path in HOME.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in shipped) <= MAX_BYTES
    assert not [path for path in HOME.rglob("*") if path.is_symlink()], "links do not survive a wheel"
    assert len((HOME / "MODEL_CARD.md").read_text()) > 500
    assert any(path.name.startswith("LICENSE") for path in HOME.iterdir())


def test_all_of_it_is_package_data(pytestconfig: pytest.Config) -> None:
    import tomllib

    tools = tomllib.loads((pytestconfig.rootpath / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = HOME.parent
    listed = {path for pattern in tools["package-data"]["voxtral_pipes"] for path in package.glob(pattern)}
    assert {path for path in Path(HOME).rglob("*") if path.is_file()} <= listed
