"""formats/locate.py: every way to name a model, and what is said when it cannot be had."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from voxtral_pipes.config import AsrConfig, DecoderConfig, EncoderConfig
from voxtral_pipes.errors import BadModelError, NoModelError
from voxtral_pipes.formats import embedded
from voxtral_pipes.formats.family import ASR, MODEL_VARIABLE, TTS
from voxtral_pipes.formats.locate import cache_dir, files_at, locate_model, locate_tekken
from voxtral_pipes.models.random_model import cut_raw, make_asr_model

CONFIG = AsrConfig(
    encoder=EncoderConfig(dim=32, n_layers=1, n_heads=1, head_dim=32, hidden_dim=32, window=13),
    decoder=DecoderConfig(
        dim=32, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=32, hidden_dim=32, window=40, vocab_size=320
    ),
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "HOME", tmp_path / "nothing")
    for variable in MODEL_VARIABLE.values():
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "cache" / "voxtral-pipes" / "models"


def touch(home: Path, *names: str, data: bytes = b"GGUF") -> Path:
    home.mkdir(parents=True, exist_ok=True)
    for name in names:
        (home / name).write_bytes(data)
    return home


def names(paths: tuple[Path, ...]) -> list[str]:
    return [path.name for path in paths]


def test_published_directories(tmp_path: Path) -> None:
    both = touch(
        tmp_path / "a",
        "consolidated.safetensors",
        "model.safetensors",
        "params.json",
        "config.json",
        "tekken.json",
    )
    files = files_at(both)
    assert (files.layout, names(files.weights), files.pieces) == (
        "mistral",
        ["consolidated.safetensors"],
        "file",
    )
    assert (files.params, files.config, files.tekken) == tuple(
        both / name for name in ("params.json", "config.json", "tekken.json")
    )
    hf = files_at(touch(tmp_path / "b", "model.safetensors", "config.json"))
    assert (hf.layout, names(hf.weights), hf.tekken) == ("hf", ["model.safetensors"], None)
    index = files_at(touch(tmp_path / "c", "model.safetensors.index.json", "config.json"))
    assert (index.layout, index.pieces) == ("hf", "index")
    one = files_at(touch(tmp_path / "d", "voxtral.gguf", "README.md"))
    assert (one.layout, names(one.weights), one.params) == ("gguf", ["voxtral.gguf"], None)


def test_sets_are_found_from_any_part(tmp_path: Path) -> None:
    parts = [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    home = touch(tmp_path / "a", *parts)
    for path in (home, *(home / part for part in parts)):
        files = files_at(path)
        assert (names(files.weights), files.pieces, files.path) == (parts, "split", path)
    (home / parts[1]).unlink()
    with pytest.raises(BadModelError, match=r"m-00002-of-00003.gguf is missing"):
        files_at(home)
    with pytest.raises(BadModelError, match="outside of its own set"):
        files_at(touch(tmp_path / "b", "m-00004-of-00003.gguf") / "m-00004-of-00003.gguf")
    st = touch(
        tmp_path / "c", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json"
    )
    assert files_at(st / "model-00001-of-00002.safetensors").weights == (st / "model.safetensors.index.json",)
    (st / "model.safetensors.index.json").unlink()
    with pytest.raises(BadModelError, match=r"index.json is not beside it"):
        files_at(st / "model-00001-of-00002.safetensors")


def test_raw_shards_are_taken_in_the_order_of_split(tmp_path: Path) -> None:
    order = ["shard-aa", "shard-ab", "shard-yz", "shard-zaaa", "shard-zaab"]
    home = touch(tmp_path / "a", *reversed(order), "shard-aa.tmp", "manifest.json")
    for path in (home, home / "shard-yz"):
        files = files_at(path)
        assert (names(files.weights), files.pieces, files.layout) == (order, "raw", "gguf")
    assert files_at(touch(tmp_path / "b", "shard-aa", "params.json", data=b"\0" * 8)).layout == "mistral"


def test_a_manifest(tmp_path: Path) -> None:
    home = touch(tmp_path / "a", "shard-aa", "shard-ab")
    manifest = home / "manifest.json"

    def write(*parts: dict[str, object]) -> None:
        manifest.write_text(json.dumps({"format": "vx-shard", "version": 1, "style": "raw", "parts": parts}))

    write({"name": "shard-aa", "size": 4}, {"name": "shard-ab", "size": 4})
    assert names(files_at(manifest).weights) == ["shard-aa", "shard-ab"]
    write({"name": "shard-aa", "size": 5})
    with pytest.raises(BadModelError, match="has 4 bytes"):
        files_at(manifest)
    for name in ("../a/shard-aa", "shard-ac", ""):
        write({"name": name})
        with pytest.raises(BadModelError, match=r"not a file beside|is missing"):
            files_at(manifest)
    manifest.write_text('{"format": "else"}')
    with pytest.raises(BadModelError, match="format"):
        files_at(manifest)


def test_ambiguous_and_empty_directories(tmp_path: Path) -> None:
    for home, inside in (
        ("a", ("one.gguf", "two.gguf")),
        ("b", ("m-00001-of-00001.gguf", "n-00001-of-00001.gguf")),
        ("c", ("model.safetensors", "model.safetensors.index.json")),
    ):
        with pytest.raises(BadModelError, match="several models"):
            files_at(touch(tmp_path / home, *inside))
    with pytest.raises(BadModelError, match="holds no model"):
        files_at(touch(tmp_path / "d", "tekken.json"))
    with pytest.raises(BadModelError, match="is no model"):
        files_at(touch(tmp_path / "e", "notes.txt", data=b"text") / "notes.txt")


def test_a_path_wins_over_a_name_in_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_dir() == cache
    touch(cache / "mine", "consolidated.safetensors")
    monkeypatch.chdir(tmp_path)
    assert locate_model("mine").path == cache / "mine"
    touch(cache, "single.gguf")
    assert locate_model("single").path == cache / "single.gguf"
    touch(tmp_path / "mine", "here.gguf")
    assert names(locate_model("mine").weights) == ["here.gguf"]
    with pytest.raises(NoModelError, match=r"no model 'none'"):
        locate_model("none")
    with pytest.raises(NoModelError, match="no model at"):
        locate_model("./none")


def test_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VX_ASR_MODEL", str(touch(tmp_path / "a", "a.gguf")))
    assert names(locate_model(None).weights) == ["a.gguf"]
    assert names(locate_model(str(touch(tmp_path / "b", "b.gguf"))).weights) == ["b.gguf"]
    monkeypatch.setenv("VX_ASR_MODEL", "")
    with pytest.raises(NoModelError):
        locate_model(None)


def test_the_one_fitting_model_of_the_cache(cache: Path) -> None:
    with pytest.raises(NoModelError, match=r"^no model: .*VX_ASR_MODEL.*/nothing/asr\)$"):
        locate_model(None)
    touch(cache / "broken", "consolidated.safetensors")
    with pytest.raises(NoModelError, match="not usable in the cache: broken"):
        locate_model(None)
    make_asr_model(cache / "one", CONFIG)
    assert locate_model(None).path == cache / "one"
    assert locate_tekken(None) == cache / "one" / "tekken.json"
    with pytest.raises(NoModelError, match=r"VX_TTS_MODEL.*/nothing/tts\)"):
        locate_model(None, "voxtral-tts")
    make_asr_model(cache / "two", CONFIG, "gguf-q4")
    cut_raw(cache / "two", 5000)
    with pytest.raises(NoModelError, match=r"several models.*one, two.*-m NAME"):
        locate_model(None)


@pytest.fixture
def nano(nano_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(embedded, "HOME", nano_home)
    return nano_home


def test_the_embedded_model_comes_last(
    nano: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What -m names, what the variable names, the one in the cache; the embedded one is announced, no other is."""
    said: list[str] = []
    for family, variable in MODEL_VARIABLE.items():
        short = {ASR: "asr", TTS: "tts"}[family]
        assert locate_model(None, family, said.append).path == nano / short
        [line] = said
        assert line.startswith("no model is named: the embedded nano model") and line.endswith(f"${variable}")
        assert locate_tekken(None, None, family, said.append) == nano / short / "tekken.json"
        assert said.pop() == said.pop() == line
        other = touch(tmp_path / short, "other.gguf", "tekken.json")
        assert locate_tekken(None, str(other), family, said.append) == other / "tekken.json"
        assert locate_model(None, family).path == nano / short  # who does not listen is not told
    make_asr_model(cache / "cached", CONFIG)
    assert locate_model(None, ASR, said.append).path == cache / "cached"
    assert locate_tekken(None, None, ASR, said.append).parent == cache / "cached"
    monkeypatch.setenv("VX_ASR_MODEL", str(tmp_path / "asr"))
    assert locate_model(None, ASR, said.append).path == tmp_path / "asr"
    assert locate_model(str(tmp_path / "tts"), ASR, said.append).path == tmp_path / "tts"
    assert said == []
    assert (
        locate_model(None, TTS, said.append).path == nano / "tts"
    )  # that in the cache is of the other family
    assert len(said) == 1


