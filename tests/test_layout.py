"""The shape of the tree: which way imports go, and that each command has all its parts."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("formats", "kernels", "models", "stages", "cli")
LEAVES = {"voxtral_pipes.errors", "voxtral_pipes.config"}
HEAVY = {"numpy", "torch", "triton", "safetensors", "gguf", "soxr", "tiktoken", "matplotlib", "transformers"}
MAX_LINES = 450
# They share or do without what the others have in a module of their own name in `models`.
WITHOUT_NETWORK = {"vx-tokenize", "vx-detok", "vx-peek"}
# No frames go through them: `cli` calls `formats`.
WITHOUT_STAGE = {"vx-shard"}

FOLDERS = {
    "voxtral_pipes": ROOT / "voxtral_pipes",
    "voxtral_pipes.formats": ROOT / "formats",
    "voxtral_pipes.kernels": ROOT / "kernels",
    **{f"voxtral_pipes.{name}": ROOT / "voxtral_pipes" / name for name in ("models", "stages", "cli")},
}
MODULES = {
    f"{package}.{path.stem}": path for package, folder in FOLDERS.items() for path in folder.glob("*.py")
}
INITS = {name: path for name, path in MODULES.items() if path.name == "__init__.py"}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def layer(module: str) -> int | None:
    """Place a dotted name among the layers; None for the package itself and its leaves."""
    parts = module.split(".")
    return LAYERS.index(parts[1]) if len(parts) > 1 and parts[1] in LAYERS else None


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            assert node.module is not None
            yield node.module
            # `from voxtral_pipes import config` names a module too.
            yield from (
                f"{node.module}.{alias.name}" for alias in node.names if node.module == "voxtral_pipes"
            )


def commands() -> set[str]:
    """Name every command that `cli` defines, a module with a `main`."""
    found = set()
    for path in FOLDERS["voxtral_pipes.cli"].glob("*.py"):
        defined = {
            node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)
        }
        if "main" in defined:
            assert "parser" in defined, f"{path.name} has main but no parser"
            found.add(f"vx-{path.stem}")
    return found


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_one_way(name: str) -> None:
    own = layer(name)
    for imported in imports(ast.parse(MODULES[name].read_text())):
        assert imported.split(".")[0] not in LAYERS, f"{name} imports {imported} without the package"
        other = layer(imported)
        if name in LEAVES:
            assert other is None, f"{name} is a leaf and imports {imported}"
        if own is not None and other is not None:
            assert other <= own, f"{name} ({LAYERS[own]}) imports {imported} ({LAYERS[other]})"


@pytest.mark.parametrize("name", sorted(INITS))
def test_packages_are_a_docstring(name: str) -> None:
    docstring, *rest = ast.parse(INITS[name].read_text()).body
    assert isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant)
    if name == "voxtral_pipes.__init__":
        assert [ast.unparse(node).split(" = ")[0] for node in rest] == ["__version__"]
    else:
        assert rest == []


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_are_readable_in_one_sitting(name: str) -> None:
    assert len(MODULES[name].read_text().splitlines()) <= MAX_LINES


def top_imports(name: str) -> Iterator[str]:
    """Yield what importing a module imports at once."""
    for node in ast.parse(MODULES[name].read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)


@pytest.mark.parametrize("command", sorted(commands()))
def test_commands_start_light(command: str) -> None:
    """Nothing heavy is imported before a command has set its signal handlers and parsed its options."""
    todo = [f"voxtral_pipes.cli.{command.removeprefix('vx-')}"]
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in MODULES and name not in seen:
            seen.add(name)
            todo.extend(top_imports(name))
        assert name.split(".")[0] not in HEAVY, (
            f"{command} imports {name} by way of {', '.join(sorted(seen))}"
        )


def test_packages_are_the_folders_on_disk() -> None:
    tools = project()["tool"]["setuptools"]
    assert set(tools["packages"]) == set(FOLDERS)
    assert {name: ROOT / folder for name, folder in tools["package-dir"].items()} == {
        name: FOLDERS[name] for name in ("voxtral_pipes.formats", "voxtral_pipes.kernels")
    }
    on_disk = {
        path.parent for top in ("voxtral_pipes", "formats", "kernels") for path in (ROOT / top).rglob("*.py")
    }
    assert on_disk == set(FOLDERS.values())
    assert {path.parent for path in INITS.values()} == on_disk


def test_every_command_has_all_its_parts() -> None:
    scripts = {Path(name).name for name in project()["tool"]["setuptools"]["script-files"]}
    on_disk = {path.name for path in (ROOT / "bin").iterdir()}
    pages = {path.stem for path in (ROOT / "man").glob("*.1")}
    told = set(re.findall(r"^\| `(vx-\w+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert scripts == on_disk == pages == told == commands()


@pytest.mark.parametrize("command", sorted(commands()))
def test_every_command_is_a_column(command: str) -> None:
    name = command.removeprefix("vx-")
    layers = ("stages", "cli") if command in WITHOUT_NETWORK else ("models", "stages", "cli")
    below = "stages"
    if command in WITHOUT_STAGE:
        layers, below = ("formats", "cli"), "formats"
    folders = {layer: FOLDERS[f"voxtral_pipes.{layer}"].relative_to(ROOT) for layer in layers}
    parts = [f"{folders[layer]}/{name}.py" for layer in layers]
    parts += [f"bin/{command}", f"man/{command}.1", f"tests/cli/test_{name}.py"]
    assert [part for part in parts if not (ROOT / part).is_file()] == []
    called = set(imports(ast.parse((ROOT / "voxtral_pipes" / "cli" / f"{name}.py").read_text())))
    assert f"voxtral_pipes.{below}.{name}" in called


@pytest.mark.parametrize("path", sorted((ROOT / "bin").iterdir()), ids=lambda path: str(path.name))
def test_scripts_call_their_command(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env python3\n")
    assert f"from voxtral_pipes.cli.{path.name.removeprefix('vx-')} import main\n" in text
    assert path.stat().st_mode & 0o111 == 0o111
    assert len(text.splitlines()) <= 12
