"""The text decoder: one embedding and one token in, one token out, every 80 ms (asr.md sections 9 and 11).

    input[p] = audio[p] + E[token[p]]       token[p] = prompt[p] while p < L, then the output of p - 1
    blocks with ffn_norm scaled by (1 + A_l), A_l = U_l gelu(D_l t(delay)); window 8192
    logits   = E rms(h, norm), float32

Carried between calls: the ring of keys and values and the position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from voxtral_pipes.config import DecoderConfig
from voxtral_pipes.kernels import dispatch as ops
from voxtral_pipes.kernels.packed import HeadWeight, Weight
from voxtral_pipes.models.cache import RingKV, Span
from voxtral_pipes.models.layers import Linear, dense, time_embedding
from voxtral_pipes.models.stack import Stack, StackState

CHOSEN = -1
"""Stands for a token: the one that the step before has chosen, in states that were made with `finish`."""
MAX_DELAYS = 32
"""For which norms are kept: more than there are."""
EMBEDDING = "mm_streams_embeddings.embedding_module.tok_embeddings.weight"


@dataclass(frozen=True, slots=True)
class Choice:
    """What greedy decoding needs to know of one row of logits."""

    id: int
    """The most likely one that is not the pad."""
    logit: float
    pad_logit: float
    log_sum: float
    """Of the exponentials of all logits; less of it, a logit is a log probability."""

    @classmethod
    def of(cls, row: Tensor) -> Choice:
        """Read int32 [5], on the host, as `ops.choose` gives it."""
        numbers = row.numpy()
        return cls(int(numbers[0]), *numbers[1:4].view(np.float32).tolist())

    def prefers_pad(self, penalty: float) -> bool:
        """Tell whether the pad, its logit less `penalty`, is the most likely id."""
        return self.pad_logit - penalty >= self.logit


@dataclass(frozen=True, slots=True)
class Decoder:
    """Weights of the decoder; read-only and shared by all streams."""

    config: DecoderConfig
    embedding: Weight
    """[vocab, dim], also the head."""
    head: Weight | HeadWeight
    """The same, as it is fastest to multiply by."""
    stack: Stack
    conditions: tuple[tuple[Linear, Linear], ...]
    """Per layer D_l [ada_dim, dim] and U_l [dim, ada_dim]."""
    _ffn_norms: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, tensors: Mapping[str, Weight], config: DecoderConfig) -> Decoder:
        """Assemble from tensors under their Mistral names, all on one device."""
        # The largest matrix first: what is laid out and where it was are held at once.
        dtype = dense(tensors, "norm.weight").dtype
        embedding = ops.prepare_table(tensors[EMBEDDING], dtype)
        head = ops.prepare_head(embedding, dtype)
        return cls(
            config=config,
            embedding=embedding,
            stack=Stack.of(tensors, "", config),
            head=head,
            conditions=tuple(
                (
                    Linear.of(tensors, f"layers.{i}.ada_rms_norm_t_cond.0"),
                    Linear.of(tensors, f"layers.{i}.ada_rms_norm_t_cond.2"),
                )
                for i in range(config.n_layers)
            ),
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.stack.device

    @property
    def works_aside(self) -> bool:
        """Whether a step that was started goes on while the caller does something else."""
        return self.device.type == "cuda"

    def new_state(
        self, delay_tokens: int, batch: int = 1, *, finish: Callable[[Tensor], Tensor] | None = None
    ) -> StackState:
        """Begin `batch` streams with one delay.

        The ring holds exactly the window: later steps are single, and the first step evicts nothing.  With `finish`,
        what it makes of the logits is what steps give, on the host: integers [B, n], the last of which is the token
        that was chosen.  It is part of the step: few bytes leave the device, and the next step can be started before,
        with the token `CHOSEN`.
        """
        last = torch.zeros(batch, 1, dtype=torch.int64, device=self.device)
        kv = self.stack.new_kv(batch=batch, window=self.config.window, max_step=1)
        norms = self.ffn_norms(delay_tokens)

        def run(audio: Tensor, tokens: Tensor, turn: Tensor, span: Span) -> Tensor:
            if finish is None:
                return self._run(kv, norms, audio, tokens, turn, span)
            tokens = torch.where(tokens == CHOSEN, last, tokens)
            choice = finish(self._run(kv, norms, audio, tokens, turn, span))
            last.copy_(choice[:, -1:])
            return choice

        return StackState(kv, 0, run, to_host=finish is not None, ahead=1 if finish is None else 2)

    @torch.inference_mode()
    def ffn_norms(self, delay_tokens: int) -> tuple[Tensor, ...]:
        """Return the FFN norm weights times (1 + A_l) of a delay, computed once per delay in float32."""
        known = self._ffn_norms.get(delay_tokens)
        if known is None:
            t = time_embedding(delay_tokens, self.config.dim).to(self.device)
            known = tuple(
                (block.ffn_norm.float() * (1 + _float32(up, F.gelu(_float32(down, t))))).to(self.stack.dtype)
                for block, (down, up) in zip(self.stack.blocks, self.conditions, strict=True)
            )
            if len(self._ffn_norms) >= MAX_DELAYS:
                del self._ffn_norms[next(iter(self._ffn_norms))]
            self._ffn_norms[delay_tokens] = known
        return known

    def warm(self, state: StackState, *passes: int) -> None:
        """Record first passes of so many positions each, and the step of a single one, ahead of the first audio."""
        batch = state.kv.keys.shape[1]
        self.stack.warm(
            state,
            *(
                partial(
                    self.prefill,
                    state,
                    torch.zeros(batch, n, self.config.dim, dtype=self.stack.dtype),
                    torch.zeros(batch, n, dtype=torch.int64, device=self.device),
                    record=True,
                )
                for n in (*(n for n in passes if n > 1), 1)
            ),
        )

    @torch.inference_mode()
    def step(self, state: StackState, audio: Tensor, tokens: Tensor) -> tuple[Tensor, StackState]:
        """Run the next positions: audio [B, n, dim], tokens int64 [B, n] -> float32 [B, vocab] of the last one.

        n > 1 is the prompt: at position 0, and no longer than the window.
        """
        return self.start_step(state, audio, tokens)(), state

    @torch.inference_mode()
    def start_step(
        self, state: StackState, audio: Tensor, tokens: Tensor, *, record: bool = False
    ) -> Callable[[], Tensor]:
        """Start `step`; what is returned gives its result (see `Stack.start`).

        A single position is recorded on CUDA, several only with `record`.
        """
        record |= audio.shape[1] == 1
        return self.stack.start(state, audio.shape[1], audio, tokens, record=record)

    def _run(
        self, kv: RingKV, norms: tuple[Tensor, ...], audio: Tensor, tokens: Tensor, turn: Tensor, span: Span
    ) -> Tensor:
        """Do the tensor work of a step, without the bookkeeping: it can be recorded."""
        dtype = self.stack.dtype
        x = audio.to(self.device, dtype) + ops.embedding(tokens, self.embedding, dtype)
        x = self.stack(x, kv, turn, span, norms)
        last = self.stack.normed(x[:, -1])
        return ops.head(last, self.head)

    def prefill(
        self, state: StackState, audio: Tensor, tokens: Tensor, *, record: bool = False
    ) -> tuple[Tensor, StackState]:
        """Run the prompt, audio [B, L, dim] and tokens [B, L], in one pass where it fits the window.

        A longer one would evict keys its own first queries need, so the rest of it goes one by one.
        """
        whole = min(audio.shape[1], self.config.window)
        logits = self.start_step(state, audio[:, :whole], tokens[:, :whole], record=record)()
        for p in range(whole, audio.shape[1]):
            logits, state = self.step(state, audio[:, p : p + 1], tokens[:, p : p + 1])
        return logits, state


def greedy_choice(logits: Tensor, pad: int) -> Tensor:
    """Reduce logits float32 [B, vocab] to what `Choice` is made of, int32 [B, 5]; for `Decoder.new_state`."""
    return ops.choose(logits, pad)


def _float32(linear: Linear, x: Tensor) -> Tensor:
    """Apply a matrix in float32 whatever it is stored in."""
    weight = linear.weight
    return ops.linear(x, weight.float() if isinstance(weight, Tensor) else weight)
