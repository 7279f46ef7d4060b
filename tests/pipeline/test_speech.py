"""The synthesis pipe as a user types it: teed, replayed, a thousand times, two at once, and every way it can end."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
import wave
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from preloaded import path_preloaded
from processes import environment, frames, shell, wait_until

from voxtral_pipes.cli import edge
from voxtral_pipes.cli.feedback import Listener
from voxtral_pipes.formats.frame import Frame, encode

END_S = 60.0
"""How long a pipe may take to end when one of its processes has died."""
NAMES = ["vx-tokenize", "vx-backbone", "vx-flow", "vx-codec"]
TEXT = "hi\nthere, my friend\nthe third line\n"
OTHER = "hi\nnothing like it\n"


@dataclass
class Place:
    """A user of the tiny model, with a folder of their own for sockets and one for files."""

    model: Path
    sockets: Path
    files: Path
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        home = str(self.sockets)
        return {"VX_TTS_MODEL": str(self.model), "TMPDIR": home, "XDG_RUNTIME_DIR": home, **self.more}

    def run(
        self, line: str, data: str | bytes | None = None, *, real: bool = False
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a line to its end, its commands preloaded or, where their start or a signal matters, real ones."""
        given = data.encode() if isinstance(data, str) else data
        path = {} if real else {"PATH": path_preloaded()}
        return shell(line, None, given, self.files, **path, **self.variables)

    def read(self, name: str) -> bytes:
        return (self.files / name).read_bytes()

    def begin(self, line: str) -> subprocess.Popen[bytes]:
        """Start a line of real commands in a session of its own; what it is told on stdin comes from the test."""
        return subprocess.Popen(
            ["bash", "-c", line], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=self.files, env=environment(None, **self.variables), start_new_session=True,
        )  # fmt: skip


@pytest.fixture(scope="module")
def homes() -> Iterator[list[Path]]:
    """Short folders, because the address of a socket is short; nothing may be left in them."""
    made: list[Path] = []
    yield made
    left = [str(path) for home in made for path in home.iterdir()]
    for home in made:
        shutil.rmtree(home)
    assert left == []


def new_place(model: Path, homes: list[Path], files: Path) -> Place:
    homes.append(Path(tempfile.mkdtemp(dir="/tmp")))
    return Place(model, homes[-1], files)


@pytest.fixture
def place(tiny_tts_model: Path, homes: list[Path], tmp_path: Path) -> Iterator[Place]:
    made = new_place(tiny_tts_model, homes, tmp_path)
    yield made
    assert list(made.sockets.iterdir()) == []


