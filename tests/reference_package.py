"""Make vllm-omni's own modules of the speech model importable for the scripts in tests/golden, without its engine.

The modules compute with torch alone, but import much of vllm for serving.  Here each name taken from it, and from what
chooses the device, is a class that cannot be called: whatever is computed is computed by the modules themselves.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = "vllm_omni.model_executor.models.voxtral_tts"
ENGINE = ("vllm", "vllm_omni.platforms")


class _Absent:
    """Stands for something of the engine: a base class or an annotation, never called."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError(f"{type(self).__name__} is the engine's, which is not here")

    def __class_getitem__(cls, item: object) -> type:
        return cls


class _Registry:
    """What modules need of the engine when they are imported: a decorator that registers a class."""

    @staticmethod
    def register_processor(*args: object, **kwargs: object) -> Any:
        return lambda decorated: decorated


class _Engine(MetaPathFinder, Loader):
    """Finds every module of the engine, all of whose attributes are `_Absent`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        mine = any(fullname == name or fullname.startswith(f"{name}.") for name in ENGINE)
        return ModuleSpec(fullname, self, is_package=True) if mine else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        known = {"init_logger": logging.getLogger, "MULTIMODAL_REGISTRY": _Registry}

        def attribute(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return known.get(name) or type(name, (_Absent,), {})

        module.__dict__["__getattr__"] = attribute
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def reference_module(name: str) -> ModuleType:
    """Import one module of the reference; the packages around it stay bare, as their __init__ import all of it."""
    for optional in ("apex", "flash_attn"):
        if importlib.util.find_spec(optional):
            raise RuntimeError(f"{optional} is installed, and would replace torch in the reference")
    if not any(isinstance(finder, _Engine) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Engine())
        root = importlib.util.find_spec("vllm_omni")
        if root is None or root.origin is None:
            raise RuntimeError("vllm_omni is not on PYTHONPATH; tests/golden/README.md says how to get it")
        names = PACKAGE.split(".")[:-1]
        for package in (*(".".join(names[: n + 1]) for n in range(len(names))), "vllm_omni.quantization"):
            bare = ModuleType(package)
            bare.__path__ = [str(Path(root.origin).parent.joinpath(*package.split(".")[1:]))]
            sys.modules[package] = bare
    return importlib.import_module(f"{PACKAGE}.{name}")


def made_with() -> str:
    """Name what made a golden file, with versions."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("vllm-omni", "torch", "numpy"))
