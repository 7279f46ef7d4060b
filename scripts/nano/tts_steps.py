"""The two phases of the training: what one step minimises, and how well the model does on what it was not taught."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nano import tts_codec, tts_forward
from nano.pack import Utterance
from nano.tts_examples import Batch, Line, changed_sound, padded
from nano.tts_losses import wave_losses
from nano.tts_pack import Speech
from nano.tts_size import EncoderSize
from nano.tts_weights import VOICES
from voxtral_pipes.config import GUIDANCE, CodecConfig, TtsConfig
from voxtral_pipes.models.codes import CODE_OFFSET, END_AUDIO

COMMITMENT, BOOK_DECAY = 0.25, 0.95
LATENT_NOISE = 0.08
"""About a level and a half of what is rounded, added in half of the stretches."""
DROPPED = 0.12
"""Frames whose flow is learnt without a condition, for guidance."""
JITTER, HIDDEN_FRAMES = 0.3, 0.1
"""Codes fed back that are off by a level, and frames fed back whose semantic code is drawn."""
CODED = 64
"""Utterances that are encoded at once."""
DROPOUT = 0.15
"""Of what each half of a layer of the backbone adds."""
TIMES = 2
"""Times at which the flow of each frame is learnt, besides the first one."""
SEMANTIC = 0.05
"""What a semantic code counts beside the squared error of acoustic values: the codec hears little of it."""

Weights = Mapping[str, Tensor]
_IGNORED = -100


@dataclass(frozen=True, slots=True)
class CodecPhase:
    """Encoder, quantisers and decoder, end to end."""

    config: CodecConfig
    size: EncoderSize

    def loss(
        self, weights: Weights, samples: Tensor, draw: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what to minimise and its parts; moves the codebook."""
        device = samples.device
        latents = tts_codec.encode(weights, self.config, self.size, samples)
        shape = (*latents.shape[:2], self.config.acoustic_dim)
        noise = LATENT_NOISE * torch.randn(shape, generator=draw, device=device)
        noise = noise * (torch.rand(len(latents), 1, 1, generator=draw, device=device) < 0.5)
        quantised = tts_codec.quantise(weights, self.config, latents, noise)
        made = tts_codec.decode(weights, self.config, quantised.latents)
        terms = wave_losses(made, samples)
        died = tts_codec.update_book(weights, quantised, BOOK_DECAY, draw)
        terms |= {"commitment": quantised.commitment, "dead": died.float()}
        loss = terms["total"] + COMMITMENT * quantised.commitment
        return loss, {name: term.detach() for name, term in terms.items()}

    @torch.no_grad()
    def score(self, weights: Weights, samples: Tensor) -> dict[str, float]:
        """Return the parts of the loss through real codes, and how many entries they use."""
        latents = tts_codec.encode(weights, self.config, self.size, samples)
        quantised = tts_codec.quantise(weights, self.config, latents, None)
        terms = wave_losses(tts_codec.decode(weights, self.config, quantised.latents), samples)
        used = len(quantised.chosen.unique())
        return {name: float(value) for name, value in terms.items()} | {"entries": float(used)}


@torch.no_grad()
def coded(
    weights: Weights,
    config: CodecConfig,
    size: EncoderSize,
    speech: Speech,
    split: str,
    device: torch.device,
    changed: int = 0,
) -> list[Line]:
    """Encode all utterances of a split, the shortest first; each also changed in so many ways.

    A synthetic voice says a text always in the same way: its codes could be learnt by heart without the text.
    """
    chosen = sorted((one for one in speech.utterances if one.split == split), key=lambda one: one.samples)
    lines = []
    for copy in range(1 + changed):
        lines += _coded_once(weights, config, size, speech, chosen, device, copy)
    return sorted(lines, key=lambda line: len(line.codes))


