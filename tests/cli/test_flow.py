"""vx-flow as a process.  One that needs torch takes two seconds to start, so it is asked many things at once."""

from __future__ import annotations

import os
import pty
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from code_streams import wire
from processes import ROOT, WAIT_S, command, environment, frames
from safetensors.torch import load_file
from tts_checkpoints import change

from voxtral_pipes.formats.frame import Frame, Tensor
from voxtral_pipes.formats.locate import files_at
from voxtral_pipes.models.checkpoint import TtsCheckpoint
from voxtral_pipes.models.flow import Flow
from voxtral_pipes.models.noise import frame_noise, read_noise
from voxtral_pipes.models.random_model import cut_raw, tiny_tts_config
from voxtral_pipes.stages.base import Hello, Outgoing, Output

CONFIG = tiny_tts_config().flow
WIDTH, ROWS = CONFIG.input_dim, 8
HEAD = "acoustic_transformer.semantic_codebook_output.weight"
SEED = 2**64 - 1


@pytest.fixture(scope="module")
def model(tiny_tts_model: Path) -> Path:
    return tiny_tts_model


@pytest.fixture(scope="module")
def weights(model: Path) -> dict[str, torch.Tensor]:
    return {name: t.float() for name, t in load_file(model / "consolidated.safetensors").items()}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "voxtral-pipes" / "models"


