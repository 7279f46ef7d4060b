"""Find the files of a model: by `-m PATH`, the environment, the cache, or else the embedded one (design.md section 3).

No import of numpy or torch.  To tell which model of the cache fits, tensor names are read and nothing else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from voxtral_pipes.errors import BadModelError, NoModelError
from voxtral_pipes.formats.embedded import FOLDERS, announcement, embedded
from voxtral_pipes.formats.family import ASR, MODEL_VARIABLE, recognise
from voxtral_pipes.formats.gguf import GgufFile
from voxtral_pipes.formats.gguf_table import MAGIC
from voxtral_pipes.formats.names import MANIFEST, RAW_NAME, names_in, part_of, part_paths, raw_paths
from voxtral_pipes.formats.safetensors import SafetensorsFile
from voxtral_pipes.formats.settings import Settings
from voxtral_pipes.formats.table import TensorFile

Layout = Literal["mistral", "hf", "gguf"]
Pieces = Literal["file", "raw", "split", "index"]

CONSOLIDATED, HF_FILE, HF_INDEX = (
    "consolidated.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of one model.  That they can be read is only known once they are opened."""

    path: Path
    """What was named or chosen, for messages."""
    layout: Layout
    """Where hyperparameters are looked for first; tensor names decide in the end."""
    weights: tuple[Path, ...]
    """One file; all raw shards or gguf-split parts in order; or the index of a safetensors set."""
    pieces: Pieces
    """How `weights` make up one file."""
    params: Path | None
    """params.json"""
    config: Path | None
    """config.json"""
    tekken: Path | None
    """tekken.json"""

    def open(self) -> TensorFile:
        """Open the weights: read headers, map the data, load nothing.

        Raises:
            BadModelError: malformed or incomplete files.
        """
        if self.layout == "gguf":
            return GgufFile(self.weights, raw=self.pieces == "raw")
        if self.pieces == "index":
            return SafetensorsFile.from_index(self.weights[0])
        return SafetensorsFile.open(self.weights, raw=self.pieces == "raw")


def cache_dir() -> Path:
    """Return the model cache, `$XDG_CACHE_HOME/voxtral-pipes/models`; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says that a relative path is to be ignored.
    root = Path(base) if base.startswith("/") else _home("~/.cache")
    return root / "voxtral-pipes" / "models"


def _home(path: str) -> Path:
    """Replace `~` by a home directory; where there is none the path stays, and is found by nobody."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def locate_model(
    model: str | None, family: str = ASR, say: Callable[[str], object] | None = None
) -> ModelFiles:
    """Return the files of the model that `-m` names, or else the environment, or else the one in the cache.

    Where there is none either, they are those of the embedded model, and `say` gets the line that tells so.

    Raises:
        NoModelError: several models in the cache fit, the named one is not there, or nothing is named and the
            package was installed without its models.
        BadModelError: the named place holds no model, or more than one.
    """
    named = model or os.environ.get(MODEL_VARIABLE[family])
    return files_at(_existing(named, family)) if named else _unnamed(family, say)


def locate_tekken(
    model: str | None,
    tokenizer: str | None = None,
    family: str = ASR,
    say: Callable[[str], object] | None = None,
) -> Path:
    """Return the tekken.json to use: `--tokenizer`, or that of the model which `locate_model` would take.

    Weights are not needed: a tekken.json itself, or a directory that holds one, may be named as the model.

    Raises:
        NoModelError: as `locate_model`, or the file that --tokenizer names is not there.
        BadModelError: there is no tekken.json beside the weights.
    """
    if tokenizer:
        path = Path(tokenizer)
        path = path / "tekken.json" if path.is_dir() else path
        if not path.is_file():
            wrong = "is not a regular file" if path.exists() else "is not there"
            raise NoModelError(f"--tokenizer {tokenizer}: {path.name} {wrong}")
        return path
    named = model or os.environ.get(MODEL_VARIABLE[family])
    path = _existing(named, family) if named else _unnamed(family, say).path
    if path.suffix == ".json" and path.is_file() and not _is_settings(path.name):
        return path
    if not path.is_dir() and not path.is_file():
        raise BadModelError(f"{path} is neither a regular file nor a directory")
    home = path if path.is_dir() else path.parent
    if not (home / "tekken.json").is_file():
        raise BadModelError(
            f"there is no tekken.json in {home}: put it beside the weights, or name it with --tokenizer "
            "where the command has that option"
        )
    return home / "tekken.json"


