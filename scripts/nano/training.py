"""The training loop: from a packed file to a state, a log and a model."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nano.ahead import drawn_ahead
from nano.examples import IGNORED, LEFT_PAD, Examples, Plan
from nano.forward import Weights, adapt, decode, hear, new_weights, phones_heard, phones_loss
from nano.front import Front
from nano.listening import answer, dev_scores, word_errors, words_of
from nano.masks import Masks
from nano.pack import Pack
from nano.rounding import rounded
from nano.size import NANO, SMOKE
from nano.sounds import Sounds, sent
from nano.state import State, load_beginning, load_state, save_state, write_model
from voxtral_pipes.errors import BadInputError


@dataclass(frozen=True, slots=True)
class Settings:
    """What makes a run what it is: a state goes on only with the same."""

    steps: int = 30_000
    batch: int = 128
    tokens: int = 160
    """Positions of an example; 12.8 s."""
    rate: float = 1.5e-3
    warm_steps: int = 1000
    decay: float = 0.1
    dropout: float = 0.15
    """Of what each half of a layer adds."""
    seed: int = 0
    phones: float = 0.15
    """How much hearing phones counts beside writing words."""
    averaged: float = 0.9997
    """How much of the mean of all weights so far remains at each step; the model is that mean."""
    rounded: float = 0.5
    """From which share of the steps on, every second one has weights as Q4_0 will hold them."""
    smoke: bool = False
    """A tiny model that learns one batch by heart, undisturbed."""


SMOKE_SETTINGS = Settings(
    steps=200,
    batch=8,
    tokens=66,
    rate=4e-3,
    warm_steps=20,
    decay=0.0,
    dropout=0.0,
    averaged=0.9,
    rounded=1.0,
    smoke=True,
)


@dataclass(frozen=True, slots=True)
class Budget:
    """What one call may take and how often it tells; nothing of it changes what is learnt."""

    minutes: float
    log_steps: int
    score_steps: int
    workers: int


class Run:
    """A training run in a folder: `state.safetensors`, `log.jsonl`, and `model/` once a call has ended."""

    def __init__(
        self, folder: Path, pack: Pack, settings: Settings, device: torch.device, begin: Path | None = None
    ) -> None:
        """Go on with what is in the folder; a new run takes the weights of `begin`, a model or a run, if any.

        Raises:
            BadInputError: state or model cannot be used.
        """
        self._folder, self._pack, self._settings, self._device = folder, pack, settings, device
        self._config = SMOKE if settings.smoke else NANO
        folder.mkdir(parents=True, exist_ok=True)
        self._state_file = folder / "state.safetensors"
        if self._state_file.exists():
            state = load_state(self._state_file)
            if state.settings != asdict(settings):
                raise BadInputError(f"{self._state_file} is of a run with other settings: {state.settings}")
        else:
            weights = new_weights(self._config, settings.seed, len(pack.phones))
            squares: dict[str, Tensor] = {}
            if begin is not None:
                begun, squares = load_beginning(begin, weights)
                weights |= begun
            state = State(0, 0.0, asdict(settings), weights, weights, squares)
        self.step, self._seconds = state.step, state.seconds
        self._weights = {name: value.to(device).requires_grad_() for name, value in state.weights.items()}
        self._mean = {name: value.detach().to(device, copy=True) for name, value in state.mean.items()}
        self._optimizer = self._new_optimizer(state)
        self._front = Front(self._config.audio, device)
        self._masks = Masks(self._config.audio, device)
        self._examples = Examples(
            pack, tokens=settings.tokens, batch=settings.batch, seed=settings.seed, cuts=not settings.smoke
        )
        self._sounds = Sounds(pack, tokens=settings.tokens, device=device, disturbed=not settings.smoke)
        # A step is hundreds of passes over memory by itself, and a few when it is compiled.
        self._answer = torch.compile(self._answers) if device.type == "cuda" else self._answers

    @property
    def is_over(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self._settings.steps

    def go(self, budget: Budget) -> None:
        """Train until the end or the limit; keep state and model, and score the model."""
        began = time.monotonic()
        earlier, losses = self._seconds, []
        for plan in self._plans(budget.workers):
            losses.append(self._learn(plan))
            self.step += 1
            self._seconds = earlier + time.monotonic() - began
            if self.step % budget.log_steps == 0:
                words, phones = torch.stack(losses).mean(0).tolist()
                self._tell({"loss": round(words, 5), "phones": round(phones, 5), "rate": self._rate()})
                losses.clear()
            if self.step % budget.score_steps == 0 and not self.is_over:
                self._score()
                self._keep()
            if time.monotonic() - began > 60 * budget.minutes:
                break
        self._score()
        self._keep()
        write_model(self._folder / "model", self._config, self._mean)

    def _learn(self, plan: Plan) -> Tensor:
        """Take one step; the losses, of words and of phones, stay on the device, so that nothing waits for them."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate()
        words, phones = self._losses(plan)
        (words + self._settings.phones * phones).backward()
        torch.nn.utils.clip_grad_norm_(list(self._weights.values()), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        # The first weights say little: the mean reaches back about a ninth of the way, as long as it may reach so far.
        kept = min(self._settings.averaged, (self.step + 1) / (self.step + 10))
        get_ema_multi_avg_fn(kept)(list(self._mean.values()), list(self._weights.values()), None)
        return torch.stack((words.detach(), phones.detach()))

    def _losses(self, plan: Plan) -> tuple[Tensor, Tensor]:
        tokens, targets, delays, spelt, phones = (
            sent(part, self._device)
            for part in (plan.tokens, plan.targets, plan.delays, plan.spelt, plan.phones)
        )
        seed = hash((self._settings.seed, self.step)) & 0x7FFFFFFF
        with torch.no_grad():
            mel = self._front(self._sounds(plan, seed)) if self._settings.smoke else self._mixed(plan, seed)
        torch.manual_seed(seed + 2)  # of dropout
        packed = torch.full((), float(self._is_rounded()), device=self._device)
        written, heard = self._answer(self._weights, packed, mel, tokens, targets, delays)
        return written, phones_loss(heard[spelt], phones, torch.from_numpy(plan.n_phones))

    def _mixed(self, plan: Plan, seed: int) -> Tensor:
        """Return the mel of a batch whose speakers are partly between two, with all that disturbs."""
        own, theirs = self._front(torch.cat(self._sounds.with_partners(plan, seed))).chunk(2)
        mel = torch.lerp(own, theirs, self._sounds.shares(plan, self._config.audio.hop_samples)[:, :, None])
        return self._masks(mel, sent(plan.paces, self._device), seed + 1)

    def _answers(
        self, exact: Weights, packed: Tensor, mel: Tensor, tokens: Tensor, targets: Tensor, delays: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of what is written, and the phones that are heard in each frame."""
        weights, dropout = rounded(exact, packed), self._settings.dropout
        with torch.autocast(mel.device.type, torch.bfloat16, enabled=mel.is_cuda):
            frames = hear(weights, self._config, mel, dropout)
            audio = adapt(weights, self._config, frames)
            logits = decode(weights, self._config, audio, tokens, delays, dropout)
            heard = phones_heard(weights, frames)
        written = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        return written, heard

    def _is_rounded(self) -> bool:
        return self.step % 2 == 1 and self.step >= self._settings.rounded * self._settings.steps

    def _rate(self) -> float:
        """Return the learning rate of this step: a warm start, then half a cosine to a twentieth."""
        s = self._settings
        if self.step < s.warm_steps:
            return s.rate * (self.step + 1) / s.warm_steps
        through = (self.step - s.warm_steps) / max(1, s.steps - s.warm_steps)
        return s.rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, through))))

    def _new_optimizer(self, state: State) -> torch.optim.AdamW:
        matrices = [
            value for name, value in self._weights.items() if value.dim() > 1 and "tok_emb" not in name
        ]
        rest = [value for name, value in self._weights.items() if value.dim() == 1 or "tok_emb" in name]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": self._settings.decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-9)
        for name, square in state.squares.items():
            weight = self._weights[name]
            optimizer.state[weight] = {
                "step": torch.tensor(float(state.step)),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": square.to(self._device),
            }
        return optimizer

    def _plans(self, workers: int) -> Iterator[Plan]:
        if self._settings.smoke:  # always the same, to be learnt by heart
            for _ in range(self.step, self._settings.steps):
                yield self._examples.plan(0)
            return
        steps = range(self.step, self._settings.steps)
        yield from drawn_ahead(self._examples.plan, steps, workers)

    def _score(self) -> None:
        if self._settings.smoke:
            scores = {"by heart": self._by_heart()}
        else:
            scores = dev_scores(self._mean, self._config, self._pack, self._device)
        self._tell({"dev": scores})

    def _by_heart(self) -> dict[str, float]:
        plan = self._examples.plan(0)
        delays = torch.from_numpy(plan.delays).to(self._device)
        heard = answer(self._mean, self._config, self._sounds(plan, 0), delays).cpu()
        errors = words = 0
        for row, delay in enumerate(plan.delays.tolist()):
            said = words_of(plan.targets[row, LEFT_PAD + delay :].tolist())
            errors += word_errors(said, words_of(heard[row, LEFT_PAD + delay :].tolist()))
            words += len(said)
        return {"words": words, "errors": errors, "rate": errors / max(1, words)}

    def _keep(self) -> None:
        squares = {
            name: self._optimizer.state[value]["exp_avg_sq"]
            for name, value in self._weights.items()
            if value in self._optimizer.state
        }
        state = State(self.step, self._seconds, asdict(self._settings), self._weights, self._mean, squares)
        save_state(self._state_file, state)

    def _tell(self, what: dict[str, Any]) -> None:
        line = json.dumps({"step": self.step, "seconds": round(self._seconds, 1), **what})
        with (self._folder / "log.jsonl").open("a") as log:
            log.write(line + "\n")
        print(line, flush=True)
