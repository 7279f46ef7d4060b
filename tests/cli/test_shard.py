"""vx-shard as a process: what it says, what it leaves behind, and how much memory it takes."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from processes import environment, shell, wait_until

ROOT = Path(__file__).resolve().parents[2]
SHARD = [sys.executable, str(ROOT / "bin" / "vx-shard")]
WAIT_S = 60


def gguf(n_tensors: int = 20, elements: int = 1000, last: float = 1.0) -> bytes:
    """A GGUF of float32 tensors."""
    key, value = b"general.architecture", b"voxtral-tts"
    pairs = struct.pack(f"<Q{len(key)}sIQ{len(value)}s", len(key), key, 8, len(value), value)
    table, size = b"", -(-4 * elements // 32) * 32
    for number in range(n_tensors):
        name = f"acoustic_transformer.t{number}".encode()
        table += struct.pack(f"<Q{len(name)}sIQIQ", len(name), name, 1, elements, 0, number * size)
    head = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, 1) + pairs + table
    one = struct.pack("<f", 1) * elements
    data = (one + bytes(size - len(one))) * (n_tensors - 1) + one[:-4] + struct.pack("<f", last)
    return head + bytes(-len(head) % 32) + data


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "whole.gguf"
    path.write_bytes(gguf())
    return path


def run(
    *arguments: str | Path, data: bytes = b"", limit: int | None = None
) -> subprocess.CompletedProcess[bytes]:
    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [*SHARD, *map(str, arguments)],
        input=data, capture_output=True, timeout=WAIT_S, env=environment(), check=False, preexec_fn=limited,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr
    return done


def good(*arguments: str | Path, data: bytes = b"") -> bytes:
    done = run(*arguments, data=data)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def names(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*"))


def test_split_verify_join(whole: Path, tmp_path: Path) -> None:
    home = tmp_path / "shards"
    assert good("split", "--manifest", "--size", "30KB", whole, f"{home}/") == b""
    assert names(home) == ["manifest.json", "shard-aa", "shard-ab", "shard-ac"]
    said = b"complete: voxtral-tts, 20 tensors, 81216 bytes, raw, 3 files, manifest\n"
    assert whole.stat().st_size == 81216
    assert good("verify", home) == str(home).encode() + b": " + said
    *lines, last = good("verify", "--deep", home).splitlines(keepends=True)
    assert last.endswith(said)
    checked = subprocess.run(
        ["sha256sum", "-c"], input=b"".join(lines), cwd=home, capture_output=True, check=False
    )
    assert checked.returncode == 0 and checked.stdout.count(b": OK\n") == 3
    assert good("join", home, tmp_path / "again") == b""
    assert (tmp_path / "again").read_bytes() == whole.read_bytes() == good("join", home / "shard-ab", "-")


def test_split_parts(whole: Path, tmp_path: Path) -> None:
    for out, first in (("a/m", "a/m-00001"), ("b/m.gguf", "b/m-00001"), ("c/", "c/whole-00001")):
        good("split", "--style", "gguf-split", "--size", "30KiB", whole, f"{tmp_path}/{out}")
        part = tmp_path / f"{first}-of-00003.gguf"
        assert good("join", part, "-") == good("join", part.parent, "-") == whole.read_bytes()
        assert part.stat().st_size <= 30 << 10
        assert b"gguf-split, 3 files\n" in good("verify", part)


def test_split_from_a_pipe(whole: Path, tmp_path: Path) -> None:
    home = tmp_path / "shards"
    data = whole.read_bytes()
    assert good("split", "--manifest", "--size", "20000", "-", home, data=data) == b""
    manifest = json.loads((home / "manifest.json").read_bytes())
    assert (manifest["name"], manifest["sha256"]) == ("stdin", hashlib.sha256(data).hexdigest())
    done = shell(f"vx-shard join {home} - | vx-shard split --size 7K - {tmp_path / 'more'}")
    assert (done.returncode, done.stderr) == (0, b"")
    assert good("join", tmp_path / "more", "-") == data


def test_info(whole: Path, tmp_path: Path) -> None:
    home = tmp_path / "shards"
    good("split", "--size", "30K", whole, home)
    lines = good("info", "--tensors", home).decode().splitlines()
    assert lines[:3] == ["family    voxtral-tts", "format    gguf", "form      raw"]
    assert "type      F32 20 tensors 80000 bytes" in lines
    assert "metadata  general.architecture = voxtral-tts" in lines
    assert lines[-1] == "tensor    acoustic_transformer.t19 F32 1000 4000"
    told = json.loads(good("info", "--json", "--tensors", home))
    assert (told["family"], told["tensors"], told["manifest"]) == ("voxtral-tts", 20, False)
    assert told["types"] == {"F32": {"tensors": 20, "bytes": 80000}}
    assert told["table"][0] == {
        "name": "acoustic_transformer.t0",
        "type": "F32",
        "shape": [1000],
        "bytes": 4000,
    }
    assert [file["name"] for file in told["files"]] == ["shard-aa", "shard-ab", "shard-ac"]
    assert "table" not in json.loads(good("info", "--json", whole))


def test_safetensors_of_types_that_no_model_here_has(tmp_path: Path) -> None:
    """They are cut and joined like any file; verify and info refused them."""
    about = {
        "x": {"dtype": "F64", "shape": [10], "data_offsets": [0, 80]},
        "y": {"dtype": "F8_E4M3", "shape": [3], "data_offsets": [80, 83]},
    }
    head = json.dumps(about).encode()
    (tmp_path / "f64.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(83))
    good("split", "--size", "100", tmp_path / "f64.safetensors", tmp_path / "cut")
    assert b"2 tensors" in good("verify", "--deep", tmp_path / "cut")
    assert b"F64" in good("info", "--tensors", tmp_path / "cut")
    with (tmp_path / "cut" / "shard-ab").open("ab") as file:
        file.write(b"more")
    assert run("verify", tmp_path / "cut").returncode == 1


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = json.dumps({"norm.weight": {"dtype": "BF16", "shape": [40], "data_offsets": [0, 80]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(80))
    home = tmp_path / "shards"
    good("split", "--size", "50", path, home)
    assert good("join", home, "-") == path.read_bytes()
    assert json.loads(good("info", "--json", home))["types"] == {"BF16": {"tensors": 1, "bytes": 80}}
    good("verify", "--deep", home)
    sorted(home.iterdir())[-1].unlink()
    for arguments in (("verify", home), ("join", home, "-")):
        done = run(*arguments)
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    done = run("split", "--style", "gguf-split", path, tmp_path / "parts")
    assert done.returncode == 1 and b"not a GGUF file" in done.stderr


def test_what_is_no_model_can_be_cut_as_well(tmp_path: Path) -> None:
    home = tmp_path / "shards"
    good("split", "--size", "4", "-", home, data=b"hello, world")
    done = run("join", home, "-")
    assert (done.returncode, done.stdout) == (0, b"hello, world")
    assert (
        done.stderr.startswith(b"vx-shard: warning: there is no manifest") and done.stderr.count(b"\n") == 1
    )
    assert run("join", "-q", home, "-").stderr == b""


@pytest.mark.parametrize(
    ("size", "count"),
    [("512M", 512 << 20), ("1g", 1 << 30), ("3KiB", 3072), ("2MiB", 2 << 20), ("5KB", 5000), ("2GB", 2 * 10**9),
     ("30001", 30001)],
)  # fmt: skip
def test_units(whole: Path, tmp_path: Path, size: str, count: int) -> None:
    done = run("split", "-v", "--size", size, whole, tmp_path / "shards")
    assert done.returncode == 0
    assert done.stderr.startswith(b"vx-shard: --size is %d bytes\n" % count)


@pytest.mark.parametrize(
    "arguments",
    [[], ["cut"], ["split"], ["split", "a"], ["split", "--size", "0", "a", "b"], ["split", "--size", "1T", "a", "b"],
     ["split", "--size", "1.5M", "a", "b"], ["split", "--style", "zip", "a", "b"], ["join", "a"], ["verify"],
     ["split", "--style", "gguf-split", "-", "b"], ["split", "--allow-oversize", "a", "b"], ["info", "--deep", "a"]],
)  # fmt: skip
def test_usage(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)


def test_help_of_each_command() -> None:
    for command in ("split", "join", "verify", "info"):
        told = good(command, "--help").decode()
        assert told.startswith(f"usage: vx-shard {command}") and "man vx-shard says more." in told
        assert good(command, "--version").startswith(b"vx-shard")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["split", "none", "out"], b"there is no file none"),
        (["split", ".", "out"], b". is a directory: name a file to be cut"),
        (["split", "empty", "out"], b"empty is empty: there is nothing to split"),
        (["split", "whole.gguf", "whole.gguf"], b"whole.gguf is not a directory"),
        (
            ["split", "--style", "gguf-split", "--size", "1K", "whole.gguf", "out/m"],
            b"would take a part of 4192 bytes, more than --size allows (1024)",
        ),
        (["join", "none", "out"], b"there is nothing at none"),
        (["join", "whole.gguf", "out"], b"whole.gguf holds no pieces"),
        (["join", "whole.gguf", "empty"], b"empty exists already"),
        (["verify", "none"], b"there is nothing at none"),
        (["verify", "empty"], b"neither a GGUF nor a safetensors"),
        (["verify", "."], b"several models|holds"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    whole: Path, tmp_path: Path, arguments: list[str], message: bytes
) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "z.gguf").write_bytes(whole.read_bytes())
    before = names(tmp_path)
    done = shell(f"vx-shard {' '.join(arguments)}", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert any(part in done.stderr for part in message.split(b"|")), done.stderr
    assert names(tmp_path) == before


def test_existing_files_stay(whole: Path, tmp_path: Path) -> None:
    home = tmp_path / "shards"
    good("split", "--manifest", "--size", "30K", whole, home)
    kept = {name: (home / name).read_bytes() for name in names(home)}
    for arguments in (["--size", "10K"], ["--manifest", "--style", "gguf-split", "--size", "40K"]):
        out = home if "--style" not in arguments else home / "m"
        done = run("split", *arguments, whole, out)
        assert (done.returncode, done.stderr.count(b"\n")) == (1, 1) and b"exists already" in done.stderr
        assert {name: (home / name).read_bytes() for name in names(home)} == kept
    done = run("join", home, whole)
    assert done.returncode == 1 and b"exists already" in done.stderr
    assert whole.read_bytes() == gguf()


@pytest.mark.parametrize("style", ["raw", "gguf-split"])
def test_a_full_disk_leaves_nothing(whole: Path, tmp_path: Path, style: str) -> None:
    """A limit on the size of files fails writes as a full disk does."""
    out = tmp_path / "new" / "out"
    done = run("split", "--style", style, "--size", "60000", whole, out, limit=50_000)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"cannot write" in done.stderr and b"File too large" in done.stderr
    assert names(tmp_path) == ["whole.gguf"]
    good("split", "--style", style, "--size", "60000", whole, f"{out}/")
    before = names(tmp_path)
    done = run("join", out, tmp_path / "joined", limit=70_000)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert names(tmp_path) == before
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*SHARD, "join", str(out), "-"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert done.stderr == b"vx-shard: cannot write to stdout: No space left on device\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "new" / "out"
    with subprocess.Popen(
        [*SHARD, "split", "--size", "1M", "-", str(out)], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(bytes(5 << 19))
        process.stdin.flush()
        wait_until(lambda: len(names(tmp_path)) >= 5, WAIT_S)
        unfinished = [name for name in names(tmp_path / "new") if name != "out"]
        assert len(unfinished) == 3 and all(name.startswith("out/.") for name in unfinished)
        process.send_signal(number)
        assert process.wait(WAIT_S) == -number
        assert process.stderr.read() == b""
    assert names(tmp_path) == []


def test_a_join_that_is_killed_leaves_nothing_under_its_name(tmp_path: Path) -> None:
    home = tmp_path / "shards"
    home.mkdir()
    for name in ("shard-aa", "shard-ab"):
        with (home / name).open("wb") as file:
            file.truncate(4 << 30)
    with subprocess.Popen([*SHARD, "join", "-q", str(home), str(tmp_path / "out")]) as process:
        wait_until(lambda: any(tmp_path.glob(".vx-*.tmp")), WAIT_S)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == -signal.SIGTERM
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards"]


def test_names_as_long_as_they_may_be(whole: Path, tmp_path: Path) -> None:
    """Their temporary names were too long, or all the same."""
    prefix = "p" * 200
    good("split", "--style", "gguf-split", "--size", "30K", whole, tmp_path / prefix)
    good("join", next(tmp_path.glob(f"{prefix}-00001-of-*")), tmp_path / ("\u00e9" * 122 + ".gguf"))


@pytest.mark.parametrize("style", ["raw", "gguf-split"])
def test_pieces_do_not_come_beside_a_manifest_of_others(whole: Path, tmp_path: Path, style: str) -> None:
    """verify and join took the pieces for foreign ones then."""
    home = tmp_path / "shards"
    good("split", "--manifest", "--size", "30K", whole, home)
    for piece in home.glob("shard-*"):
        piece.unlink()
    done = run("split", "--style", style, "--size", "40K", whole, f"{home}/")
    assert done.returncode == 1 and b"manifest.json exists already" in done.stderr
    assert names(home) == ["manifest.json"]


def test_large_metadata_are_not_held(tmp_path: Path) -> None:
    """They were, several times."""
    pairs, size = struct.pack("<Q1sIIQ", 1, b"k", 9, 0, 200 << 20), 200 << 20
    tensor = struct.pack("<Q1sIQIQ", 1, b"t", 1, 8, 0, 0)
    path = tmp_path / "large.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + pairs)
        file.seek(size, 1)
        file.write(tensor)
        file.write(bytes(-file.tell() % 32 + 32))
    limit = 150 << 20  # torch is not imported here: the commands take some 30 MB

    def little(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*SHARD, *map(str, arguments)], capture_output=True, timeout=WAIT_S, env=environment(), check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        )  # fmt: skip

    done = little("split", "--style", "gguf-split", "--size", "1G", path, tmp_path / "part")
    assert done.returncode == 0, done.stderr
    done = little("join", tmp_path / "part-00001-of-00001.gguf", tmp_path / "again.gguf")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again.gguf").stat().st_size == path.stat().st_size


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "shard-aa").write_bytes(bytes(1 << 20))
    done = shell(f"vx-shard join -q {tmp_path} - | head -c 1; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (141, b"")


def test_damage_is_found_before_a_file_has_its_name(whole: Path, tmp_path: Path) -> None:
    home = tmp_path / "shards"
    good("split", "--manifest", "--size", "30K", whole, home)
    data = bytearray((home / "shard-ac").read_bytes())
    data[-1] ^= 1
    (home / "shard-ac").write_bytes(data)
    before = names(tmp_path)
    for arguments in (("join", home, tmp_path / "out"), ("join", home, "-"), ("verify", "--deep", home)):
        done = run(*arguments)
        assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
        assert b"shard-ac is damaged or foreign" in done.stderr
    assert names(tmp_path) == before


def test_verify_looks_at_values_only_if_asked(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(gguf(last=float("nan")))
    good("verify", tmp_path / "a.gguf")
    done = run("verify", "--deep", tmp_path / "a.gguf")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"'acoustic_transformer.t19': value 999 is not finite" in done.stderr


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Pieces of 400 MB in 120 MB of address space: nothing is mapped or held whole."""
    home = tmp_path / "shards"
    home.mkdir()
    for name in ("shard-aa", "shard-ab"):
        with (home / name).open("wb") as file:
            file.truncate(200 << 20)
    for command in (f"join -q {home} - > /dev/null", f"verify -q {home} > /dev/null"):
        done = shell(f"ulimit -v 120000; vx-shard {command}")
        assert (done.returncode, done.stderr) == (0, b"")


