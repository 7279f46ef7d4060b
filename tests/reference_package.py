"""Make a checkout of Faster-Voxtral-4B-TTS importable for the scripts in tests/golden, without its own __init__."""

from __future__ import annotations

import sys
import types
from pathlib import Path


def show_reference(checkout: str) -> None:
    """Register `voxtral` as a bare package: its __init__ would import the whole program and what that needs."""
    package = types.ModuleType("voxtral")
    package.__path__ = [str(Path(checkout) / "voxtral")]
    sys.modules["voxtral"] = package
