"""Commands that nobody named a model to: the embedded one works, and each that uses it says so in a line."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from id_streams import cut, pipe
from preloaded import path_preloaded
from processes import CLIPS, frames, shell

from voxtral_pipes.formats.frame import encode
from voxtral_pipes.formats.tekken import Tekken

CLIP = CLIPS / "tt-weasels.wav"
LISTEN = f"vx-mel {CLIP} | vx-encode {{0}} | vx-decode {{0}} | vx-detok {{0}} --format jsonl"
SPEAK = "echo hi | vx-tokenize {0} | vx-backbone {0} --max-frames 3 | vx-flow {0} --seed 1 | vx-codec {0}"
LIMITS = {
    "VX_ASR_MODEL": "the embedded nano model listens, which knows 35 English words",
    "VX_TTS_MODEL": "the embedded nano model speaks, which says digits clearly and short English sentences less so",
}
PIPES = [
    (LISTEN, "VX_ASR_MODEL", {"vx-encode", "vx-decode", "vx-detok"}),
    (SPEAK, "VX_TTS_MODEL", {"vx-tokenize", "vx-backbone", "vx-flow", "vx-codec"}),
]


def about_models(stderr: bytes) -> list[str]:
    return [line for line in stderr.decode().splitlines() if "model is named" in line or "embedded" in line]


@pytest.mark.parametrize(("line", "variable", "told"), PIPES, ids=["listen", "speak"])
def test_each_command_says_so_and_works(
    line: str, variable: str, told: set[str], with_nano: str, tmp_path: Path
) -> None:
    path = path_preloaded(Path(with_nano.partition(":")[0]), with_nano)

    def run(options: str, **more: str) -> subprocess.CompletedProcess[bytes]:
        return shell(line.format(options), None, None, None, PATH=path, XDG_CACHE_HOME=str(tmp_path), **more)

    done = run("")
    said = f"warning: no model is named: {LIMITS[variable]}; name another with -m PATH or ${variable}"
    assert sorted(about_models(done.stderr)) == sorted(f"{command}: {said}" for command in told)
    assert done.returncode == 0 and done.stdout
    for quiet in ("-q", "-m nano"):
        same = run(quiet)
        assert (same.returncode, same.stdout, about_models(same.stderr)) == (0, done.stdout, [])
    named = run("", **{variable: "nano"})
    assert named.stdout == done.stdout and about_models(named.stderr) == []
    packed = run("-m nano-q4")
    assert packed.returncode == 0 and packed.stdout not in (b"", done.stdout)
    assert about_models(packed.stderr) == []


def test_what_needs_no_model_is_silent(with_nano: str, tmp_path: Path) -> None:
    done = shell(
        f"vx-mel {CLIP} | vx-peek --pass > {tmp_path}/mel.vx", PATH=with_nano, XDG_CACHE_HOME=str(tmp_path)
    )
    assert done.returncode == 0 and b"model" not in done.stderr.replace(b'"model"', b"")
    assert "model" not in frames((tmp_path / "mel.vx").read_bytes())[0].meta
    named = shell(f"vx-mel -m nano {CLIP}", PATH=with_nano)
    assert (named.returncode, named.stderr) == (0, b"")


@pytest.mark.parametrize("command", ["vx-detok", "vx-tokenize --ids"])
def test_text_commands_need_no_torch(command: str, nano_home: Path, tmp_path: Path) -> None:
    """Not even for the embedded model."""
    name, *options = command.removeprefix("vx-").split()
    code = (
        "import sys; from pathlib import Path; from voxtral_pipes.formats import embedded; "
        f"embedded.HOME = Path({str(nano_home)!r}); sys.argv = ['vx', *{options}]; "
        f"from voxtral_pipes.cli.{name} import main; status = main(); assert 'torch' not in sys.modules; "
        "sys.exit(status)"
    )
    ids = Tekken.read(nano_home / "asr" / "tekken.json").encode("hi there")
    source = b"".join(map(encode, pipe({0: cut(ids)}))) if name == "detok" else b"hi\n"
    done = shell(f'python3 -c "{code}"', data=source, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0 and b"embedded nano model" in done.stderr and done.stdout
