"""Real processes joined by real pipes, for tests; imported by name, not collected."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from voxtral_pipes.formats.frame import Frame, FrameReader

ROOT = Path(__file__).resolve().parents[1]
CLIPS = ROOT / "tests" / "data"
WAIT_S = 120


def environment(model: Path | None = None, **more: str) -> dict[str, str]:
    """Return the environment of a user: the commands on PATH, the model in its variable, no VX_ of ours."""
    path = f"{Path(sys.executable).parent}:{ROOT / 'bin'}:{os.environ['PATH']}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VX_")}
    return {**clean, "PATH": path, **({"VX_ASR_MODEL": str(model)} if model else {}), **more}


def shell(
    line: str, model: Path | None = None, data: bytes | None = None, cwd: Path | None = None, **more: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a shell line with pipefail off, as a user's shell has it; no traceback may ever show."""
    done = subprocess.run(
        ["bash", "-c", line],
        input=data,
        capture_output=True,
        cwd=cwd or ROOT,
        timeout=WAIT_S,
        env=environment(model, **more),
        check=False,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


def command(
    name: str, *arguments: str | int | Path, data: bytes = b"", **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """Run one command on `data`, with no model in its variable; no traceback may ever show."""
    done = subprocess.run(
        [name, *map(str, arguments)], input=data, capture_output=True, timeout=WAIT_S, check=False,
        env=environment(None, **variables),
    )  # fmt: skip
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


COMMAND = """#!{python}
import sys
from pathlib import Path
from voxtral_pipes.formats import embedded
embedded.HOME = Path({home!r})
from voxtral_pipes.cli.{module} import main
sys.exit(main())
"""


def commands_embedding(home: Path, folder: Path) -> str:
    """Write commands into `folder` whose embedded models lie in `home`; return a PATH that finds them first."""
    folder.mkdir()
    for command in (ROOT / "bin").iterdir():
        script = folder / command.name
        module = command.name.removeprefix("vx-")
        script.write_text(COMMAND.format(python=sys.executable, home=str(home), module=module))
        script.chmod(0o755)
    return f"{folder}:{environment()['PATH']}"


def wait_until(condition: Callable[[], bool], within_s: float = WAIT_S) -> None:
    """Wait until something is so, which must be soon."""
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def frames(data: bytes) -> list[Frame]:
    """Parse a whole frame stream."""
    return list(FrameReader(io.BytesIO(data)))