def files_at(path: Path) -> ModelFiles:
    """Return the model files that an existing `path` stands for (formats.md section 3.5).

    `path` is a .gguf or .safetensors file, any part of a set, any raw shard, a manifest, an index, or a
    directory.

    Raises:
        BadModelError: it holds no model, or several candidates of one rank, or a set that is not complete.
    """
    try:
        if path.is_dir():
            return _in_directory(path)
        if path.name == MANIFEST:
            return _from_manifest(path)
        if path.name.endswith(".safetensors.index.json"):
            return _files(path, _st_layout(path), (path,), "index")
        if RAW_NAME.fullmatch(path.name):
            return _raw(path, raw_paths(path.parent, names_in(path.parent)))
        if part := part_of(path.name, "gguf", "safetensors"):
            return _set(path, part)
        if path.suffix == ".safetensors":
            return _files(path, _st_layout(path), (path,), "file")
        if path.suffix == ".gguf" or _head(path) == MAGIC:
            return _files(path, "gguf", (path,), "file")
    except OSError as error:
        raise BadModelError(f"{path} cannot be read: {error.strerror or error}") from error
    raise BadModelError(
        f"{path} is no model: a .gguf or .safetensors file, or a directory with one, is needed"
    )


def _is_settings(name: str) -> bool:
    return name in ("params.json", "config.json", MANIFEST) or name.endswith(".index.json")


def _existing(named: str, family: str) -> Path:
    """Resolve a path, a name in the cache, or that of an embedded model, in this order."""
    path = _home(named) if named.startswith("~") else Path(named)
    if path.exists():
        return path
    if "/" not in named:
        for candidate in (cache_dir() / named, cache_dir() / f"{named}.gguf"):
            if candidate.exists():
                return candidate
        if named in FOLDERS:
            return embedded(family, named)
        raise NoModelError(f"there is no model {named!r}, neither here nor in the cache {cache_dir()}")
    raise NoModelError(f"there is no model at {named}")


def _unnamed(family: str, say: Callable[[str], object] | None) -> ModelFiles:
    """Take the only fitting model of the cache, or where none fits the embedded one."""
    cache = cache_dir()
    fitting, unusable = [], []
    for entry in sorted(cache.iterdir()) if cache.is_dir() else ():
        try:
            files = files_at(entry)
            if recognise(files.open().tensors) == family:
                fitting.append(files)
        except BadModelError as error:
            unusable.append(f"{entry.name} ({error})")
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(files.path.name for files in fitting)
        raise NoModelError(f"several models are in the cache {cache}: {names}; choose one with -m NAME")
    # Whoever put a model there wants that one.
    broken = f"; not usable in the cache: {'; '.join(unusable)}" if unusable else ""
    try:
        folder = embedded(family)
    except NoModelError as error:
        raise NoModelError(
            f"no model: name one with -m PATH or ${MODEL_VARIABLE[family]}, or put one into {cache}/NAME; "
            f"{error}{broken}"
        ) from error
    if say is not None:
        say(announcement(family) + broken)
    return files_at(folder)


