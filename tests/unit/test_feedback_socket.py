"""The feedback socket: where it is made, how it is announced, and what is left of it (nothing)."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from feedback_pairs import ROW, WAIT_S, Heard, joined, path_of, saved

from voxtral_pipes.cli import feedback
from voxtral_pipes.cli.feedback import Listener, connect
from voxtral_pipes.errors import FeedbackError

pytestmark = pytest.mark.usefixtures("hung_up")


def test_the_socket_is_private_and_announced_in_the_form_of_the_protocol(
    listener: Listener, socket_home: Path
) -> None:
    fb = listener.announcement
    assert sorted(fb) == ["nonce", "path", "proto"]
    assert fb["proto"] == 1
    assert len(fb["nonce"]) == 16 and int(fb["nonce"], 16) >= 0
    path = Path(fb["path"])
    assert path.name == "fb" and path.parent.parent == socket_home and path.parent.name.startswith("vx-")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_ISSOCK(path.stat().st_mode) and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(os.fsencode(path)) <= 103
    other = Listener(Heard())
    other.listen()
    assert path_of(other) != path and other.announcement["nonce"] != fb["nonce"]
    other.close()
    assert path.exists()


def test_nothing_is_left_once_both_are_connected(listener: Listener, socket_home: Path) -> None:
    answers = joined(listener)
    assert list(socket_home.iterdir()) == []
    answers.send(0, 0, ROW)
    assert listener.take(0, 0) == ROW


def test_nothing_is_left_when_it_is_closed_unused_twice_or_before_it_listens(socket_home: Path) -> None:
    listener = Listener(Heard())
    listener.close()
    listener.listen()
    assert len(list(socket_home.iterdir())) == 1
    listener.close()
    listener.close()
    assert list(socket_home.iterdir()) == []


@pytest.mark.parametrize("unusable", ["long", "relative", "missing", "file", "bytes", "unset"])
def test_a_folder_that_is_no_place_for_a_socket_is_passed_over(
    unusable: str, socket_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {
        "long": tmp_path / ("x" * 100),
        "relative": Path("relative"),
        "missing": tmp_path / "missing",
        "file": tmp_path / "file",
        "bytes": Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")),
    }
    (tmp_path / "file").touch()
    for folder in ("long", "relative", "bytes"):
        (tmp_path / folders[folder]).mkdir()
    monkeypatch.chdir(tmp_path)
    if unusable == "unset":
        monkeypatch.delenv("XDG_RUNTIME_DIR")
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folders[unusable]))
    listener = Listener(Heard())
    listener.listen()
    assert path_of(listener).parent.parent == socket_home
    answers = joined(listener)
    answers.send(0, 0, ROW)
    assert listener.take(0, 0) == ROW
    listener.close()
    # With TMPDIR unusable as well, /tmp is left.
    monkeypatch.setenv("TMPDIR", str(folders.get(unusable, tmp_path / "no")))
    last = Listener(Heard())
    last.listen()
    assert path_of(last).parent.parent == Path("/tmp")
    last.close()
    assert not path_of(last).parent.exists()


def test_no_place_at_all_is_told_with_every_reason(
    socket_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    monkeypatch.setattr(feedback, "_MAX_PATH", 20)
    with pytest.raises(FeedbackError) as caught:
        Listener(Heard()).listen()
    told = str(caught.value)
    assert told.startswith("no feedback socket can be made (relative: not an absolute path; ")
    for folder in (socket_home, "/tmp"):
        assert f"{folder}: too long for the address of a socket" in told


CHILD = """
import signal, sys, time
from pathlib import Path
from voxtral_pipes.cli import edge
from voxtral_pipes.cli.feedback import Listener
edge._set_signals()
listener = Listener(edge.Log("vx-test"))
edge.before_death(listener.close)
{before}
listener.listen()
listener.start()
print(listener.announcement["path"], flush=True)
time.sleep({wait})
"""


def child(before: str = "", wait: int = WAIT_S) -> subprocess.Popen[str]:
    code = CHILD.format(before=before, wait=wait)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(number: signal.Signals, socket_home: Path) -> None:
    with child() as process:
        assert process.stdout
        path = Path(process.stdout.readline().strip())
        assert path.exists() and path.parent.parent == socket_home
        process.send_signal(number)
        assert process.wait(WAIT_S) == -number
    assert list(socket_home.iterdir()) == []


@pytest.mark.parametrize("moment", ["mkdir", "chmod"])
def test_a_signal_while_the_socket_is_made_leaves_nothing_behind(moment: str, socket_home: Path) -> None:
    before = f"""
act = Path.{moment}
def disturbed(*args, **options):
    act(*args, **options)
    signal.raise_signal(signal.SIGTERM)
Path.{moment} = disturbed
"""
    with child(before) as process:
        assert process.wait(WAIT_S) == -signal.SIGTERM
    assert list(socket_home.iterdir()) == []


def test_one_that_is_killed_is_cleaned_up_by_vx_flow(socket_home: Path) -> None:
    with child() as process:
        assert process.stdout
        path = Path(process.stdout.readline().strip())
        process.kill()
        process.wait(WAIT_S)
    assert path.exists()
    log = Heard()
    connect(saved(path), log)
    assert list(socket_home.iterdir()) == [] and "is gone" in log.lines[0]
