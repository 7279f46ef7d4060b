"""What trains the nano synthesis model computes what the commands compute, on random weights."""

from __future__ import annotations

import torch
from nano import tts_codec, tts_forward
from nano.tts_size import SMOKE, SMOKE_ENCODER
from nano.tts_weights import codec_weights, encoder_shapes, speech_weights
from tts_models import (
    CODEC_FRAMES,
    CODECS,
    FLOWS,
    SMALL_BACKBONE,
    flow_tensors,
    random_codes,
    random_codes_of,
    random_rows,
    random_tensors,
)

from voxtral_pipes.models.backbone import Backbone
from voxtral_pipes.models.codec import Codec
from voxtral_pipes.models.flow import Flow
from voxtral_pipes.models.layers import time_embedding
from voxtral_pipes.models.tts_shapes import backbone_shapes, codec_shapes, tts_shapes


def test_decoder_is_the_codec() -> None:
    for config in CODECS.values():
        tensors = random_tensors(codec_shapes(config))
        codes = random_codes(config, CODEC_FRAMES)
        codec = Codec.of(tensors, config)
        samples, _ = codec.step(codec.new_state(), codes)
        mine = tts_codec.decode(tensors, config, codec.latents(codes))
        assert (mine - samples).abs().max() < 2e-5
        assert (tts_codec.book(tensors) - codec.embedding).abs().max() < 1e-6


def test_backbone_is_the_backbone() -> None:
    config = SMALL_BACKBONE
    tensors = random_tensors(backbone_shapes(config))
    model = Backbone.of(tensors, config)
    rows, n_frames, placeholder = 4, 9, 24
    voice = random_rows(rows, config.dim, 5)
    ids = torch.tensor([1, 25, *[placeholder] * rows, 36, 70, 80, 90, 35, 25])
    codes = random_codes_of(config.semantic_size, config.acoustic_levels, config.acoustic_dim, n_frames)
    state = model.new_state(100)
    hidden, state = model.step(state, model.embed_prompt(ids, voice, placeholder))
    wanted = [hidden]
    for t in range(n_frames):
        hidden, state = model.step(state, codes[:, t : t + 1])
        wanted.append(hidden)
    padding = 3
    all_ids = torch.cat((ids, torch.zeros(n_frames + padding, dtype=torch.int64)))
    frame = torch.full_like(all_ids, -1)
    frame[len(ids) : len(ids) + n_frames] = torch.arange(n_frames)
    mine = tts_forward.backbone(tensors, config, all_ids[None], voice[None], codes, frame[None])
    got = mine[0, len(ids) - 1 : len(ids) + n_frames]
    assert (got - torch.cat(wanted)).abs().max() < 2e-5


def test_flow_is_the_flow() -> None:
    for config in FLOWS.values():
        tensors = flow_tensors(config)
        model = Flow.of(tensors, config)
        hidden, x = random_rows(6, config.input_dim, 1), random_rows(6, config.acoustic_dim, 2)
        both = torch.cat((x, x))
        for t in (0.0, 0.3, 6 / 7):
            token = model.time_projection(time_embedding(t, config.dim))
            wanted = model.velocity(both, token, model.condition(hidden))
            kept = torch.arange(12) < 6
            mine = tts_forward.velocity(
                tensors, config, both, torch.full((12,), t), torch.cat((hidden, hidden)), kept
            )
            assert (mine - wanted).abs().max() < 1e-5
        logits = tts_forward.semantic_logits(tensors, hidden)
        best = logits.masked_fill(model.forbidden[0], -torch.inf).argmax(dim=1)
        assert (best == model.semantic(hidden)).all()


def test_weights_are_those_of_the_checkpoint() -> None:
    codec = codec_weights(SMOKE.codec, SMOKE_ENCODER, 0)
    speech = speech_weights(SMOKE, 2, 3, 0)
    extra = set(encoder_shapes(SMOKE_ENCODER, SMOKE.codec))
    held = {name: tuple(t.shape) for name, t in {**codec, **speech}.items() if name not in extra}
    assert held.pop("training_voices") == (2, 3, SMOKE.backbone.dim)
    assert held == tts_shapes(SMOKE)


def test_codes_come_back_and_depend_on_what_was_heard_alone() -> None:
    config, weights = SMOKE.codec, codec_weights(SMOKE.codec, SMOKE_ENCODER, 0)
    samples = 0.3 * random_rows(1, 8 * config.frame_samples, 3)
    latents = tts_codec.encode(weights, config, SMOKE_ENCODER, samples)
    assert latents.shape == (1, 8, config.semantic_dim + config.acoustic_dim)
    codes = tts_codec.codes_of(weights, config, latents)
    quantised = tts_codec.quantise(weights, config, latents, None)
    assert (Codec.of(weights, config).latents(codes) - quantised.latents).abs().max() < 1e-5
    shorter = tts_codec.encode(weights, config, SMOKE_ENCODER, samples[:, : 5 * config.frame_samples])
    assert (shorter - latents[:, :5]).abs().max() < 1e-5
    acoustic = codes[..., 1:]
    assert int(acoustic.min()) >= 2 and int(acoustic.max()) <= 22 and len(acoustic.unique()) > 10


def test_gradients_go_through_the_rounding_and_dead_entries_begin_again() -> None:
    config, weights = SMOKE.codec, codec_weights(SMOKE.codec, SMOKE_ENCODER, 0)
    latents = random_rows(40, config.semantic_dim + config.acoustic_dim, 1)[None].requires_grad_()
    quantised = tts_codec.quantise(weights, config, latents, None)
    quantised.latents.sum().backward()
    assert latents.grad is not None and (latents.grad[..., : config.semantic_dim] == 1).all()
    assert (latents.grad[..., config.semantic_dim :] > 0).any()
    for _ in range(200):
        died = tts_codec.update_book(weights, quantised, 0.9, torch.Generator().manual_seed(1))
        quantised = tts_codec.quantise(weights, config, latents, None)
    assert died < config.semantic_size / 2 and len(quantised.chosen.unique()) > 15
    assert float(quantised.commitment.detach()) < 0.5
