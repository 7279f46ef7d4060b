"""vx-backbone as a process.  One that needs torch takes two seconds to start, so it is asked many things at once."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from code_streams import Codes, end_row, one_by_one, pipe, sound, wire
from processes import ROOT, WAIT_S, command, environment, frames
from tts_checkpoints import change

from voxtral_pipes.formats.frame import Frame
from voxtral_pipes.models.random_model import cut_raw, tiny_tts_config
from voxtral_pipes.models.random_tts import SHORT_VOICES
from voxtral_pipes.stages.base import Hello, Outgoing, Output

WIDTH = tiny_tts_config().backbone.dim
FRAME_TICKS = 1920


@pytest.fixture(scope="module")
def model(tiny_tts_model: Path) -> Path:
    return tiny_tts_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "voxtral-pipes" / "models"


def run(*arguments: str | Path, data: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
    return command("vx-backbone", *arguments, data=data, **variables)


def hello(model: dict[str, str] | None = None, needs: str = "i") -> Frame:
    form = {"d": "u32" if needs == "i" else "f32", "h": [-1]}
    return Outgoing("vx-tokenize").hello(Hello({needs: form}, model), 24000)


def text(stream: int, ids: Iterable[int], *, cut: int = 3) -> list[Frame]:
    """Make a stream of ids, `cut` a frame."""
    outgoing, ids = Outgoing("vx-tokenize"), list(ids)
    pieces = [ids[i : i + cut] for i in range(0, len(ids), cut)]
    opened = outgoing.open(stream, {"source": "test", "line": stream})
    data = [outgoing.data(stream, Output(0, 0, ids=piece)) for piece in pieces]
    return [opened, *data, outgoing.end(stream)]


def asked(*streams: list[Frame]) -> bytes:
    return wire([hello(), *(frame for stream in streams for frame in stream), Frame("end")])


def saved(path: Path, streams: dict[int, Codes]) -> Path:
    path.write_bytes(wire(pipe({stream: one_by_one(codes) for stream, codes in streams.items()})))
    return path


TEXT = [1200, 1300, 1400, 1500, 1222, 1599]
OPENED = {"source": "test", "voice": "fr_male", "language": "fr"}


@pytest.fixture(scope="module")
def everything(model: Path, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[bytes]:
    """One process and nine streams: good ones and every kind of bad one, on saved codes."""
    ends, wrong = np.concatenate([sound(5), end_row()]), sound(4)
    wrong[2, 7] = 23
    codes = {
        1: ends, 2: sound(3), 3: sound(3), 4: sound(3), 5: wrong, 7: np.concatenate([end_row(), sound(2)]), 8: ends,
        9: sound(40),
    }  # fmt: skip
    no_ids = Frame("data", stream=4, seq=0, tensors=one_by_one(sound(1))[0].tensors)
    marked = text(8, TEXT, cut=1)
    marked.insert(3, Frame("mark", stream=8, tick=7, meta={"flush": True}))
    streams = [
        text(1, TEXT), text(2, [1200, 25, 1300]), text(3, []),
        [Frame("open", stream=4), no_ids, Frame("end", stream=4)],
        text(5, TEXT), text(6, TEXT), text(7, TEXT), marked, text(9, TEXT),
    ]  # fmt: skip
    path = saved(tmp_path_factory.mktemp("codes") / "codes.vx", codes)
    return run(
        "-m", model, "--voice", "Fr_Male", "--codes", path, "--max-frames", "20", data=asked(*streams)
    )  # fmt: skip


def of(done: subprocess.CompletedProcess[bytes], stream: int) -> list[Frame]:
    return [frame for frame in frames(done.stdout) if frame.stream == stream]


def hidden(done: subprocess.CompletedProcess[bytes], stream: int) -> np.ndarray:
    return np.concatenate([f.tensors["hidden"].float32() for f in of(done, stream) if f.kind == "data"])


def test_bad_streams_close_alone_with_one_line_each(everything: subprocess.CompletedProcess[bytes]) -> None:
    told = everything.stderr.decode().splitlines()
    assert everything.returncode == 1
    for stream, said in (
        (2, "the token id 25 is no text: text ids are 1000 to 1599 here"),
        (3, "the stream brought no token ids: there is no text to speak"),
        (4, "data frame 0 holds no token ids ('i')"),
        (5, "the acoustic code 23 is not one of 2 to 22"),
        (6, "hold no stream 6"),
    ):
        [line] = [line for line in told if f"stream {stream}:" in line]
        assert line.startswith(f"vx-backbone: stream {stream}: ") and said in line
        last = of(everything, stream)[-1]
        assert (last.kind, last.fields["by"], last.fields["fatal"]) == ("error", "vx-backbone", False)
    for stream, said in ((7, "the model ended at frame 0"), (9, "stopped at 20 frames (1.6 s)")):
        [line] = [line for line in told if f"stream {stream}:" in line]
        assert line.startswith("vx-backbone: warning: ") and said in line
    assert len(told) == 7 and frames(everything.stdout)[-1] == Frame("end")


def test_good_streams_give_a_state_for_each_frame(everything: subprocess.CompletedProcess[bytes]) -> None:
    for stream, n in ((1, 6), (7, 1), (8, 6), (9, 20)):
        opened, *data, end = (frame for frame in of(everything, stream) if frame.kind != "mark")
        assert (opened.kind, opened.meta) == ("open", {**OPENED, "line": stream})
        assert [(f.kind, f.seq, f.tick, f.ticks) for f in data] == [
            ("data", i, FRAME_TICKS * i, FRAME_TICKS) for i in range(n)
        ]
        assert {(f.tensors["hidden"].dtype, f.tensors["hidden"].shape) for f in data} == {("f32", (1, WIDTH))}
        assert (end.kind, end.seq) == ("end", n)
    kinds = [frame.kind for frame in of(everything, 8)]
    assert kinds == ["open", "mark", *["data"] * 6, "end"]


def test_streams_that_are_alike_sound_alike(everything: subprocess.CompletedProcess[bytes]) -> None:
    """However the text was cut, and whatever was spoken in between."""
    np.testing.assert_array_equal(hidden(everything, 1), hidden(everything, 8))
    assert (hidden(everything, 9)[:1] == hidden(everything, 1)[:1]).all()  # the same prompt
    assert not (hidden(everything, 9)[1:6] == hidden(everything, 1)[1:6]).any()


def test_hello_says_model_width_and_dtype(
    everything: subprocess.CompletedProcess[bytes], model: Path
) -> None:
    from voxtral_pipes.formats.locate import files_at
    from voxtral_pipes.models.checkpoint import TtsCheckpoint

    first = frames(everything.stdout)[0]
    assert first.fields["out"] == {"hidden": {"d": "f32", "h": [-1, WIDTH]}}
    assert first.meta["model"] == dict(TtsCheckpoint(files_at(model)).identity)
    assert first.fields["chain"] == ["vx-tokenize", "vx-backbone"] and first.fields["tb"] == 24000
    assert "fb" not in first.fields  # saved codes need no way back


# --- what is refused before torch is imported


def failed(done: subprocess.CompletedProcess[bytes], said: str, code: str) -> None:
    """One line, and an error that travels behind hello."""
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1 and done.stderr.startswith(b"vx-backbone: ")
    assert said in done.stderr.decode()
    first, error = frames(done.stdout)
    assert (first.kind, error.kind, error.fields["code"], error.fields["fatal"]) == (
        "hello",
        "error",
        code,
        True,
    )
    assert "hidden" in first.fields["out"]


@pytest.mark.parametrize(
    "options",
    [
        ["--max-frames", "0"], ["--max-frames", "-1"], ["--max-frames", "many"], ["--dtype", "f16"], ["text.txt"],
        ["--voice"], ["--seed", "1"], ["--max", "3"],
    ],
)  # fmt: skip
def test_wrong_options_are_a_usage_error(model: Path, options: list[str]) -> None:
    done = run("-m", model, *options, data=asked())
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("eve", "--voice eve: there is no such voice; there are casual_female, casual_male"),
        ("", "--voice : there is no such voice"),
        ("me.wav", "--voice me.wav: new voices cannot be made from recordings"),
        ("./casual_male", "new voices cannot be made from recordings"),
    ],
)
def test_a_voice_that_is_none(model: Path, name: str, said: str) -> None:
    done = run("-m", model, "--voice", name, data=asked())
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and said in done.stderr.decode()
    assert [frame.kind for frame in frames(done.stdout)] == ["hello", "error"]


def test_no_model_is_one_line_and_travels(tmp_path: Path, without_nano: str) -> None:
    failed(
        run(data=asked(), PATH=without_nano), "no model: name one with -m PATH or $VX_TTS_MODEL", "no-model"
    )
    failed(run("-m", "/nowhere", data=asked()), "there is no model at /nowhere", "no-model")
    failed(run(data=asked(), VX_TTS_MODEL="/nowhere"), "there is no model at /nowhere", "no-model")
    failed(run("-m", tmp_path, data=asked()), "holds no model", "bad-model")


def test_a_model_of_the_other_family_is_one_line_and_travels(tiny_model: Path) -> None:
    done = run("-m", tiny_model, data=asked())
    failed(
        done, "is a speech recognition model (voxtral-asr); this command needs a synthesis model", "bad-model"
    )


def damaged(model: Path, folder: Path, damage: str) -> Path:
    shutil.copytree(model, folder)
    weights, voice = folder / "consolidated.safetensors", folder / "voice_embedding" / "casual_female.pt"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "shards":
        cut_raw(folder, 500_000)
        (folder / "shard-ac").unlink()
    elif damage == "settings":
        change(folder / "params.json", {"hidden_dim": 258})
    elif damage == "tensor":
        content, name = weights.read_bytes(), b"layers.1.attention.wo.weight"
        weights.write_bytes(content.replace(b'"' + name, b'"' + name[:-1] + b"x"))
    elif damage == "voice":
        voice.unlink()
    elif damage == "table":
        change(folder / "tekken.json", {"audio.voice_num_audio_tokens": {}})
    elif damage == "tekken":
        (folder / "tekken.json").write_bytes(b"{")
    return folder


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("truncated", "consolidated.safetensors has"),
        ("shards", "shard-aa..shard-a"),
        ("settings", "the hyperparameters ask for [258, 128]"),
        ("tensor", "tensor layers.1.attention.wo.weight is missing"),
        ("voice", "the voice casual_female has no embedding"),
        ("table", "it is not the tekken.json of a synthesis model"),
        ("tekken", "not valid JSON"),
    ],
)
def test_a_damaged_model_is_one_line_and_travels(model: Path, tmp_path: Path, damage: str, said: str) -> None:
    failed(run("-m", damaged(model, tmp_path / "model", damage), data=asked()), said, "bad-model")


def test_a_voice_of_another_release_is_one_line_and_travels(model: Path, tmp_path: Path) -> None:
    """It is read with the weights, when hello is out."""
    folder = damaged(model, tmp_path / "model", "nothing")
    torch.save(torch.zeros(2, WIDTH).bfloat16(), folder / "voice_embedding" / "casual_female.pt")
    codes = saved(tmp_path / "codes.vx", {0: sound(2)})
    done = run("-m", folder, "--codes", codes, data=asked(text(0, TEXT)))
    failed(
        done,
        f"has 2 rows, but tekken.json gives the voice casual_female {SHORT_VOICES['casual_female']}",
        "bad-model",
    )


def test_input_that_is_not_for_it(model: Path, tmp_path: Path) -> None:
    for needs in ("hidden", "mel", "codes"):
        done = run("-m", model, data=wire([hello(needs=needs), Frame("end")]))
        failed(done, f"reads token ids ('i'), and vx-tokenize/0.1.0 sends {needs}", "bad-input")
    other = hello({"family": "voxtral-tts", "fp": "0123456789abcdef"})
    failed(
        run("-m", model, data=wire([other, Frame("end")])),
        "made with another model (fp 0123456789abcdef",
        "bad-input",
    )
    other = hello({"family": "voxtral-asr"})
    failed(
        run("-m", model, data=wire([other, Frame("end")])), "another model (family voxtral-asr", "bad-input"
    )
    failed(run("-m", model), "the input is empty", "truncated")
    failed(run("-m", model, data=b"hello\n"), "", "bad-input")


def test_saved_codes_that_are_none(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "codes.vx"
    failed(run("-m", model, "--codes", path, data=asked()), f"--codes {path}: No such file", "bad-input")
    failed(run("-m", model, "--codes", tmp_path, data=asked()), f"--codes {tmp_path}: Is a dir", "bad-input")
    whole = saved(path, {0: sound(3)}).read_bytes()
    for content, code in (
        (whole[:-5], "truncated"),
        (b"", "truncated"),
        (b"RIFF" * 9, "bad-input"),
        (asked(), "bad-input"),
    ):
        path.write_bytes(content)
        failed(run("-m", model, "--codes", path, data=asked()), f"--codes {path}: ", code)
    path.write_bytes(wire(pipe({0: one_by_one(sound(3))}, model={"family": "voxtral-tts", "fp": "0" * 16})))
    failed(run("-m", model, "--codes", path, data=asked()), "another model", "bad-input")


def test_a_full_disk_is_one_line(model: Path) -> None:
    for options, data in ((["--list-voices"], b""), ([], asked())):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                ["vx-backbone", "-m", str(model), *options], input=data, stdout=full, stderr=subprocess.PIPE,
                timeout=WAIT_S, env=environment(), check=False,
            )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr == b"vx-backbone: cannot write to stdout: No space left on device\n"


def test_frames_do_not_go_to_a_terminal_and_voices_do(model: Path) -> None:
    for options, status in (([], 2), (["--list-voices"], 0)):
        parent, child = pty.openpty()
        done = subprocess.run(
            ["vx-backbone", "-m", str(model), *options], input=asked(), stdout=child, stderr=subprocess.PIPE,
            timeout=WAIT_S, env=environment(), check=False,
        )  # fmt: skip
        os.close(child)
        assert done.returncode == status and (b"stdout is a terminal" in done.stderr) == bool(status)
        if status == 0:
            assert os.read(parent, 4096).startswith(b"casual_female    en  3\r\n")
        os.close(parent)


# --- --list-voices


def listed(done: subprocess.CompletedProcess[bytes]) -> dict[str, tuple[str, str]]:
    assert done.returncode == 0
    rows = [line.split() for line in done.stdout.decode().splitlines()]
    return {name: (language, n) for name, language, n in rows}


def test_the_voices_of_a_model(model: Path, tmp_path: Path) -> None:
    done = run("--list-voices", "-m", model)
    assert done.stderr == b"" and {name: int(n) for name, (_, n) in listed(done).items()} == SHORT_VOICES
    assert {language for language, _ in listed(done).values()} == {
        "en",
        "fr",
        "es",
        "de",
        "it",
        "pt",
        "nl",
        "ar",
        "hi",
    }
    assert run("--list-voices", VX_TTS_MODEL=str(model)).stdout == done.stdout
    folder = tmp_path / "voices"
    folder.mkdir()
    for name in ("Zoe.pt", "casual_male.safetensors", "._zoe.pt", "notes.txt"):
        (folder / name).touch()
    more = listed(run("--list-voices", "-m", model, "--voices", folder))
    assert more.pop("zoe") == ("-", "-") and more == listed(
        done
    )  # the table lists what it knows, there or not
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(model / "consolidated.safetensors", bare)
    shutil.copy(model / "params.json", bare)
    assert listed(run("--list-voices", "-m", bare)) == {}
    assert listed(run("--list-voices", "-m", bare, "--voices", folder)) == {
        "casual_male": ("en", "-"),
        "zoe": ("-", "-"),
    }
    done = run("--list-voices", "-m", bare, "--tokenizer", model / "tekken.json")
    assert len(listed(done)) == 20


def test_the_voices_of_the_embedded_model(model: Path, with_nano: str, without_nano: str) -> None:
    done = run("--list-voices", PATH=with_nano)
    assert done.stdout == run("--list-voices", "-m", model).stdout
    assert (
        done.stderr.startswith(b"vx-backbone: warning: no model is named") and done.stderr.count(b"\n") == 1
    )
    quiet = run("--list-voices", "-q", PATH=with_nano)
    assert (quiet.stdout, quiet.stderr) == (done.stdout, b"")
    done = run("--list-voices", PATH=without_nano)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)


def test_voices_of_a_model_that_is_none(model: Path, tiny_model: Path, tmp_path: Path) -> None:
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"junk\n")
    for options, variables, said in (
        (["-m", "/nowhere"], {}, "there is no model at /nowhere"),
        ([], {"VX_TTS_MODEL": "/nowhere"}, "there is no model at /nowhere"),
        (["-m", tiny_model], {}, "is a speech recognition model"),
        (["-m", junk], {}, "not a GGUF file"),
        (["-m", model, "--voices", "/nowhere"], {}, "/nowhere cannot be read"),
    ):
        done = run("--list-voices", *options, **variables)  # type: ignore[arg-type]
        assert (done.returncode, done.stdout) == (1, b"") and said in done.stderr.decode()
        assert done.stderr.splitlines()[-1].startswith(b"vx-backbone: ")


def test_the_one_model_of_the_cache_is_found(model: Path, tiny_model: Path, cache: Path) -> None:
    """Beside one of the other family."""
    cache.mkdir(parents=True)
    (cache / "speak").symlink_to(model)
    (cache / "listen").symlink_to(tiny_model)
    for options in ([], ["-m", "speak"]):
        done = run("--list-voices", *options)
        assert done.stderr == b"" and len(listed(done)) == 20
        # As far as the input's hello, which is wrong.
        failed(run(*options, data=wire([hello(needs="mel"), Frame("end")])), "sends mel", "bad-input")


LIGHT = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print(sorted({"torch", "gguf", "tiktoken"} & set(sys.modules)), end.code, file=sys.stderr)
"""


@pytest.mark.parametrize("options", [["--list-voices"], ["--voice", "eve"]])
def test_torch_is_not_imported_for_what_needs_none(model: Path, options: list[str]) -> None:
    command = [sys.executable, "-c", LIGHT, str(ROOT / "bin" / "vx-backbone"), "-m", str(model), *options]
    done = subprocess.run(command, input=asked(), capture_output=True, timeout=WAIT_S, check=False)
    assert done.stderr.splitlines()[-1].startswith(b"[] ")
