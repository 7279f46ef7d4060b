"""The decode schedule (asr.md section 11) on a decoder whose every answer is written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from asr_models import SMALL, ids_of, pipe_of, rows_as_frames, settings

from voxtral_pipes.errors import BadInputError
from voxtral_pipes.models.decode import CHOSEN, Decoder
from voxtral_pipes.stages.base import Drive
from voxtral_pipes.stages.decode import DecodeOptions, DecodeStage

EOS, PAD, WORD = 2, 32, 33
LEFT, PROMPT = 32, 39


@dataclass
class Script:
    """Stands where a decoder does; the id at position p is `answers[p]`, by a logit of 5 over the rest."""

    answers: dict[int, int]
    runner_up: int = 40
    fed: dict[int, int] = field(default_factory=dict)
    config: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(dim=4))
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    works_aside: bool = False
    spoil: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits
    last: int = -2
    passes: list[int] = field(default_factory=list)
    """Positions of each step that was started."""
    warmed: list[tuple[int, ...]] = field(default_factory=list)

    def new_state(self, delay_tokens: int, *, finish) -> SimpleNamespace:
        state = SimpleNamespace(position=0, delay=delay_tokens, finish=finish)
        state.restart = lambda: setattr(state, "position", 0)
        return state

    def warm(self, state, *passes):
        self.warmed.append(passes)

    def prefill(self, state, audio, tokens):
        assert audio.shape == (1, tokens.shape[1], 4)
        return self.start_step(state, audio, tokens)(), state

    def start_step(self, state, audio, tokens):
        self.passes.append(tokens.shape[1])
        for i, token in enumerate(tokens[0].tolist()):
            self.fed[state.position + i] = self.last if token == CHOSEN else token
        state.position += tokens.shape[1]
        logits = torch.zeros(1, 64)
        logits[0, self.runner_up] = 1.0
        logits[0, self.answers.get(state.position - 1, PAD)] = 5.0
        choice = state.finish(self.spoil(logits))
        self.last = int(choice[0, -1])
        return lambda: choice


def stage_of(script: Script, options: DecodeOptions | None = None) -> DecodeStage:
    return DecodeStage(cast(Decoder, script), SMALL, options=options or DecodeOptions())


def run(answers: dict[int, int], n: int = 60, audio_end: int | None = None, levels=None, **options):
    script = Script(answers)
    stage = stage_of(script, options=DecodeOptions(**options))
    mark = (
        None
        if audio_end is None
        else (1 if audio_end < 0 else min(n - 1, audio_end // 1280 + LEFT), audio_end)
    )
    rows = np.zeros((n, 4), np.float32)
    frames = rows_as_frames(
        "embeds", rows, range(0, n, 7), settings(), row_ticks=1280, mark=mark, levels=levels
    )
    return script, list(Drive(stage, pipe_of("embeds", frames)).run())


@pytest.mark.parametrize("works_aside", [False, True])
def test_steps_that_are_started_ahead_change_nothing(works_aside: bool) -> None:
    """Where a device works aside, the next step of a frame is started before it is known what the last one chose."""
    script = Script({38: 7, 39: WORD, 40: 8, 43: EOS}, works_aside=works_aside)
    stage = stage_of(script, DecodeOptions(stop_at_eos=True))
    frames = rows_as_frames(
        "embeds", np.zeros((60, 4), np.float32), range(0, 60, 7), settings(), row_ticks=1280
    )
    out = list(Drive(stage, pipe_of("embeds", frames)).run())
    assert ids_of(out) == [7, WORD, 8, PAD, PAD, EOS]
    assert [script.fed[p] for p in range(38, 44)] == [PAD, 7, WORD, 8, PAD, PAD]


def test_one_id_for_each_position_from_the_prompts_last() -> None:
    script, frames = run({38: 7, 39: 8, 40: WORD})
    ids = ids_of(frames)
    assert ids[:4] == [7, 8, WORD, PAD]
    assert len(ids) == 60 - PROMPT + 1  # N - L + 1
    data = [f for f in frames if f.kind == "data"]
    assert [f.tick for f in data] == [1280 * (p - LEFT) for p in range(38, 60)]
    assert [f.seq for f in data] == list(range(22))
    assert frames[-2].kind == "end" and frames[-2].seq == 22
    assert [script.fed[p] for p in range(PROMPT)] == [1] + [PAD] * 38
    assert [script.fed[p] for p in (39, 40, 41, 42)] == [7, 8, WORD, PAD]


@pytest.mark.parametrize("works_aside", [False, True])
@pytest.mark.parametrize(("left", "delay"), [(32, 6), (0, 6), (1, 3), (5, 0), (0, 0)])
def test_a_live_prompt_runs_its_padding_at_once_and_the_rest_one_by_one(
    left: int, delay: int, works_aside: bool
) -> None:
    """Whatever the cutting: the first id costs no more than any other."""
    prompt = 1 + left + delay
    for cuts in (range(60), range(0, 60, 7), ()):
        script = Script({prompt - 1: 7, prompt: WORD}, works_aside=works_aside)
        meta = settings(left_pad=left, delay=delay, live=True)
        frames = rows_as_frames("embeds", np.zeros((60, 4), np.float32), cuts, meta, row_ticks=1280)
        out = list(Drive(stage_of(script), pipe_of("embeds", frames)).run())
        assert script.warmed == [(39, 32), (prompt, left)][: 1 if (left, delay) == (32, 6) else 2]
        assert script.passes == [left] * (left > 0) + [1] * (60 - left)
        assert ids_of(out)[:3] == [7, WORD, PAD] and len(ids_of(out)) == 60 - prompt + 1
        assert next(f.tick for f in out if f.kind == "data") == 1280 * delay
        assert [script.fed[p] for p in range(prompt)] == [1] + [PAD] * (prompt - 1)
        assert [script.fed[p] for p in (prompt, prompt + 1, prompt + 2)] == [7, WORD, PAD]


@pytest.mark.parametrize("n", [31, 32, 35, 38])
def test_a_live_stream_shorter_than_its_prompt_has_no_output(n: int) -> None:
    frames = rows_as_frames(
        "embeds", np.zeros((n, 4), np.float32), range(n), settings(live=True), row_ticks=1280
    )
    out = list(Drive(stage_of(Script({})), pipe_of("embeds", frames)).run())
    assert [f.kind for f in out] == ["hello", "open", "end", "end"]


def test_a_stream_shorter_than_its_prompt_has_no_output() -> None:
    _, frames = run({}, n=38)
    assert ids_of(frames) == []
    assert [f.kind for f in frames] == ["hello", "open", "end", "end"]


def test_eos_inside_the_audio_is_fed_back_and_ends_nothing() -> None:
    script, frames = run({45: EOS}, audio_end=1280 * 20)
    assert len(ids_of(frames)) == 22
    assert script.fed[46] == EOS


def test_the_first_eos_at_or_after_the_audios_end_ends_the_stream() -> None:
    end = 1280 * (50 - LEFT)  # position 50 starts exactly there
    _, frames = run({49: EOS, 50: EOS, 55: EOS}, audio_end=end)
    assert ids_of(frames) == [PAD] * 11 + [EOS, EOS]
    assert frames[-2].kind == "end" and frames[-2].seq == 13
    _, frames = run({49: EOS, 50: EOS}, audio_end=end + 1)
    assert len(ids_of(frames)) == 22  # position 50 starts one tick too early


def test_stop_at_eos_ends_at_the_first_anywhere() -> None:
    _, frames = run({45: EOS}, stop_at_eos=True)
    assert ids_of(frames)[-1] == EOS and len(ids_of(frames)) == 8


def test_logprobs_are_those_of_the_ids() -> None:
    _, frames = run({38: 7}, logprobs=True)
    logits = torch.zeros(64)
    logits[40], logits[7] = 1.0, 5.0
    expected = float(torch.log_softmax(logits, 0)[7])
    first = next(f for f in frames if f.kind == "data")
    assert first.tensors["logprob"].shape == (1,)
    assert first.tensors["logprob"].float32()[0] == pytest.approx(expected, abs=1e-6)
    assert "logprob" in frames[0].fields["out"]


def test_the_blank_guard_breaks_a_run_over_audible_input_only() -> None:
    loud, silent = np.full(60, -20.0, np.float32), np.full(60, -80.0, np.float32)
    _, frames = run({}, blank_guard=4, levels=loud)
    ids = ids_of(frames)
    # The runner-up comes once the penalty, 0.5 for each blank from the fourth on, exceeds the margin of 4.
    assert ids[:13] == [PAD] * 12 + [40]
    _, frames = run({}, blank_guard=4, levels=silent)
    assert set(ids_of(frames)) == {PAD}
    _, frames = run({}, levels=loud)
    assert set(ids_of(frames)) == {PAD}  # off by default


def test_logits_that_are_not_finite_close_the_stream() -> None:
    script = Script({}, spoil=lambda logits: logits * torch.nan)
    stage = stage_of(script)
    rows = rows_as_frames("embeds", np.zeros((45, 4), np.float32), (), settings(), row_ticks=1280)
    drive = Drive(stage, pipe_of("embeds", rows))
    frames = list(drive.run())
    assert drive.failed
    assert [f.kind for f in frames] == ["hello", "open", "error", "end"]
    assert "not finite" in frames[2].fields["msg"]


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({"delay_tokens": -1}, "delay_tokens"),
        ({"left_pad_tokens": "many"}, "left_pad_tokens"),
        ({"left_pad_tokens": 10**6}, "left_pad_tokens"),
        ({"delay_tokens": 6, "left_pad_tokens": 32, "prompt_tokens": 38}, "prompt_tokens"),
        ({"delay_tokens": True}, "delay_tokens"),
        ({"left_pad_tokens": 8192}, r"a prompt of 1 \+ 8192 \+ 6 tokens"),
    ],
)
def test_settings_that_do_not_fit_are_refused(meta: dict, said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        stage_of(Script({})).open(0, meta)


def test_states_are_kept_for_few_kinds_of_streams() -> None:
    """Each holds a ring of keys and values: an input could have filled the memory with them."""
    stage = stage_of(Script({}))
    for delay in (6, 6, 1, 6, 2, 3, 6):
        stream, _ = stage.open(0, settings(delay=delay))
        assert list(stream.flush()) == []
    assert {delay: len(states) for (delay, _), states in stage._idle.items()} == {3: 1, 6: 1}