def test_hostile_headers_end_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    for head in (
        struct.pack("<IQQ", 3, 2**60, 0), struct.pack("<IQQ", 3, 0, 2**60), struct.pack("<IQQQ", 3, 1, 0, 2**63),
        struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 8, 2**63), b"\0" * 50,
    ):  # fmt: skip
        path.write_bytes(b"GGUF" + head + bytes(100))
        split = ["split", "--style", "gguf-split", str(path), str(tmp_path / "out")]
        for command in (["verify", str(path)], ["info", str(path)], split):
            done = run(*command)
            assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert names(tmp_path) == ["a.gguf"]


def test_names_from_outside_stay_on_their_line(tmp_path: Path) -> None:
    name = b"a\x1b[31m\nb"
    head = b"GGUF" + struct.pack(f"<IQQQ{len(name)}sIQIQ", 3, 1, 0, len(name), name, 1, 1, 0, 0)
    (tmp_path / "a.gguf").write_bytes(head + bytes(-len(head) % 32) + bytes(4))
    shown = good("info", "--tensors", tmp_path / "a.gguf")
    assert b"\x1b" not in shown and shown.endswith(b"tensor    a?[31m?b F32 1 4\n")


def test_progress_is_for_terminals_only(whole: Path, tmp_path: Path) -> None:
    for quiet in ([], ["-q"]):
        parent, child = pty.openpty()
        out = tmp_path / f"shards{len(quiet)}"
        done = subprocess.run([*SHARD, "split", *quiet, str(whole), str(out)], stderr=child, check=False)
        os.close(child)
        try:
            shown = os.read(parent, 1000)
        except OSError:  # what a terminal answers when nothing was written and all have gone
            shown = b""
        os.close(parent)
        assert done.returncode == 0
        assert (b"79.3 KiB of 79.3 KiB" in shown) == (not quiet)


def test_binary_to_a_terminal_is_refused(whole: Path, tmp_path: Path) -> None:
    good("split", whole, tmp_path / "shards")
    parent, child = pty.openpty()
    done = subprocess.run(
        [*SHARD, "join", str(tmp_path / "shards"), "-"], stdout=child, stderr=subprocess.PIPE, check=False
    )
    os.close(child)
    os.close(parent)
    assert done.returncode == 2 and b"terminal" in done.stderr


LIGHT = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print(sorted({"numpy", "torch", "gguf", "safetensors"} & set(sys.modules)), end.code, file=sys.stderr)
"""


def test_nothing_heavy_is_imported(whole: Path, tmp_path: Path) -> None:
    home = tmp_path / "shards"
    for number, (arguments, found) in enumerate(
        [(["split", whole, home], "[]"), (["split", "--style", "gguf-split", whole, tmp_path / "m"], "[]"),
         (["verify", home], "[]"), (["info", home], "[]"), (["join", home, tmp_path / "out"], "[]"),
         (["verify", "--deep", home], "['numpy']")]
    ):  # fmt: skip
        command = [sys.executable, "-c", LIGHT, SHARD[1], *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, timeout=WAIT_S, check=False)
        assert done.stderr.decode() == f"{found} 0\n", number