def _in_directory(home: Path) -> ModelFiles:
    """Take the first rank of formats.md section 3.5 that matches, if exactly one candidate does."""
    names = names_in(home)
    if CONSOLIDATED in names:
        return _files(home, "mistral", (home / CONSOLIDATED,), "file")
    ggufs = [name for name in names if name.endswith(".gguf")]
    single = [home / name for name in ggufs if not part_of(name)]
    if single:
        return _files(home, "gguf", (_one(home, single),), "file")
    parts = [part for name in ggufs if (part := part_of(name))]
    if parts:
        firsts = {(part["stem"], part["count"]): part for part in parts}
        _one(home, [home / part.string for part in firsts.values()])
        return _set(home / parts[0].string, parts[0], home)
    if shards := raw_paths(home, names):
        return _raw(home, shards)
    hf = [home / name for name in (HF_INDEX, HF_FILE) if name in names]
    if hf:
        return _files(home, "hf", (_one(home, hf),), "index" if hf[0].name == HF_INDEX else "file")
    raise BadModelError(
        f"{home} holds no model: {CONSOLIDATED}, one .gguf, all parts of a set, shard-* files or "
        f"{HF_FILE} are looked for"
    )


def _one(home: Path, candidates: list[Path]) -> Path:
    if len(candidates) > 1:
        names = ", ".join(path.name for path in candidates)
        raise BadModelError(f"{home} holds several models ({names}): name one of them with -m")
    return candidates[0]


def _set(path: Path, part: re.Match[str], chosen: Path | None = None) -> ModelFiles:
    """Resolve a gguf-split set from any of its parts; a safetensors part stands for the index beside it."""
    if part["kind"] == "safetensors":
        index = path.parent / f"{part['stem']}.safetensors.index.json"
        if not index.is_file():
            raise BadModelError(f"{path.name} is a part of a set, and its {index.name} is not beside it")
        return _files(path, _st_layout(index), (index,), "index")
    count = int(part["count"])
    if not 1 <= int(part["number"]) <= count:
        raise BadModelError(f"{path.name} is numbered outside of its own set")
    paths = part_paths(path.parent, set(names_in(path.parent)), part["stem"], count)
    return _files(chosen or path, "gguf", paths, "split")


def _raw(path: Path, shards: tuple[Path, ...]) -> ModelFiles:
    layout: Layout = "gguf" if _head(shards[0]) == MAGIC else _st_layout(shards[0])
    return _files(path, layout, shards, "raw")


def _from_manifest(path: Path) -> ModelFiles:
    """Resolve a manifest of vx-shard (formats.md section 3.4); sizes are compared, sums are not."""
    manifest = Settings.read(path)
    manifest.expect("format", "vx-shard")
    parts = manifest.sections("parts")
    paths = []
    for part in parts:
        name = part.text("name")
        if Path(name).name != name or not (path.parent / name).is_file():
            raise part.fail("name", f"is {name!r:.120}, which is not a file beside {path.name}")
        size = (path.parent / name).stat().st_size
        if part.has("size") and size != part.integer("size", most=2**63):
            raise BadModelError(
                f"{name} has {size} bytes, {path.name} says {part.integer('size', most=2**63)}"
            )
        paths.append(path.parent / name)
    if not paths:
        raise manifest.fail("parts", "is empty")
    if match := part_of(paths[0].name, "gguf", "safetensors"):
        return _set(paths[0], match, path)
    return _raw(path, tuple(paths))


def _st_layout(path: Path) -> Layout:
    """Guess from the settings beside a safetensors file which names it uses, then from its own name."""
    has_params, has_config = (path.parent / "params.json").is_file(), (path.parent / "config.json").is_file()
    if has_params != has_config:
        return "mistral" if has_params else "hf"
    return "hf" if path.name.startswith("model") else "mistral"


def _head(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(4)


def _files(path: Path, layout: Layout, weights: tuple[Path, ...], pieces: Pieces) -> ModelFiles:
    home = weights[0].parent
    settings = (home / name for name in ("params.json", "config.json", "tekken.json"))
    params, config, tekken = (file if file.is_file() else None for file in settings)
    return ModelFiles(path, layout, weights, pieces, params, config, tekken)
