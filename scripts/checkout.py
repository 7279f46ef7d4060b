"""Imported first by the scripts here: they run in the checkout's own environment, whichever python3 started them.

Where no commands are on PATH, those of that environment are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TO_INSTALL = (
    "scripts/setup installs what is needed, or pip install -e '.[nano]' in an environment of your own"
)

if find_spec("voxtral_pipes") is None:
    if subprocess.run([ROOT / "scripts" / "setup", "--no-tests"], check=False).returncode:
        sys.exit(1)  # it has said why
    python = ROOT / ".venv" / "bin" / "python"
    os.execv(python, [str(python), *sys.argv])

if shutil.which("vx-mel") is None:
    os.environ["PATH"] = os.pathsep.join(
        filter(None, (str(Path(sys.executable).parent), os.environ.get("PATH")))
    )
