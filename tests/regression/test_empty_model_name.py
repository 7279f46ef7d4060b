"""`-m "$UNSET"` took another model from the environment or the cache, and said nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import shell


@pytest.mark.parametrize("command", ["vx-tokenize --ids", "vx-backbone", "vx-codec"])
def test_an_empty_model_name_is_a_usage_error(command: str, tiny_tts_model: Path) -> None:
    done = shell(
        f"echo hi | {command} -m '' > /dev/null; exit ${{PIPESTATUS[1]}}", VX_TTS_MODEL=str(tiny_tts_model)
    )
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1 and b"-m/--model" in done.stderr
