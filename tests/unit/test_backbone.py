"""The speech backbone against transformers' Mistral, and its embeddings against their definition."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from reference_models import half_split
from transformers import MistralConfig, MistralModel
from tts_models import SMALL_BACKBONE, random_codes_of, random_rows, random_tensors

from voxtral_pipes.config import BackboneConfig
from voxtral_pipes.models.backbone import Backbone, code_offsets
from voxtral_pipes.models.tts_shapes import CODE_TABLE, TEXT_TABLE, backbone_shapes

PLACEHOLDER = 24
C = SMALL_BACKBONE
NAMES = {
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


def tensors() -> dict[str, torch.Tensor]:
    return random_tensors(backbone_shapes(C))


@cache
def backbone() -> Backbone:
    return Backbone.of(dict(tensors()), C)


@cache
def reference() -> Any:
    """Mistral in transformers: the same function, with half-split rotary rows."""
    config = MistralConfig(
        hidden_size=C.dim, intermediate_size=C.hidden_dim, num_hidden_layers=C.n_layers, vocab_size=C.vocab_size,
        num_attention_heads=C.n_heads, num_key_value_heads=C.n_kv_heads, head_dim=C.head_dim, sliding_window=None,
        rms_norm_eps=C.norm_eps, rope_parameters={"rope_theta": C.rope_theta, "rope_type": "default"},
    )  # fmt: skip
    ours = tensors()
    state = {"embed_tokens.weight": ours[TEXT_TABLE], "norm.weight": ours["norm.weight"]}
    for i in range(C.n_layers):
        for name, theirs in NAMES.items():
            weight = ours[f"layers.{i}.{name}.weight"]
            if name in ("attention.wq", "attention.wk"):
                weight = half_split(weight, C.head_dim)
            state[f"layers.{i}.{theirs}.weight"] = weight
    model = MistralModel(config).float().eval()
    model.load_state_dict(state, strict=True)
    return model


def prompt() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([1, 25, *[PLACEHOLDER] * 9, 36, 200, 201, 202, 35, 25])
    return ids, random_rows(9, C.dim, 5)


def test_hidden_states_equal_mistral_in_transformers() -> None:
    """tts.md section 14: 5e-6; prefill in one pass, then one frame after another."""
    model, (ids, voice) = backbone(), prompt()
    codes = random_codes_of(C.semantic_size, C.acoustic_levels, C.acoustic_dim, 30)
    start, frames = model.embed_prompt(ids, voice, PLACEHOLDER), model.embed_codes(codes)
    state = model.new_state(len(ids) + 30)
    hidden, state = model.step(state, start)
    rows = [hidden]
    for frame in range(30):
        hidden, state = model.step(state, frames[:, frame : frame + 1])
        rows.append(hidden)
    with torch.no_grad():
        expected = reference()(inputs_embeds=torch.cat((start, frames), 1)).last_hidden_state[
            0, len(ids) - 1 :
        ]
    torch.testing.assert_close(torch.cat(rows), expected, atol=5e-6 * float(expected.abs().max()), rtol=0)


def test_the_voice_takes_the_place_of_its_placeholders() -> None:
    ids, voice = prompt()
    x = backbone().embed_prompt(ids, voice, PLACEHOLDER)[0]
    assert torch.equal(x[2:11], voice)
    assert torch.equal(x[11:], tensors()[TEXT_TABLE][ids[11:]])
    with pytest.raises(ValueError, match="9 placeholders"):
        backbone().embed_prompt(ids, voice[:8], PLACEHOLDER)


def test_a_frame_is_the_sum_of_its_rows() -> None:
    """tts.md section 7: codebook 0 at 0, then 23 rows each from semantic_size + 2 on."""
    codes = random_codes_of(C.semantic_size, C.acoustic_levels, C.acoustic_dim, 3)
    table = tensors()[CODE_TABLE]
    for frame, row in zip(codes[0], backbone().embed_codes(codes)[0], strict=True):
        expected = table[frame[0]].clone()
        for k in range(1, 1 + C.acoustic_dim):
            expected += table[C.semantic_size + 2 + 23 * (k - 1) + frame[k]]
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=0)
    published = code_offsets(BackboneConfig())
    assert published[:3].tolist() == [0, 8194, 8217] and int(published[-1]) + 23 == 9022


def test_a_state_has_an_end() -> None:
    ids, voice = prompt()
    model = backbone()
    state = model.new_state(len(ids) + 1)
    x = model.embed_prompt(ids, voice, PLACEHOLDER)
    _, state = model.step(state, x)
    _, state = model.step(state, x[:, :1])
    with pytest.raises(ValueError, match="made for 18"):
        model.step(state, x[:, :1])


def test_the_published_shapes_add_up() -> None:
    """tts.md section 12."""
    shapes = backbone_shapes(BackboneConfig())
    assert len(shapes) == 237
    assert shapes[CODE_TABLE] == (9088, 3072)
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    assert total == 3_026_353_152 + 402_653_184 + 27_918_336