def _coded_once(
    weights: Weights,
    config: CodecConfig,
    size: EncoderSize,
    speech: Speech,
    chosen: Sequence[Utterance],
    device: torch.device,
    copy: int,
) -> list[Line]:
    draw = np.random.default_rng(copy)
    lines = []
    for at in range(0, len(chosen), CODED):
        some = chosen[at : at + CODED]
        audio = [speech.audio(one) for one in some]
        if copy:
            audio = [changed_sound(one, config.frame_samples, draw) for one in audio]
        # Side by side, filled up behind: the encoder is causal.
        sounds = [padded(one, config.frame_samples) for one in audio]
        samples = pad_sequence(sounds, batch_first=True).to(device)
        codes = tts_codec.codes_of(weights, config, tts_codec.encode(weights, config, size, samples)).cpu()
        lines += [
            Line(one.text, speech.voice(one), row[: len(sound) // config.frame_samples].short())
            for one, sound, row in zip(some, sounds, codes, strict=True)
        ]
    return lines


@dataclass(frozen=True, slots=True)
class SpeechPhase:
    """Backbone and flow head, fed with the right codes."""

    config: TtsConfig

    def loss(
        self, weights: Weights, batch: Batch, seed: int, *, noisy: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what to minimise and its parts."""
        device = batch.ids.device
        draw = torch.Generator(device).manual_seed(seed)
        torch.manual_seed(seed)  # of dropout
        fed = batch.codes
        if noisy:
            fed = self._noisy(self.own_codes(weights, batch, draw), draw)
        read = self._hidden(weights, batch, fed, DROPOUT if noisy else 0.0)
        logits = tts_forward.semantic_logits(weights, read)
        at = torch.arange(read.shape[1], device=device)
        wanted = F.pad(batch.codes[..., 0], (0, 1)).masked_fill(at == batch.lengths[:, None], END_AUDIO)
        there = at <= batch.lengths[:, None]
        wanted = wanted.masked_fill(~there, _IGNORED)
        semantic = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=_IGNORED)
        best = logits.argmax(dim=-1)
        ends, others = wanted == END_AUDIO, there & (wanted != END_AUDIO)
        hidden_frames = read[:, :-1].flatten(0, 1)[batch.spoken]
        flow = self.flow_loss(weights, hidden_frames, batch.codes[..., 1:].flatten(0, 1)[batch.spoken], draw)
        terms = {
            "semantic": semantic, "flow": flow, "accuracy": (best == wanted).sum() / there.sum(),
            "ends_found": ((best == wanted) & ends).sum() / ends.sum(),
            "ends_false": ((best == END_AUDIO) & others).sum() / others.sum(),
        }  # fmt: skip
        return flow + SEMANTIC * semantic, {name: term.detach() for name, term in terms.items()}

    def _hidden(self, weights: Weights, batch: Batch, fed: Tensor, dropout: float) -> Tensor:
        """Return the hidden states that frames are read from, [B, n + 1, dim]."""
        hidden = tts_forward.backbone(
            weights, self.config.backbone, batch.ids, weights[VOICES][batch.voice], fed, batch.frame, dropout
        )
        return hidden.gather(1, batch.reads[..., None].expand(-1, -1, hidden.shape[-1]))

    @torch.no_grad()
    def own_codes(self, weights: Weights, batch: Batch, draw: torch.Generator) -> Tensor:
        """Put what the model makes itself, one frame at a time, in place of some of the right codes.

        Fed with the right codes alone it would not know what to do with its own (Mihaylova and Martins, "Scheduled
        sampling for transformers", arXiv:1906.07651).  In a quarter of the utterances none are
        replaced, in an eighth all.
        """
        config, device = self.config.flow, batch.codes.device
        read = self._hidden(weights, batch, batch.codes, DROPOUT)[:, :-1]
        semantic = tts_forward.semantic_logits(weights, read).argmax(dim=-1)
        spoken = (semantic >= CODE_OFFSET) & (semantic < CODE_OFFSET + config.semantic_size)
        semantic = torch.where(spoken, semantic, batch.codes[..., 0])
        rows = read.flatten(0, 1)
        x = torch.randn(len(rows), config.acoustic_dim, generator=draw, device=device)
        start = torch.zeros(len(rows), device=device)
        free, guided = (
            tts_forward.velocity(
                weights, config, x, start, rows, torch.full_like(start, kept, dtype=torch.bool)
            )
            for kept in (False, True)
        )
        values = x + GUIDANCE * guided + (1 - GUIDANCE) * free
        acoustic = tts_codec.levels(config.acoustic_levels, values).view(*read.shape[:2], -1) + CODE_OFFSET
        own = torch.cat((semantic[..., None], acoustic), dim=-1)
        share = (1.6 * torch.rand(len(own), 1, generator=draw, device=device) - 0.4).clamp(0, 1)
        taken = torch.rand(own.shape[:2], generator=draw, device=device) < share
        return torch.where(taken[..., None], own, batch.codes)

    def flow_loss(self, weights: Weights, hidden: Tensor, codes: Tensor, draw: torch.Generator) -> Tensor:
        """Learn to flow from any noise to the mean of what may follow, not to one of it.

        So small a head blurs samples; the mean is clear.  At time 0 the noise tells nothing of the target, so that
        what is learnt there is the mean; later times are learnt on the straight line to where that leads.
        """
        half = (self.config.flow.acoustic_levels - 1) / 2
        target = (codes - CODE_OFFSET).float() / half - 1
        noise = torch.randn(target.shape, generator=draw, device=target.device)
        kept = torch.rand(len(target), generator=draw, device=target.device) >= DROPPED
        made = tts_forward.velocity(
            weights, self.config.flow, noise, torch.zeros_like(noise[:, 0]), hidden, kept
        )
        losses = [(made - (target - noise)).square().mean()]
        for _ in range(TIMES):
            times = torch.rand(len(target), generator=draw, device=target.device)
            x = noise + times[:, None] * made.detach()
            later = tts_forward.velocity(weights, self.config.flow, x, times, hidden, kept)
            losses.append((later - (target - noise)).square().mean())
        return torch.stack(losses).mean()

    def _noisy(self, codes: Tensor, draw: torch.Generator) -> Tensor:
        """Change some of the codes that are fed, for those that the model makes itself are not the right ones."""
        flow, device, frames = self.config.flow, codes.device, codes.shape[:2]
        off = torch.randint(0, 2, codes.shape, generator=draw, device=device) * 2 - 1
        off = off * (torch.rand(codes.shape, generator=draw, device=device) < JITTER)
        moved = (codes + off).clamp(CODE_OFFSET, CODE_OFFSET + flow.acoustic_levels - 1)
        drawn = torch.randint(0, flow.semantic_size, frames, generator=draw, device=device) + CODE_OFFSET
        hidden = torch.rand(frames, generator=draw, device=device) < HIDDEN_FRAMES
        semantic = torch.where(hidden, drawn, codes[..., 0])
        return torch.cat((semantic[..., None], moved[..., 1:]), dim=-1)

    @torch.no_grad()
    def score(self, weights: Weights, batches: Sequence[Batch]) -> dict[str, float]:
        """Return the mean parts of the loss over batches, codes fed as they are."""
        scores = [self.loss(weights, batch, 0, noisy=False)[1] for batch in batches]
        return {name: math.fsum(float(one[name]) for one in scores) / len(scores) for name in scores[0]}
