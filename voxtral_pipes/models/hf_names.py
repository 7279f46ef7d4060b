"""Translate tensor names of transformers' layout into Mistral's, in both spellings (asr.md section 14)."""

from __future__ import annotations

import re

from voxtral_pipes.models.hyperparameters import EMBEDDINGS, ENCODER

# Published: language_model.model.; in memory: model.language_model.; save_pretrained of transformers 5.17
# writes language_model.model.model.
_TEXT = re.compile(r"(?:model\.)?language_model\.(?:model\.){0,2}(.+)")
_SOUND = re.compile(r"(?:model\.)?audio_tower\.(.+)")
_ADAPTER = re.compile(r"(?:model\.)?multi_modal_projector\.(.+)")
_LAYER = re.compile(r"layers\.(\d+)\.(.+?)\.(weight|bias)")

_ADAPTER_NAMES = {"linear_1.weight": "0.weight", "linear_2.weight": "2.weight"}
_SOUND_NAMES = {
    "embedder.conv1.weight": "conv_layers.0.conv.weight",
    "embedder.conv1.bias": "conv_layers.0.conv.bias",
    "embedder.conv2.weight": "conv_layers.1.conv.weight",
    "embedder.conv2.bias": "conv_layers.1.conv.bias",
    "norm.weight": "transformer.norm.weight",
}
_SHARED_LAYER = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}
_SOUND_LAYER = _SHARED_LAYER | {
    "self_attn_layer_norm": "attention_norm",
    "final_layer_norm": "ffn_norm",  # of that layer's feed-forward, in spite of its name
}
_TEXT_LAYER = _SHARED_LAYER | {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "ada_rms_norm.linear1": "ada_rms_norm_t_cond.0",
    "ada_rms_norm.linear2": "ada_rms_norm_t_cond.2",
}


def mistral_name(name: str) -> str | None:
    """Return Mistral's name of a tensor, or None for one that is not used, as a copy of the tied head."""
    if match := _SOUND.fullmatch(name):
        inner = _SOUND_NAMES.get(match[1])
        if inner is None:
            inner = _layer(match[1], "transformer.layers.", _SOUND_LAYER)
        return None if inner is None else ENCODER + inner
    if match := _ADAPTER.fullmatch(name):
        inner = _ADAPTER_NAMES.get(match[1])
        return None if inner is None else f"{EMBEDDINGS}audio_language_projection.{inner}"
    if match := _TEXT.fullmatch(name):
        if match[1] == "embed_tokens.weight":
            return EMBEDDINGS + "tok_embeddings.weight"
        return "norm.weight" if match[1] == "norm.weight" else _layer(match[1], "layers.", _TEXT_LAYER)
    return None


def _layer(inner: str, prefix: str, names: dict[str, str]) -> str | None:
    match = _LAYER.fullmatch(inner)
    if match is None or match[2] not in names:
        return None
    return f"{prefix}{match[1]}.{names[match[2]]}.{match[3]}"


def hf_name(name: str) -> str:
    """Return the published on-disk name in transformers' layout of a tensor with Mistral's `name`.

    Raises:
        KeyError: there is no such tensor.
    """
    if name.startswith(ENCODER):
        inner = name[len(ENCODER) :]
        for theirs, ours in _SOUND_NAMES.items():
            if ours == inner:
                return f"audio_tower.{theirs}"
        return f"audio_tower.{_hf_layer(inner.removeprefix('transformer.'), _SOUND_LAYER)}"
    if name.startswith(EMBEDDINGS + "audio_language_projection."):
        number = name[len(EMBEDDINGS + "audio_language_projection.") :]
        back = {ours: theirs for theirs, ours in _ADAPTER_NAMES.items()}
        return f"multi_modal_projector.{back[number]}"
    if name == EMBEDDINGS + "tok_embeddings.weight":
        return "language_model.model.embed_tokens.weight"
    if name == "norm.weight":
        return "language_model.model.norm.weight"
    return f"language_model.model.{_hf_layer(name, _TEXT_LAYER)}"


def _hf_layer(inner: str, names: dict[str, str]) -> str:
    match = _LAYER.fullmatch(inner)
    if match is None:
        raise KeyError(inner)
    back = {ours: theirs for theirs, ours in names.items()}
    return f"layers.{match[1]}.{back[match[2]]}.{match[3]}"
