"""Waiting without sleep: only where that helps, and only while input keeps coming soon."""

import os
import select
import threading
import time

import pytest

from voxtral_pipes.cli import edge
from voxtral_pipes.cli.watch import LIMIT_S, Watch


class Looks:
    """Stands for select.poll: says when it is looked, and when slept."""

    def __init__(self, clock, comes_after):
        self.clock, self.comes_after = clock, comes_after
        self.looks = self.sleeps = 0

    def register(self, descriptor, events):
        self.began = self.clock.now

    def poll(self, timeout=None):
        if timeout is None:
            self.sleeps += 1
            self.clock.now = max(self.clock.now, self.began + self.comes_after)
        else:
            self.looks += 1
            self.clock.now += 0.0005
        return [1] if self.clock.now >= self.began + self.comes_after else []


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def many_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def waited(made, monkeypatch, clock, seconds, descriptor):
    """Wait once for something that comes after so many seconds."""
    looks = Looks(clock, seconds)
    monkeypatch.setattr(select, "poll", lambda: looks)
    made.wait(descriptor)
    return looks


def test_it_looks_while_input_comes_soon_and_sleeps_where_it_does_not(many_cores, monkeypatch):
    clock = Clock()
    made = Watch(clock)
    made.begin("cuda", edge.Log("test", 0))
    soon, late, often = 0.002, 1.0, []
    for number, seconds in enumerate((soon, soon, late, late, soon, soon)):
        looks = waited(made, monkeypatch, clock, seconds, number)
        often.append((looks.looks > 0, looks.sleeps))
        assert looks.looks * 0.0005 <= LIMIT_S + 0.001
    assert often == [(True, 0), (True, 0), (True, 1), (False, 1), (False, 1), (True, 0)]


@pytest.mark.parametrize(("device", "cores"), [("cpu", 8), ("cuda", 2)])
def test_a_stage_on_the_cpu_or_with_few_cores_sleeps(device, cores, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    clock = Clock()
    made = Watch(clock)
    made.begin(device, edge.Log("test", 0))
    looks = waited(made, monkeypatch, clock, 1.0, 7)
    assert (looks.looks, looks.sleeps) == (0, 0)


def test_what_comes_and_the_end_are_both_seen(many_cores):
    made = Watch()
    made.begin("cuda", edge.Log("test", 0))
    end, start = os.pipe()
    os.write(start, b"1")
    made.wait(end)
    assert os.read(end, 8) == b"1"

    def later():
        time.sleep(4 * LIMIT_S)
        os.close(start)

    thread = threading.Thread(target=later)
    thread.start()
    made.wait(end)
    assert os.read(end, 8) == b""
    thread.join()
    os.close(end)
