"""What the next step needs is made ahead of it, and is what it would have been."""

from dataclasses import replace
from typing import Any, cast

import torch
from asr_models import random_decoder


class Recorder:
    """Stands for the graphs of single steps: keeps what they would read."""

    def __init__(self):
        self.given = []

    def start(self, device, *inputs):
        self.given.append(inputs)
        return lambda: torch.empty(0)


def test_a_step_gets_its_own_position_wherever_the_one_before_was():
    stack = replace(random_decoder().stack, few_positions=2)
    state = random_decoder().new_state(6)
    recorder = cast(Any, state).single = Recorder()
    expected = []
    for position, steps in ((0, 1), (1, 1), (2, 2), (4, 1), (7, 1), (8, 1), (0, 1), (1, 1)):
        state.position = position
        stack.start(state, steps)
        expected.append((stack.rotary.at(position, steps), torch.tensor([position])))
    for (turn, first), (wanted_turn, wanted_first) in zip(recorder.given, expected, strict=True):
        assert torch.equal(turn, wanted_turn)
        assert torch.equal(first, wanted_first)
