"""vx-backbone waited for text, for ever, although vx-flow had gone."""

from __future__ import annotations

import subprocess
from pathlib import Path

from processes import WAIT_S, environment


def test_vx_backbone_ends_with_vx_flow_while_it_waits_for_text(tiny_tts_model: Path) -> None:
    line = "vx-tokenize | vx-backbone | vx-flow -m /nonexistent > /dev/null; echo ${PIPESTATUS[@]:1}"
    with subprocess.Popen(
        ["bash", "-c", line], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment(VX_TTS_MODEL=str(tiny_tts_model)),
    ) as shell:  # fmt: skip
        assert shell.stdin is not None and shell.stderr is not None and shell.stdout is not None
        shell.stdin.write(b"hi\n")
        shell.stdin.flush()  # vx-tokenize stays, with more to come
        assert b"vx-flow" in shell.stderr.readline()
        subprocess.run(["bash", "-c", f"while pgrep -P {shell.pid} -f vx-backbone; do sleep .1; done"],
                       timeout=WAIT_S, check=False, capture_output=True)  # fmt: skip
        shell.stdin.close()
        assert shell.stdout.read().split() == [b"141", b"1"]
