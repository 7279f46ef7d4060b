"""The laws of vx-mel's stage: cutting, live against file, no look-ahead, and how many frames there are."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import pairwise, zip_longest

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from voxtral_pipes.config import AudioConfig
from voxtral_pipes.errors import BadInputError, UsageError
from voxtral_pipes.formats.frame import Frame, encode
from voxtral_pipes.formats.wav import PcmFormat
from voxtral_pipes.models.mel import Float32, MelFilters, MelState, Resampler, step
from voxtral_pipes.stages.base import Outgoing
from voxtral_pipes.stages.mel import MelStage, Source, source_frames

CONFIG = AudioConfig()


def stage(delay_tokens: int = 6, left_pad_tokens: int = 32, right_pad: bool = True) -> MelStage:
    return MelStage(CONFIG, delay_tokens=delay_tokens, left_pad_tokens=left_pad_tokens, right_pad=right_pad)


STAGE = stage()


def noise(n_samples: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).normal(0, 0.1, n_samples).astype(np.float32)


def wav(samples: Float32, rate_hz: int = 16000) -> bytes:
    """Make a WAV of 32-bit float samples, [n] or [n, channels]; the size fields say that they are unknown."""
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    body = struct.pack("<HHIIHH", 3, channels, rate_hz, 4 * channels * rate_hz, 4 * channels, 32)
    head = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0" + body + b"data\xff\xff\xff\xff"
    return head + samples.astype("<f4").tobytes()


def run(
    pieces: Iterable[bytes],
    of: MelStage = STAGE,
    *,
    live: bool = False,
    raw: PcmFormat | None = None,
    channel: int | None = None,
) -> Iterator[Frame]:
    source = Source("test", live, lambda line: None, raw, channel)
    return source_frames(of, source, pieces, 0, Outgoing("vx-mel"))


def data(frames: Iterable[Frame]) -> list[Frame]:
    return [frame for frame in frames if frame.kind == "data"]


def mel(frames: Iterable[Frame]) -> Float32:
    tensors = [frame.tensors["mel"].float32() for frame in data(frames)]
    return np.concatenate([np.empty((0, 128), np.float32), *tensors])


def level(frames: Iterable[Frame]) -> Float32:
    return np.concatenate([frame.tensors["level"].float32() for frame in data(frames)])


def marks(frames: Iterable[Frame]) -> list[object]:
    return [frame.meta["audio_end"] for frame in frames if frame.kind == "mark"]


def cut(content: bytes, at: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(min(edge, len(content)) for edge in at), len(content)]
    return [content[start:end] for start, end in pairwise(edges)]


INPUTS = {
    "16 kHz": wav(noise(9000)),
    "48 kHz stereo": wav(noise(2 * 9000).reshape(-1, 2), 48000),
    "8 kHz": wav(noise(3000), 8000),
    "declared end": wav(noise(5000))[:40]
    + struct.pack("<I", 20000)
    + wav(noise(5000))[44:]
    + b"LIST\2\0\0\0abRIFF",
}


@pytest.mark.parametrize("live", [True, False])
@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(INPUTS)), st.lists(st.integers(0, 40000), max_size=30))
def test_any_cutting_gives_the_same_bytes(live: bool, name: str, at: list[int]) -> None:
    whole = [encode(frame) for frame in run([INPUTS[name]], live=live)]
    assert [encode(frame) for frame in run(cut(INPUTS[name], at), live=live)] == whole


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_dribbled_bytes_give_the_same_bytes(name: str) -> None:
    whole = [encode(frame) for frame in run([INPUTS[name]])]
    for size in (3, 1001):
        assert [encode(f) for f in run(cut(INPUTS[name], range(0, len(INPUTS[name]), size)))] == whole


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_live_equals_a_file(name: str) -> None:
    live, file = list(run([INPUTS[name]], live=True)), list(run([INPUTS[name]]))
    assert {len(frame.tensors["level"].data) // 4 for frame in data(live)} == {1}
    assert {len(frame.tensors["level"].data) // 4 for frame in data(file)[:-1]} == {32}
    np.testing.assert_allclose(mel(live), mel(file), atol=1e-6)
    np.testing.assert_allclose(level(live), level(file), atol=1e-4)
    assert marks(live) == marks(file)
    assert (live[0].meta["live"], file[0].meta["live"]) == (True, False)


def test_the_stage_equals_the_model_on_the_padded_stream() -> None:
    samples = noise(16001)
    right = -16001 % 1280 + 17 * 1280
    stream = np.concatenate([np.zeros(40960, np.float32), samples, np.zeros(right + 40, np.float32)])
    expected, _ = step(MelFilters.new(CONFIG), MelState.new(CONFIG), stream)
    frames = list(run([wav(samples)], live=True))
    np.testing.assert_array_equal(mel(frames), expected)
    power = np.square(stream[:-40].astype(np.float64)).reshape(-1, 1280).mean(axis=1)
    np.testing.assert_allclose(level(frames), 10 * np.log10(np.maximum(power, 1e-12)), atol=1e-4)


def test_resampled_and_mixed_input_equals_its_mono_form() -> None:
    stereo = noise(2 * 24000).reshape(-1, 2)
    resampler = Resampler(48000, 16000)
    mono = np.concatenate([resampler.push(stereo[:, 1].copy()), resampler.flush()])
    np.testing.assert_array_equal(mel(run([wav(stereo, 48000)], channel=1)), mel(run([wav(mono)])))
    twice = np.stack([stereo[:, 0], stereo[:, 0]], axis=1)
    np.testing.assert_array_equal(mel(run([wav(twice)])), mel(run([wav(stereo[:, 0])])))


# Worked values of asr.md section 4 for a delay of 6 tokens: samples, padded samples, mel frames, positions.
TOTALS = [
    (1, 64000, 400, 50), (1280, 64000, 400, 50), (1281, 65280, 408, 51), (16000, 79360, 496, 62),
    (52800, 116480, 728, 91), (255168, 318720, 1992, 249), (480000, 542720, 3392, 424),
]  # fmt: skip


@pytest.mark.parametrize(("n", "total", "n_frames", "positions"), TOTALS)
@pytest.mark.parametrize("live", [True, False])
def test_totals(n: int, total: int, n_frames: int, positions: int, live: bool) -> None:
    frames = list(run([wav(np.full(n, 0.1, np.float32))], live=live))
    assert len(mel(frames)) == n_frames and len(level(frames)) == positions
    assert sum(frame.ticks or 0 for frame in data(frames)) == total
    assert marks(frames) == [n]


@pytest.mark.parametrize("delay", [1, 6, 15, 30])
@pytest.mark.parametrize("left_pad", [0, 1, 32, 76])
def test_padding_follows_the_options(delay: int, left_pad: int) -> None:
    n = 4000
    opened, *frames = run([wav(noise(n))], stage(delay, left_pad))
    assert opened.meta == {
        "delay_tokens": delay, "left_pad_tokens": left_pad, "prompt_tokens": 1 + left_pad + delay,
        "live": False, "source": "test",
    }  # fmt: skip
    assert len(level(frames)) == left_pad + 4 + delay + 11
    assert (level(frames)[:left_pad] == -120).all() and (level(frames)[left_pad : left_pad + 4] > -40).all()
    assert (level(frames)[left_pad + 4 :] == -120).all()


def check_clock(frames: list[Frame], left_pad: int) -> None:
    tick = -1280 * left_pad
    for count, frame in enumerate(data(frames)):
        n_frames, n_mels = frame.tensors["mel"].shape
        assert (frame.seq, frame.tick, frame.ticks, n_mels) == (count, tick, 160 * n_frames, 128)
        assert frame.tensors["level"].shape == (n_frames // 8,)
        tick += 160 * n_frames
    assert frames[0].kind == "open" and frames[-1].kind == "end" and frames[-1].seq == len(data(frames))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6000), st.booleans(), st.sampled_from([0, 3, 32]), st.sampled_from([1, 6]))
@example(1120, True, 32, 6)  # the last mel frame of the first position starts where the audio ends
@example(1121, True, 32, 6)
def test_ticks_and_the_mark(n: int, live: bool, left_pad: int, delay: int) -> None:
    frames = list(run([wav(np.full(n, 0.1, np.float32))], stage(delay, left_pad), live=live))
    check_clock(frames, left_pad)
    place = next(i for i, frame in enumerate(frames) if frame.kind == "mark")
    assert frames[place].meta == {"audio_end": n} and marks(frames) == [n]
    # Every mel frame before the mark starts before the end of the audio, one in the frame behind it does not.
    before, behind = frames[place - 1], frames[place + 1]
    assert behind.tick is not None and behind.ticks is not None and behind.tick + behind.ticks - 160 >= n
    if before.kind == "data":
        assert before.tick is not None and before.ticks is not None and before.tick + before.ticks - 160 < n


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6000), st.booleans())
def test_without_right_padding(n: int, live: bool) -> None:
    frames = list(run([wav(noise(n))], stage(right_pad=False), live=live))
    check_clock(frames, 32)
    assert marks(frames) == [] and len(mel(frames)) == 8 * (32 + n // 1280)
    np.testing.assert_array_equal(mel(frames)[: 8 * 32], mel(run([wav(noise(n))], live=live))[: 8 * 32])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 6000), st.integers(0, 2000), st.sampled_from([16000, 48000]))
def test_no_look_ahead(n: int, more: int, rate_hz: int) -> None:
    """Audio after sample n changes no mel frame that is complete by then, and nothing that has been sent."""
    samples = noise(8000 * rate_hz // 16000)
    at = n * rate_hz // 16000
    other = samples.copy()
    other[at:] = noise(len(samples) - at + more, seed=9)[: len(samples) - at]
    other = np.concatenate([other, noise(more, seed=8)])
    one, two = mel(run([wav(samples, rate_hz)])), mel(run([wav(other, rate_hz)]))
    filter_reach = 0 if rate_hz == 16000 else 800
    complete = max(0, (40960 + n - filter_reach - 200) // 160)
    np.testing.assert_array_equal(one[:complete], two[:complete])
    if at < len(samples):
        assert (one[complete : complete + 20] != two[complete : complete + 20]).any()


def test_a_longer_input_never_changes_what_was_sent() -> None:
    samples = noise(20000)
    for n in (1, 5000, 12840, 12841):
        sent = [encode(f) for f in data(run([wav(samples[:n])], stage(right_pad=False), live=True))]
        longer = [encode(f) for f in data(run([wav(samples)], live=True))]
        # Silence completes the last frame of the shorter input where the longer one has 40 more samples.
        whole = len(sent) - (n % 1280 < 40)
        assert longer[:whole] == sent[:whole] and whole >= 31


def test_frames_leave_when_their_last_sample_comes() -> None:
    """A token leaves with sample 1280(p+1) + 40 of the padded stream, left padding at once."""
    pieces: list[int] = []

    def trickle() -> Iterator[bytes]:
        content = wav(noise(4000))
        yield content[:44]
        for start in range(44, len(content), 80):
            pieces.append(start + 80 - 44)
            yield content[start : start + 80]

    arrived = {frame.tick: pieces[-1] // 4 for frame in run(trickle(), live=True) if frame.kind == "data"}
    assert arrived[-40960] == 20 and arrived[-2560] == 20
    assert arrived[-1280] == 40 and arrived[0] == 1320 and arrived[1280] == 2600


def test_the_last_words_do_not_wait_for_the_writer_to_close() -> None:
    def open_ended() -> Iterator[bytes]:
        yield INPUTS["declared end"][: 44 + 20000]
        raise AssertionError("the reader waited")

    frames = run(open_ended())
    got = [next(frames) for _ in range(4)]
    assert [frame.kind for frame in got] == ["open", "data", "mark", "data"]


def test_no_samples_give_open_and_end() -> None:
    for live in (True, False):
        frames = list(run([wav(np.empty(0, np.float32))], live=live))
        assert [frame.kind for frame in frames] == ["open", "end"] and frames[-1].seq == 0


def test_streams_do_not_touch() -> None:
    first, second = wav(noise(9000, 1), 48000), wav(noise(7000, 2))
    alone = [[encode(f) for f in run(cut(x, range(0, len(x), 999)))] for x in (first, second)]
    runs = [run(cut(x, range(0, len(x), 999))) for x in (first, second)]
    together: list[list[bytes]] = [[], []]
    for pair in zip_longest(*runs):
        for place, frame in enumerate(pair):
            if frame is not None:
                together[place].append(encode(frame))
    assert together == alone


def test_bad_input_raises_and_a_missing_channel_is_named() -> None:
    with pytest.raises(BadInputError, match="no audio"):
        list(run([]))
    with pytest.raises(BadInputError, match="no audio"):
        list(run([], raw=PcmFormat("s16", 16000, 1)))
    with pytest.raises(BadInputError, match="channel 1"):
        next(run([wav(noise(100))], channel=1))


def test_what_is_not_a_number_becomes_silence() -> None:
    samples = noise(4000)
    samples[::7] = np.nan
    silenced = np.where(np.isnan(samples), np.float32(0), samples)
    np.testing.assert_array_equal(mel(run([wav(samples)])), mel(run([wav(silenced)])))


def test_a_prompt_beyond_the_decoders_window_is_refused() -> None:
    with pytest.raises(UsageError, match="8192"):
        stage(left_pad_tokens=8186)


def test_memory_is_flat_on_a_long_stream() -> None:
    head, piece = wav(np.empty(0, np.float32), 48000), noise(1 << 14).tobytes()

    def endless() -> Iterator[bytes]:
        yield head
        while True:
            yield piece

    frames = run(endless(), live=True)
    for _ in range(300):
        next(frames)
    tracemalloc.start()
    for _ in range(1500):
        next(frames)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
