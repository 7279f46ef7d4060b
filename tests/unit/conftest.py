"""What unit tests share whose subject takes several files."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from feedback_pairs import Heard

from voxtral_pipes.cli.feedback import Answers, Listener

# --- test_feedback_*.py


@pytest.fixture
def socket_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the sockets are made: a short path, and nothing may be left in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)
        assert list(Path(folder).glob("vx-*")) == []


@pytest.fixture
def listener(socket_home: Path) -> Iterator[Listener]:
    made = Listener(Heard())
    made.listen()
    yield made
    made.close()


@pytest.fixture
def hung_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close vx-flow's ends, as its process does."""
    made = []

    def remember(self: Answers, connection: socket.socket | None) -> None:
        self._connection = connection
        made.append(self)

    monkeypatch.setattr(Answers, "__init__", remember)
    yield
    for answers in made:
        answers.close()


# --- test_shard*.py


@pytest.fixture(scope="module")
def without_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


# --- test_quantize*.py


@pytest.fixture(scope="session")
def dense_asr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same recogniser in four layouts."""
    from asr_models import SMALL
    from safetensors.torch import load_file, save_file

    from voxtral_pipes.models.random_model import cut_raw, make_asr_model

    home = tmp_path_factory.mktemp("asr")
    for format in ("safetensors", "hf"):
        make_asr_model(home / format, SMALL, format, seed=7)
    shutil.copytree(home / "safetensors", home / "raw")
    cut_raw(home / "raw", 100_003)
    (home / "index").mkdir()
    tensors = load_file(home / "hf" / "model.safetensors")
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        name = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, home / "index" / name)
        weight_map |= dict.fromkeys(part, name)
    (home / "index" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in ("config.json", "tekken.json"):
        shutil.copy(home / "hf" / name, home / "index")
    return home


@pytest.fixture(scope="session")
def dense_tts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthesiser, its weights dense."""
    from tts_checkpoints import PACKABLE, make

    home = tmp_path_factory.mktemp("tts")
    (home / "is-tts").touch()
    return make(home / "safetensors", PACKABLE, seed=7)


# --- test_tts_weights.py, test_tts_settings.py


@pytest.fixture(scope="session")
def tts_layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One synthesiser in every layout, and one of odd dimensions."""
    from tts_checkpoints import LAYOUTS, ODD, PACKABLE, make

    home = tmp_path_factory.mktemp("tts")
    for layout in LAYOUTS:
        make(home / layout, PACKABLE, layout)
    make(home / "odd", ODD)
    return home