@pytest.fixture(scope="module")
def spoken(tiny_tts_model: Path, homes: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Say three lines, every stage teed and behind a `cat`; other tests compare with what is kept of it."""
    made = new_place(tiny_tts_model, homes, tmp_path_factory.mktemp("spoken"))
    line = (
        "vx-tokenize | tee ids.vx | cat | vx-backbone | tee hidden.vx | cat | vx-flow -n 3 --seed 7 "
        "| tee codes.vx | cat | vx-codec > out.wav"
    )
    done = made.run(line, TEXT)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    return made


def rows(data: bytes | Iterable[Frame], stream: int, name: str = "codes") -> list[bytes]:
    sent = frames(data) if isinstance(data, bytes) else data
    return [bytes(f.tensors[name].data) for f in sent if f.kind == "data" and f.stream == stream]


def body(data: bytes) -> list[bytes]:
    """Return the frames behind hello, as they are on the wire."""
    return [encode(frame) for frame in frames(data)[1:]]


def samples(path: Path) -> int:
    """Return how many samples a WAV holds; its sizes must be right."""
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (1, 24000, 2)
        assert path.stat().st_size == 44 + 2 * file.getnframes()
        return file.getnframes()


def test_the_line_of_the_manual_as_typed(place: Place) -> None:
    done = place.run(
        "echo hi | vx-tokenize | vx-backbone --voice casual_female | vx-flow -n 3 | vx-codec > out.wav",
        real=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert samples(place.files / "out.wav") >= 1920


def test_every_stage_says_as_many_frames_as_the_one_before(spoken: Place) -> None:
    ids, hidden, codes = (frames(spoken.read(f"{name}.vx")) for name in ("ids", "hidden", "codes"))
    assert codes[0].fields["chain"] == ["vx-tokenize", "vx-backbone", "vx-flow"]
    assert codes[0].meta["model"] == hidden[0].meta["model"] and codes[0].fields["tb"] == 24000
    assert sorted(hidden[0].fields["fb"]) == ["nonce", "path", "proto"] and "fb" not in codes[0].fields
    total = 0
    for stream in range(3):
        assert sum(len(f.ids or ()) for f in ids if f.stream == stream) > 0
        said = rows(codes, stream)
        assert len(rows(hidden, stream, "hidden")) == len(said) > 1
        assert said[-1] == bytes([1, 0] + [2, 0] * 36), "the tiny model ends an utterance by itself"
        total += len(said) - 1
        opened = next(f for f in codes if f.kind == "open" and f.stream == stream)
        assert opened.meta["seed"] == 7 and opened.meta["voice"] == "casual_female"
    assert samples(spoken.files / "out.wav") == 1920 * total


def test_two_pipes_at_once_say_what_each_says_alone(spoken: Place, place: Place) -> None:
    """Other text, other seed, same folder for their sockets; and pieces of text that come slowly change nothing."""
    end = "vx-backbone | vx-flow -n 3 --seed {seed} > {name}.vx"
    alone = place.run(f"vx-tokenize | {end.format(seed=8, name='alone')}", OTHER)
    assert (alone.returncode, alone.stderr) == (0, b"")
    slowly = "(printf 'h'; sleep 0.3; printf 'i\\nthere, my'; sleep 0.3; printf ' friend\\nthe third line')"
    both = place.run(
        f"({slowly} | vx-tokenize | {end.format(seed=7, name='one')}) & one=$!; "
        f"(printf '{OTHER}' | vx-tokenize | {end.format(seed=8, name='other')}); status=$?; wait $one && exit $status"
    )
    assert (both.returncode, both.stderr) == (0, b"")
    assert place.read("one.vx") == spoken.read("codes.vx")
    assert place.read("other.vx") == place.read("alone.vx")
    # The first line is the same in both: only the seeds differ.
    assert rows(place.read("one.vx"), 0)[0] != rows(place.read("other.vx"), 0)[0]


def test_saved_codes_replayed_give_the_same_hidden_states(spoken: Place) -> None:
    done = spoken.run("vx-backbone --codes codes.vx < ids.vx")
    assert (done.returncode, done.stderr) == (0, b"")
    assert body(done.stdout) == body(spoken.read("hidden.vx"))
    assert "fb" not in frames(done.stdout)[0].fields


def test_saved_hidden_states_replayed_give_the_same_codes_and_sound(spoken: Place) -> None:
    done = spoken.run("vx-flow -n 3 --seed 7 < hidden.vx | tee again.vx | vx-codec > again.wav")
    assert done.returncode == 0
    assert done.stderr.startswith(b"vx-flow: warning: the feedback socket ") and done.stderr.count(b"\n") == 1
    assert done.stderr.endswith(b"is gone: taking the input as a saved stream\n")
    assert spoken.read("again.vx") == spoken.read("codes.vx")
    assert spoken.read("again.wav") == spoken.read("out.wav")


def test_pv_between_all_stages(spoken: Place, place: Place) -> None:
    if shutil.which("pv") is None:
        pytest.skip("pv is not installed; tee and cat are tested between all stages")
    line = "vx-tokenize | pv -q | vx-backbone | pv -q | vx-flow -n 3 --seed 7 | pv -q | vx-codec > out.wav"
    done = place.run(line, TEXT)
    assert (done.returncode, done.stderr) == (0, b"")
    assert place.read("out.wav") == spoken.read("out.wav")


def test_a_thousand_utterances_in_one_pipe(place: Place) -> None:
    text = "".join(f"line {n}\n" for n in range(1000))
    line = (
        "vx-tokenize | vx-backbone -q --max-frames 2 | tee hidden.vx | vx-flow -n 1 --seed 1 | tee codes.vx "
        "| vx-codec > out.wav"
    )
    done = place.run(line, text)
    assert (done.returncode, done.stderr) == (0, b"")
    hidden, codes = frames(place.read("hidden.vx")), frames(place.read("codes.vx"))
    for sent in (hidden, codes):
        assert [f.stream for f in sent if f.kind == "open"] == list(range(1000))
        assert [f.stream for f in sent if f.kind == "end"] == [*range(1000), None]
    counts = [f.seq for f in hidden if f.kind == "end"][:-1]
    assert set(counts) <= {1, 2} and counts == [f.seq for f in codes if f.kind == "end"][:-1]
    total = sum(f.kind == "data" and f.tensors["codes"].numpy()[0, 0] != 1 for f in codes)
    assert samples(place.files / "out.wav") == 1920 * total > 1920 * 1900


def test_an_utterance_that_ends_at_its_first_frame_is_an_empty_wav_and_a_warning(
    homes: list[Path], tmp_path: Path
) -> None:
    from voxtral_pipes.models.random_tts import make_tts_model, tiny_tts_config

    # The row that ends is so large that it wins wherever it is positive, which it is at frame 0 of this text.
    model = make_tts_model(tmp_path / "model", tiny_tts_config(), end_gain=30.0)
    place = new_place(model, homes, tmp_path)
    done = place.run("echo hi | vx-tokenize | vx-backbone | tee hidden.vx | vx-flow | vx-codec > out.wav")
    assert done.returncode == 0
    said = "vx-backbone: warning: stream 0: the model ended at frame 0, so nothing is said; try vx-flow --no-empty"
    assert done.stderr.decode() == f"{said}\n"
    assert samples(tmp_path / "out.wav") == 0
    assert len(rows(place.read("hidden.vx"), 0, "hidden")) == 1
    done = place.run("echo hi | vx-tokenize | vx-backbone | vx-flow --no-empty | vx-codec > out.wav")
    assert (done.returncode, done.stderr) == (0, b"")
    assert samples(tmp_path / "out.wav") >= 1920


def numbered(source: str) -> str:
    """Write the pipe behind `source` so that every process leaves its id, and all statuses are kept."""
    parts = [
        f"(echo $BASHPID > {name}.pid; exec {name}{' --seed 1' * (name == 'vx-flow')})" for name in NAMES
    ]
    return f"{source}{' | '.join(parts)} > out.wav; echo ${{PIPESTATUS[*]}} > status"


def wait_for_frames(place: Place, count: int) -> None:
    """Wait until so many frames can be heard."""
    path = place.files / "out.wav"
    wait_until(lambda: path.exists() and path.stat().st_size >= 44 + 3840 * count)


def finished(process: subprocess.Popen[bytes], place: Place) -> tuple[list[int], list[str]]:
    """Wait for the end, which must be soon and leave nobody -> all statuses, the lines of our commands."""
    _, errors = process.communicate(timeout=END_S)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert b"Traceback" not in errors, errors.decode()
    lines = [line for line in errors.decode().splitlines() if line.startswith("vx-")]
    return [int(status) for status in place.read("status").split()], lines


CRUEL, POLITE = signal.SIGKILL, signal.SIGTERM


@pytest.mark.parametrize(
    ("killed", "number", "statuses", "told"),
    [
        ("vx-backbone", CRUEL, [141, 141, 137, 1, 1], "vx-flow"),
        ("vx-flow", CRUEL, [141, 141, 141, 137, 1], "vx-codec"),
        ("vx-codec", CRUEL, [141, 141, 141, 141, 137], None),
        ("vx-backbone", POLITE, [141, 141, 143, 1, 1], "vx-flow"),
        ("vx-codec", POLITE, [141, 141, 141, 141, 143], None),
    ],
)
def test_whichever_process_is_killed_the_whole_pipe_ends_with_one_line(
    killed: str, number: signal.Signals, statuses: list[int], told: str | None, place: Place
) -> None:
    """At any frame, the source having more to say than anybody will wait for."""
    frame = random.Random(f"{killed} {number}").randrange(1, 80)
    with place.begin(numbered("yes 'there, my friend' | ")) as process:
        wait_for_frames(place, frame)
        os.kill(int(place.read(f"{killed}.pid")), number)
        ended, lines = finished(process, place)
    assert ended == statuses
    assert [line.split(":")[0] for line in lines] == ([told] if told else []), lines
    if number != CRUEL or killed != "vx-codec":
        assert samples(place.files / "out.wav") >= 1920 * frame


def test_a_tokenizer_that_is_killed_fails_the_pipe_when_all_it_sent_is_said(place: Place) -> None:
    frame = random.Random("vx-tokenize").randrange(1, 20)
    with place.begin(numbered("")) as process:
        assert process.stdin
        process.stdin.write(TEXT.encode())
        process.stdin.flush()
        wait_for_frames(place, frame)
        os.kill(int(place.read("vx-tokenize.pid")), signal.SIGKILL)
        ended, lines = finished(process, place)
    assert ended == [137, 1, 1, 1]
    assert len(lines) == 1 and lines[0].startswith("vx-backbone: the input ended without an 'end' frame")


@pytest.mark.parametrize(
    ("source", "statuses"),
    [("yes there | ", [130, 0, 0, 0, 0]), ("exec < book; ", [130, 130, 130, 130])],
)
def test_an_interrupt_ends_all_after_the_current_frame_and_the_wav_is_whole(
    source: str, statuses: list[int], place: Place
) -> None:
    """Ctrl-C reaches the whole pipe: the source dies of it, the filters finish what they are at.

    A file is no source that could die: vx-tokenize itself does, and those behind it take its end for what it is.
    """
    (place.files / "book").write_text("there, my friend\n" * 20000)
    with place.begin(f"trap : INT; {numbered(source)}") as process:
        wait_for_frames(place, 5)
        os.killpg(process.pid, signal.SIGINT)
        ended, lines = finished(process, place)
    assert (ended, lines) == (statuses, [])
    assert samples(place.files / "out.wav") >= 1920 * 5


def test_a_reader_that_leaves_ends_everything_quietly(place: Place) -> None:
    done = place.run(
        "yes hi | vx-tokenize | vx-backbone | vx-flow | vx-codec | head -c 20000 > /dev/null; echo ${PIPESTATUS[*]}",
        real=True,
    )
    assert done.stdout.split() == [b"141"] * 5 + [b"0"]
    assert done.stderr == b""


def test_nobody_connects(place: Place) -> None:
    """This one takes the ten seconds that vx-backbone waits."""
    done = place.run("echo hi | vx-tokenize | vx-backbone > hidden.vx")
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "vx-backbone: vx-backbone needs vx-flow next in the pipe, and none connected within 10 s; with saved codes "
        "instead, use --codes FILE\n"
    )
    sent = frames(place.read("hidden.vx"))
    assert [frame.kind for frame in sent] == ["hello", "error"]
    assert sent[1].fields["code"] == "feedback" and sent[1].fields["fatal"] is True


@pytest.mark.parametrize(
    ("behind", "statuses", "told"),
    [
        ("vx-flow -m /no/model", "141 1", "vx-flow: there is no model at /no/model"),
        ("vx-flow --noise /no/noise", "141 1", "vx-flow: --noise /no/noise"),
        ("head -c 1", "141 0", ""),
    ],
)
def test_what_fails_before_the_first_frame_ends_vx_backbone_at_once(
    behind: str, statuses: str, told: str, place: Place
) -> None:
    """Not with its own line ten seconds later: a connection cannot come any more."""
    done = place.run(f"echo hi | vx-tokenize | vx-backbone | {behind} > rest; echo ${{PIPESTATUS[*]:2}}")
    assert done.stdout.decode().strip() == statuses
    assert done.stderr.count(b"\n") == (1 if told else 0) and done.stderr.decode().startswith(told)
    if told:
        assert [frame.kind for frame in frames(place.read("rest"))] == ["hello", "error"]


def test_a_truncated_stream_of_hidden_states_gives_what_it_can_and_fails(spoken: Place) -> None:
    size = len(spoken.read("hidden.vx")) * 2 // 3
    done = spoken.run(f"head -c {size} hidden.vx | vx-flow -q -n 3 --seed 7")
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1 and b"died" in done.stderr
    part, whole = frames(done.stdout), frames(spoken.read("codes.vx"))
    assert part[-1].fields["code"] == "truncated"
    assert len(part) > 10 and part[:-1] == whole[: len(part) - 1]


@pytest.fixture
def without_torch(place: Place, tmp_path: Path) -> Place:
    """A place where whoever imports torch fails at once."""
    (tmp_path / "poison").mkdir()
    (tmp_path / "poison" / "torch.py").write_text("raise ImportError('torch was imported')\n")
    paths = [str(tmp_path / "poison"), *filter(None, [os.environ.get("PYTHONPATH")])]
    place.more = {"PYTHONPATH": ":".join(paths)}
    return place


def test_vx_backbone_says_hello_before_it_imports_torch(without_torch: Place) -> None:
    done = without_torch.run("echo hi | vx-tokenize | vx-backbone", real=True)
    assert done.returncode == 1 and b"torch was imported" in done.stderr and done.stderr.count(b"\n") == 1
    sent = frames(done.stdout)
    assert [frame.kind for frame in sent] == ["hello", "error"]
    assert sorted(sent[0].fields["fb"]) == ["nonce", "path", "proto"]


@pytest.mark.parametrize(("model", "said"), [("", b"torch was imported"), ("-m /no/model", b"/no/model")])
def test_vx_flow_connects_before_it_looks_for_a_model_or_imports_torch(
    model: str, said: bytes, without_torch: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(without_torch.sockets))
    listener = Listener(edge.Log("test", 0))
    listener.listen()
    listener.start()
    out = {"hidden": {"d": "f32", "h": [-1, 128]}}
    fields = {"v": [1, 0], "by": "test", "out": out, "tb": 24000, "fb": dict(listener.announcement)}
    sent = encode(Frame("hello", fields=fields)) + encode(Frame("end"))
    done = without_torch.run(f"vx-flow {model}", sent, real=True)
    assert done.returncode == 1 and said in done.stderr and done.stderr.count(b"\n") == 1
    listener.ready()
    with pytest.raises(BrokenPipeError):
        listener.take(0, 0)
    listener.close()