def test_what_is_not_usable_in_the_cache_is_told_with_the_embedded_model(nano: Path, cache: Path) -> None:
    said: list[str] = []
    touch(cache / "broken", "consolidated.safetensors")
    assert locate_model(None, ASR, said.append).path == nano / "asr"
    assert len(said) == 1 and "; not usable in the cache: broken (" in said[0]


def test_several_in_the_cache_are_an_error_all_the_same(nano: Path, cache: Path) -> None:
    for name in ("one", "two"):
        make_asr_model(cache / name, CONFIG)
    with pytest.raises(NoModelError, match="several models"):
        locate_model(None)


def test_embedded_models_have_names(
    nano: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.chdir(tmp_path)
    for name, family, folder in (
        ("nano", ASR, "asr"), ("nano", TTS, "tts"), ("nano-q4", ASR, "asr-q4"), ("nano-q4", TTS, "tts-q4"),
    ):  # fmt: skip
        assert locate_model(name, family, said.append).path == nano / folder
        assert locate_tekken(name, None, family, said.append) == nano / folder / "tekken.json"
        monkeypatch.setenv(MODEL_VARIABLE[family], name)
        assert locate_model(None, family, said.append).path == nano / folder
    assert said == []
    touch(cache / "nano", "cached.gguf")
    assert locate_model("nano").path == cache / "nano"
    touch(tmp_path / "nano", "here.gguf")
    assert names(locate_model("nano").weights) == ["here.gguf"]
    with pytest.raises(NoModelError, match="no model at"):
        locate_model("./nano-q4")
    monkeypatch.setattr(embedded, "HOME", touch(tmp_path / "bare" / "asr-q4", "tekken.json").parent)
    with pytest.raises(
        NoModelError, match=r"^the embedded model nano-q4 is not in this installation \(.*asr-q4\)$"
    ):
        locate_model("nano-q4")


def test_tekken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = touch(tmp_path / "a", "tekken.json", "m.gguf")
    for named in (home, home / "tekken.json", home / "m.gguf"):
        assert locate_tekken(str(named)) == home / "tekken.json"
    other = touch(tmp_path / "b", "other.json")
    assert locate_tekken(str(home), str(other / "other.json")) == other / "other.json"
    assert locate_tekken(None, str(home)) == home / "tekken.json"
    with pytest.raises(NoModelError, match="--tokenizer"):
        locate_tekken(str(home), str(tmp_path / "none.json"))
    bare = touch(tmp_path / "c", "m.gguf", "params.json")
    for named in (bare, bare / "m.gguf", bare / "params.json"):
        with pytest.raises(BadModelError, match=r"no tekken.json in .*--tokenizer"):
            locate_tekken(str(named))
    monkeypatch.setenv("VX_ASR_MODEL", str(home))
    assert locate_tekken(None) == home / "tekken.json"


def test_starts_light() -> None:
    code = "import sys, voxtral_pipes.formats.locate; print(*{'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.split() == []