def run(*arguments: str | Path, data: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
    return command("vx-flow", *arguments, data=data, **variables)


def hello(model: dict[str, str] | None = None, needs: str = "hidden") -> Frame:
    return Outgoing("vx-backbone").hello(Hello({needs: {"d": "f32", "h": [-1, WIDTH]}}, model), 24000)


def rows(*, end_at: int | None = None, weights: dict[str, torch.Tensor] | None = None) -> np.ndarray:
    """Draw hidden states that want no END_AUDIO, but for row `end_at`."""
    drawn = np.random.default_rng(3).standard_normal((ROWS, WIDTH)).astype(np.float32)
    if weights is not None:
        wanted = weights[HEAD][1].numpy()
        drawn -= np.outer(drawn @ wanted, wanted) / (wanted @ wanted)
        if end_at is not None:
            drawn[end_at] = 0.1 * drawn[end_at] + 8 * wanted
    return drawn


def stream(number: int, states: np.ndarray, cuts: Iterable[int] = (), dtype: str = "f32") -> list[Frame]:
    outgoing = Outgoing("vx-backbone")
    frames = [outgoing.open(number, {"voice": "ann"})]
    for at, piece in enumerate(np.split(states, list(cuts))):
        data = {"hidden": Tensor.of(piece, dtype)}
        frames.append(outgoing.data(number, Output(1920 * at, 1920 * len(piece), data)))
    return [*frames, outgoing.end(number)]


def asked(*streams: list[Frame]) -> bytes:
    return wire([hello(), *(frame for frames in streams for frame in frames), Frame("end")])


def of(done: subprocess.CompletedProcess[bytes], number: int) -> list[Frame]:
    return [frame for frame in frames(done.stdout) if frame.stream == number]


def codes(done: subprocess.CompletedProcess[bytes], number: int) -> list[list[int]]:
    return [f.tensors["codes"].numpy()[0].tolist() for f in of(done, number) if f.kind == "data"]


@pytest.fixture(scope="module")
def everything(model: Path, weights: dict[str, torch.Tensor]) -> subprocess.CompletedProcess[bytes]:
    """One process and ten streams: good ones and every kind of bad one."""
    good, nan, infinite = (rows(weights=weights) for _ in range(3))
    nan[5, 3], infinite[0, 0] = np.nan, -np.inf
    marked = stream(9, good, range(1, ROWS))
    marked.insert(4, Frame("mark", stream=9, tick=7, meta={"flush": True}))
    no_tensor = [Frame("open", stream=4), Frame("data", stream=4, seq=0, ids=[1]), Frame("end", stream=4)]
    streams = [
        stream(0, good, (1, 3)), stream(1, nan, (2, 4)), stream(2, good[:, :-1]), stream(3, infinite), no_tensor,
        stream(5, rows(end_at=3, weights=weights)), stream(6, good[0]), stream(7, good.astype(np.float16), dtype="f16"),
        stream(8, rows(end_at=0, weights=weights)), marked, [Frame("open", stream=10), Frame("end", stream=10)],
        stream(0, good, (4, 4, 7)),
    ]  # fmt: skip
    return run("-m", model, "--seed", str(SEED), "-n", "2", "--cfg", "1.5", data=asked(*streams))


def test_bad_streams_close_alone_with_one_line_each(everything: subprocess.CompletedProcess[bytes]) -> None:
    told = everything.stderr.decode().splitlines()
    assert everything.returncode == 1 and len(told) == 6
    for line, (number, said, n) in zip(
        told,
        (
            (1, "'hidden' at tick 3840 holds NaN or infinity", 4),
            (2, "'hidden' has the shape [8, 127], not [n, 128]", 0),
            (3, "'hidden' at tick 0 holds NaN or infinity", 0),
            (4, "holds no tensor 'hidden'", 0),
            (6, "'hidden' has the shape [128], not [n, 128]", 0),
            (7, "'hidden' is f16, not f32 or bf16", 0),
        ),
        strict=True,
    ):
        assert line.startswith(f"vx-flow: stream {number}: ") and said in line
        *before, last = of(everything, number)
        assert (last.kind, last.fields["by"], last.fields["fatal"]) == ("error", "vx-flow", False)
        assert [frame.kind for frame in before] == ["open", *["data"] * n]
    assert frames(everything.stdout)[-1] == Frame("end")


def test_good_streams_give_a_row_for_each_state(
    everything: subprocess.CompletedProcess[bytes], model: Path
) -> None:
    first = frames(everything.stdout)[0]
    assert first.fields["out"] == {"codes": {"d": "u16", "h": [-1, 37]}}
    assert first.meta["model"] == dict(TtsCheckpoint(files_at(model)).identity)
    assert first.fields["chain"] == ["vx-backbone", "vx-flow"] and first.fields["tb"] == 24000
    sent = [frame for frame in of(everything, 9) if frame.kind != "mark"]
    assert sent[0].meta == {"voice": "ann", "steps": 2, "cfg": 1.5, "seed": SEED}
    assert [(f.kind, f.seq, f.tick, f.ticks) for f in sent[1:-1]] == [
        ("data", i, 1920 * i, 1920) for i in range(ROWS)
    ]
    assert {(f.tensors["codes"].dtype, f.tensors["codes"].shape) for f in sent[1:-1]} == {("u16", (1, 37))}
    assert (sent[-1].kind, sent[-1].seq) == ("end", ROWS)
    assert [f.kind for f in of(everything, 9)][4] == "mark"
    assert [frame.kind for frame in of(everything, 10)] == ["open", "end"]


def test_codes_depend_on_seed_stream_and_frame_alone(
    everything: subprocess.CompletedProcess[bytes], weights: dict[str, torch.Tensor]
) -> None:
    """Cut in other ways under the same number they are the same, under another number they are not."""
    twice = codes(everything, 0)
    assert len(twice) == 2 * ROWS and twice[:ROWS] == twice[ROWS:]
    other = codes(everything, 9)
    assert [row[0] for row in other] == [row[0] for row in twice[:ROWS]]
    assert all(one != two for one, two in zip(other, twice[:ROWS], strict=True))
    flow = Flow.of(dict(weights), CONFIG)
    for number in (0, 9):
        for frame, row in enumerate(rows(weights=weights)):
            noise = torch.from_numpy(frame_noise(SEED, number, frame, CONFIG.acoustic_dim))[None]
            expected = flow.step(torch.from_numpy(row)[None], noise, 2, 1.5)[0].tolist()
            assert codes(everything, number)[frame] == expected


def test_end_audio_ends_a_stream(everything: subprocess.CompletedProcess[bytes]) -> None:
    for number, n in ((5, 4), (8, 1)):
        got = codes(everything, number)
        assert len(got) == n and got[-1] == [1] + [2] * 36
        assert all(row[0] > 1 for row in got[:-1])
        assert (of(everything, number)[-1].kind, of(everything, number)[-1].seq) == ("end", n)


def test_noise_from_a_file_is_for_one_stream(
    model: Path, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Row f for frame f; what it lacks is an error of the stream, and so is a second stream."""
    noise = np.random.default_rng(5).standard_normal((6, 36))
    np.save(tmp_path / "noise.npy", noise)
    states = rows(end_at=0, weights=weights)
    data = asked(stream(3, states, (2,)), stream(4, states))
    done = run("-m", model, "--noise", tmp_path / "noise.npy", "--no-empty", data=data)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "vx-flow: stream 3: --noise has 6 rows, and frame 6 needs one more",
        "vx-flow: stream 4: --noise is for one stream, and this is another; give one utterance, or use --seed",
    ]
    assert of(done, 3)[0].meta == {"voice": "ann", "steps": 7, "cfg": 1.2}  # no seed, for none was used
    flow = Flow.of(dict(weights), CONFIG)
    got = codes(done, 3)
    assert len(got) == 6 and got[0][0] > 1  # --no-empty: END_AUDIO was the best by far
    for frame, row in enumerate(got):
        hidden, given = (
            torch.from_numpy(states[frame : frame + 1]),
            torch.from_numpy(noise[frame : frame + 1]),
        )
        assert row == flow.step(hidden, given, 7, 1.2, allow_end=frame > 0)[0].tolist()


# --- what is refused before torch is imported


def failed(done: subprocess.CompletedProcess[bytes], said: str, code: str) -> None:
    """One line, and an error that travels behind hello."""
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1 and done.stderr.startswith(b"vx-flow: ")
    assert said in done.stderr.decode()
    first, error = frames(done.stdout)
    assert (first.kind, error.kind, error.fields["code"], error.fields["fatal"]) == (
        "hello",
        "error",
        code,
        True,
    )
    assert first.fields["out"]["codes"]["d"] == "u16"


@pytest.mark.parametrize(
    "options",
    [
        ["-n", "0"], ["-n", "-1"], ["-n", "1001"], ["-n", "2.5"], ["--steps", "many"], ["--cfg", "nan"],
        ["--cfg", "inf"], ["--cfg", "much"], ["--cfg", "1e300"], ["--cfg=-1001"],
        ["--seed=-1"], ["--seed", str(2**64)], ["--seed", "1.5"], ["--seed", ""],
        ["--seed", "9" * 5000], ["--seed", "٣"], ["--noise"], ["--dtype", "f16"], ["hidden.vx"], ["--voice", "ann"],
    ],
)  # fmt: skip
def test_wrong_options_are_a_usage_error(model: Path, options: list[str]) -> None:
    done = run("-m", model, *options, data=asked())
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert len(done.stderr) < 300


def test_an_empty_variable_is_as_good_as_none(model: Path) -> None:
    done = run(data=asked(), VX_TTS_MODEL=str(model), VX_DEVICE="", VX_DTYPE="")
    assert (done.returncode, done.stderr) == (0, b"")


def npy(shape: str = "(2, 36)", descr: str = "'<f4'", data: bytes = bytes(288), version: int = 1) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(header)) + header + data


NUMBERS = "is not an npy file of numbers"
BAD_NOISE = {
    "empty": (b"", NUMBERS),
    "text": (b"0.1 0.2\n", NUMBERS),
    "zip": (b"PK\x03\x04" * 20, NUMBERS),
    "pickle": (b"\x80\x04\x95" * 20, NUMBERS),
    "magic": (b"\x93NUMPY", NUMBERS),
    "version": (npy(version=9), NUMBERS),
    "objects": (npy(descr="'|O'"), NUMBERS),
    "no-dtype": (npy(descr="'zz'"), NUMBERS),
    "unclosed": (npy(descr="("), NUMBERS),
    "nested": (npy(descr="(" * 3000), NUMBERS),
    "short": (npy("(3, 36)"), NUMBERS),
    "huge": (npy(f"({2**62}, 36)"), NUMBERS),
    "negative": (npy("(-1, 36)"), NUMBERS),
    "truth": (npy("(True, 36)"), NUMBERS),
    "narrow": (npy("(2, 35)"), "holds float32 [2, 35], not float32 [frames, 36]"),
    "flat": (npy("(72,)"), "holds float32 [72], not"),
    "deep": (npy("(1, 2, 36)"), "holds float32 [1, 2, 36], not"),
    "whole": (npy(descr="'<i4'"), "holds int32 [2, 36], not"),
    "record": (npy(descr="[('a', '<f4')]"), "not float32 [frames, 36]"),
    "nan": (npy(data=struct.pack("<72f", *[0.5] * 71, float("nan"))), "holds values that are not finite"),
    "wide": (npy("(1, 36)", "'<f8'", struct.pack("<36d", *[1e300] * 36)), "holds values that are not finite"),
}


def test_noise_that_is_none_is_one_line_and_travels(model: Path, tmp_path: Path) -> None:
    for name in ("text", "objects", "narrow", "nan", "wide"):
        (tmp_path / name).write_bytes(BAD_NOISE[name][0])
        failed(run("-m", model, "--noise", tmp_path / name, data=asked()), BAD_NOISE[name][1], "bad-input")
    failed(run("-m", model, "--noise", "/nowhere", data=asked()), "/nowhere cannot be read", "bad-input")
    failed(run("-m", model, "--noise", tmp_path, data=asked()), "is not a regular file", "bad-input")


def test_noise_comes_through_a_pipe_too(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "noise.npy", np.random.default_rng(1).standard_normal((ROWS, 36), dtype=np.float32))
    (tmp_path / "hidden.vx").write_bytes(asked(stream(0, rows())))
    line = 'vx-flow -m "$0" --no-empty --noise {} < hidden.vx'
    given, piped, text, endless = (
        subprocess.run(
            ["bash", "-c", line.format(noise), str(model)], capture_output=True, timeout=WAIT_S, check=False,
            cwd=tmp_path, env=environment(None, TMPDIR=str(tmp_path)),
        )
        for noise in ("noise.npy", "<(cat noise.npy)", "<(echo 0.1)", "<(cat /dev/zero)")
    )  # fmt: skip
    assert piped.returncode == given.returncode == 0 and piped.stdout == given.stdout != b""
    failed(text, "is not an npy file of numbers", "bad-input")
    failed(endless, "gives over 64 MiB", "bad-input")
    for done in (text, endless):
        assert done.stderr.startswith(b"vx-flow: --noise /dev/fd/")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hidden.vx", "noise.npy"]


@pytest.mark.parametrize("name", BAD_NOISE)
@pytest.mark.filterwarnings("error")
def test_files_of_noise_that_are_none(tmp_path: Path, name: str) -> None:
    from voxtral_pipes.errors import BadInputError

    content, said = BAD_NOISE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInputError) as caught:
        read_noise(tmp_path / name, 36)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / name} ")


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", "<f2"])
@pytest.mark.filterwarnings("error")
def test_noise_of_other_floats_is_read(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(1).standard_normal((5, 36)).astype(kind)
    for array in (noise, np.asfortranarray(noise), noise[:0]):
        np.save(tmp_path / "a.npy", array)
        got = read_noise(tmp_path / "a.npy", 36)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, array.astype(np.float32))
        torch.from_numpy(got)  # which would warn of memory that cannot be written to


def test_no_model_is_one_line_and_travels(tmp_path: Path, tiny_model: Path, without_nano: str) -> None:
    failed(
        run(data=asked(), PATH=without_nano), "no model: name one with -m PATH or $VX_TTS_MODEL", "no-model"
    )
    failed(run(data=asked(), VX_TTS_MODEL="/nowhere"), "there is no model at /nowhere", "no-model")
    failed(run("-m", tmp_path, data=asked()), "holds no model", "bad-model")
    said = "is a speech recognition model (voxtral-asr); this command needs a synthesis model"
    failed(run("-m", tiny_model, data=asked()), said, "bad-model")


def test_a_damaged_model_is_one_line_and_travels(model: Path, tmp_path: Path) -> None:
    for damage, said in (
        ({"multimodal.audio_model_args.acoustic_transformer_args.hidden_dim": 162}, "ask for [162, 96]"),
        (
            {"multimodal.audio_model_args.acoustic_transformer_args.n_decoding_steps": 10**6},
            "n_decoding_steps",
        ),
    ):
        folder = tmp_path / said[:4]
        folder.mkdir()
        for name in ("consolidated.safetensors", "params.json"):
            (folder / name).write_bytes((model / name).read_bytes())
        change(folder / "params.json", damage)
        failed(run("-m", folder, data=asked()), said, "bad-model")
    cut_raw(folder, 500_000)
    (folder / "shard-ac").unlink()
    failed(run("-m", folder, data=asked()), "shard-aa", "bad-model")


def test_input_that_is_not_for_it(model: Path) -> None:
    for needs, sent in (("i", "i"), ("mel", "mel"), ("codes", "codes")):
        done = run("-m", model, data=wire([hello(needs=needs), Frame("end")]))
        failed(done, f"vx-flow reads the tensor 'hidden', and vx-backbone/0.1.0 sends {sent}", "bad-input")
    for other, said in (
        ({"family": "voxtral-tts", "fp": "0123456789abcdef"}, "made with another model (fp 0123456789abcdef"),
        ({"family": "voxtral-asr"}, "another model (family voxtral-asr"),
    ):
        failed(run("-m", model, data=wire([hello(other), Frame("end")])), said, "bad-input")
    failed(run("-m", model), "the input is empty", "truncated")
    failed(run("-m", model, data=b"RIFF" * 10), "", "bad-input")
    failed(run("-m", model, data=wire([Frame("end")])), "the first frame is 'end', not 'hello'", "bad-input")


def test_a_full_disk_is_one_line(model: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            ["vx-flow", "-m", str(model)], input=asked(), stdout=full, stderr=subprocess.PIPE, timeout=WAIT_S,
            env=environment(), check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == b"vx-flow: cannot write to stdout: No space left on device\n"


def test_frames_do_not_go_to_a_terminal(model: Path) -> None:
    parent, child = pty.openpty()
    done = subprocess.run(
        ["vx-flow", "-m", str(model)], input=asked(), stdout=child, stderr=subprocess.PIPE, timeout=WAIT_S,
        env=environment(), check=False,
    )  # fmt: skip
    os.close(child)
    os.close(parent)
    assert done.returncode == 2 and b"stdout is a terminal" in done.stderr and done.stderr.count(b"\n") == 1


def test_the_one_model_of_the_cache_is_found(model: Path, tiny_model: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "speak").symlink_to(model)
    (cache / "listen").symlink_to(tiny_model)
    for options in ([], ["-m", "speak"]):
        # As far as the input's hello, which is wrong.
        failed(run(*options, data=wire([hello(needs="mel"), Frame("end")])), "sends mel", "bad-input")


LIGHT = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print(sorted({"torch", "gguf"} & set(sys.modules)), end.code, file=sys.stderr)
"""


def test_torch_is_not_imported_before_the_input_is_known(model: Path) -> None:
    command = [sys.executable, "-c", LIGHT, str(ROOT / "bin" / "vx-flow"), "-m", str(model), "--seed", "1"]
    data = wire([hello(needs="mel"), Frame("end")])
    done = subprocess.run(command, input=data, capture_output=True, timeout=WAIT_S, check=False)
    assert done.stderr.splitlines()[-1] == b"[] 1"
