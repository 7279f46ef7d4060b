"""Settings all tests share."""

import os
import signal
from pathlib import Path

# Small models and several processes at once on few cores: more threads in each only wait for one another.
# Before torch is imported anywhere, and inherited by the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without a GPU the Triton kernels run in their interpreter, which is chosen when triton is imported: torch does that.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A job in the background of a script is started with SIGINT ignored, and so would be the commands that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from importlib.util import find_spec

import pytest
from processes import commands_embedding

from voxtral_pipes.formats.tekken import Tekken

TESTS = Path(__file__).parent
LONGEST = ("unit/test_triton.py", "embedded", "pipeline", "cli", "laws")
"""Files and folders that take longest, which begin first: whole files go to a process each, and the last are short."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first."""
    places = [TESTS / name for name in LONGEST]
    items.sort(
        key=lambda item: next(
            (rank for rank, place in enumerate(places) if item.path.is_relative_to(place)), len(places)
        )
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model in the Mistral layout."""
    from voxtral_pipes.models.random_model import make_asr_model, tiny_config

    return make_asr_model(tmp_path_factory.mktemp("model") / "tiny", tiny_config())


@pytest.fixture(scope="session")
def tiny_tts_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random speech synthesis model in the Mistral layout."""
    from voxtral_pipes.models.random_tts import make_tts_model, tiny_tts_config

    return make_tts_model(tmp_path_factory.mktemp("model") / "tiny-tts", tiny_tts_config())


@pytest.fixture(scope="session")
def nano_home(tiny_model: Path, tiny_tts_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as that of the embedded models, of tiny random ones."""
    from voxtral_pipes.models.random_model import make_asr_model, make_tts_model, tiny_config, tiny_tts_config

    home = tmp_path_factory.mktemp("embedded") / "nano"
    home.mkdir()
    (home / "asr").symlink_to(tiny_model)
    (home / "tts").symlink_to(tiny_tts_model)
    make_asr_model(home / "asr-q4", tiny_config(), "gguf-q4")
    make_tts_model(home / "tts-q4", tiny_tts_config(), "gguf-q4")
    return home


@pytest.fixture(scope="session")
def with_nano(nano_home: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH to commands whose embedded models are those of `nano_home`."""
    return commands_embedding(nano_home, tmp_path_factory.mktemp("commands") / "bin")


@pytest.fixture(scope="session")
def without_nano(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH to commands that were installed without embedded models."""
    root = tmp_path_factory.mktemp("commands")
    return commands_embedding(root / "nothing", root / "bin")


@pytest.fixture(scope="session")
def published_file() -> Path:
    """The public vocabulary of 150000 entries, the same as that of the Voxtral models."""
    spec = find_spec("mistral_common")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "data" / "tekken_240911.json"


@pytest.fixture(scope="session")
def published(published_file: Path) -> Tekken:
    """The same, parsed."""
    return Tekken.parse(published_file.read_bytes())
