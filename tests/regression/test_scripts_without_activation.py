"""scripts/make-random-model, bench and soak ended in an ImportError where python3 was not that of .venv."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
BARE = Path(getattr(sys, "_base_executable", ""))


@pytest.mark.skipif(sys.prefix == sys.base_prefix or not BARE.is_file(), reason="needs a virtual environment")
@pytest.mark.parametrize("name", ["make-random-model", "bench", "soak"])
def test_a_script_goes_on_in_the_environment_of_its_checkout(name: str, tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for file in (name, "checkout.py"):
        shutil.copy(SCRIPTS / file, scripts)
    python = tmp_path / ".venv" / "bin" / "python"
    setup = scripts / "setup"
    setup.write_text(
        f"#!/bin/bash\nmkdir -p {python.parent}\nprintf '#!/bin/bash\\necho went on: \"$@\"' > {python}\n"
        f"chmod +x {python}\n"
    )
    setup.chmod(0o755)
    done = subprocess.run(
        [BARE, "-I", "-c", f"import runpy, sys; sys.path.insert(0, {str(scripts)!r}); "
         f"sys.argv = [{name!r}, 'a b']; runpy.run_path({str(scripts / name)!r})"],
        capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, f"went on: {scripts / name} a b\n", "")
