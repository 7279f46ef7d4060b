"""scripts/demo: it hears what was said, speaks, hears that again, and leaves a WAV to play."""

import re
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import pytest
from processes import ROOT, WAIT_S, environment


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="needs a virtual environment")
def test_the_demo_goes_through_both_pipes(tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    shutil.copy(ROOT / "scripts" / "demo", scripts)
    (scripts / "setup").write_text("#!/bin/sh\n")  # what the tests run in is set up
    (scripts / "setup").chmod(0o755)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    done = subprocess.run(
        [scripts / "demo"], env=environment(), capture_output=True, timeout=WAIT_S, stdin=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip
    out = done.stdout.decode()
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    lines = re.findall(r"^\$ (.*)\n(.*)", out, re.MULTILINE)
    assert [line.split()[0] for line, _ in lines] == [
        "vx-mel",
        "vx-mel",
        "vx-detok",
        "echo",
        "vx-peek",
        "vx-mel",
    ]
    spoken = tmp_path / ".cache" / "demo.wav"
    assert f"The sound is in {spoken} " in out
    with wave.open(str(spoken)) as sound:
        assert (sound.getframerate(), sound.getnchannels()) == (24000, 1)
        assert sound.getnframes() > 24000 and sound.getnframes() % 1920 == 0
    assert any(line == "vx-peek < .cache/demo.wav" and shown.startswith("wav ") for line, shown in lines)
    assert lines[1][1] == "three one four one five nine"
    assert lines[5][1].split()  # what it says of itself is measured by scripts/listen-back
