"""scripts/demo: it hears, speaks and hears again, says that all of it is noise, and leaves a WAV to play."""

import re
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import pytest
from processes import ROOT, WAIT_S, environment


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="needs a virtual environment")
def test_the_demo_goes_through_both_pipes_and_makes_its_models_once(tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name in ("demo", "make-random-model", "checkout.py"):
        shutil.copy(ROOT / "scripts" / name, scripts)
    (scripts / "setup").write_text("#!/bin/sh\n")  # what the tests run in is set up
    (scripts / "setup").chmod(0o755)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for name in ("voxtral_pipes", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)

    def demo() -> tuple[str, str]:
        done = subprocess.run(
            [scripts / "demo"], env=environment(), capture_output=True, timeout=WAIT_S, stdin=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode(), done.stderr.decode()

    out, told = demo()
    assert told.count("making a tiny random model") == len(told.splitlines()) == 2
    assert "Both models are random" in out and "means nothing" in out
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
    assert f"The noise is in {spoken} " in out
    with wave.open(str(spoken)) as sound:
        assert (sound.getframerate(), sound.getnchannels()) == (24000, 1)
        assert sound.getnframes() > 0 and sound.getnframes() % 1920 == 0
    assert any(line == "vx-peek < .cache/demo.wav" and shown.startswith("wav ") for line, shown in lines)
    heard, heard_again = lines[1][1], lines[5][1]
    assert heard and heard_again and heard != heard_again
    assert not list((tmp_path / ".cache").glob("new.*"))
    assert demo() == (out, "")
