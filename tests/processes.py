"""Real processes joined by real pipes, for tests; imported by name, not collected."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
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


def script(name: str, *arguments: str | int | Path) -> subprocess.CompletedProcess[str]:
    """Run a script of the checkout in the interpreter of the tests; no traceback may ever show."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / name, *map(str, arguments)], capture_output=True, text=True,
        timeout=WAIT_S, env=environment(), check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


SEVERAL = """
import contextlib, io, json, runpy, sys
script, *runs = json.loads(sys.argv[1])
sys.path[0] = script.rpartition("/")[0]
ended = []
for arguments in runs:
    sys.argv = [script, *arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(script, run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code
    ended.append([arguments, status or 0, out.getvalue(), err.getvalue()])
print(json.dumps(ended))
"""


def script_runs(name: str, *runs: Sequence[str | int | Path]) -> list[subprocess.CompletedProcess[str]]:
    """Run a script several times in one interpreter, which imports torch once; return how each run ended."""
    given = [str(ROOT / "scripts" / name), *([str(argument) for argument in run] for run in runs)]
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, json.dumps(given)], capture_output=True, text=True, timeout=WAIT_S,
        env=environment(), check=False,
    )  # fmt: skip
    # Whatever is no regular end is one of the interpreter itself.
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return [subprocess.CompletedProcess(*ended) for ended in json.loads(done.stdout)]


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


def frames(data: bytes) -> list[Frame]:
    """Parse a whole frame stream."""
    return list(FrameReader(io.BytesIO(data)))
