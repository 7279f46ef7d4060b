"""Five minutes of speech-like sound through the real pipe: every token comes, and no process grows."""

import json
import subprocess
import sys

from processes import ROOT, WAIT_S, environment


def test_five_minutes_in_flat_memory() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "soak", "--hours", str(300 / 3600), "--json"],
        capture_output=True,
        timeout=2 * WAIT_S,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    figures = json.loads(done.stdout)["soak"]
    assert figures["tokens"] > 3700  # far beyond both windows of the tiny model, 20 and 64 positions
