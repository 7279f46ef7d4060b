"""transformers' Voxtral Realtime model with given weights: code we did not write, to compare with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from asr_models import random_tensors
from transformers import VoxtralRealtimeConfig, VoxtralRealtimeForConditionalGeneration

from voxtral_pipes.config import AsrConfig
from voxtral_pipes.models.shapes import decoder_shapes, encoder_shapes

ROOT = "mm_streams_embeddings.embedding_module."
PROJECTIONS = {"wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "o_proj"}
FEED_FORWARD = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


def reference_config(config: AsrConfig) -> VoxtralRealtimeConfig:
    """Say the same hyperparameters in transformers' words."""
    enc, dec = config.encoder, config.decoder
    return VoxtralRealtimeConfig(
        audio_config={
            "hidden_size": enc.dim, "intermediate_size": enc.hidden_dim, "num_hidden_layers": enc.n_layers,
            "num_attention_heads": enc.n_heads, "head_dim": enc.head_dim, "num_mel_bins": enc.n_mels,
            "sliding_window": enc.window, "rms_norm_eps": enc.norm_eps,
            "rope_parameters": {"rope_theta": enc.rope_theta, "rope_type": "default"},
        },
        text_config={
            "hidden_size": dec.dim, "intermediate_size": dec.hidden_dim, "num_hidden_layers": dec.n_layers,
            "num_attention_heads": dec.n_heads, "num_key_value_heads": dec.n_kv_heads, "head_dim": dec.head_dim,
            "sliding_window": dec.window, "vocab_size": dec.vocab_size, "rms_norm_eps": dec.norm_eps,
            "rope_parameters": {"rope_theta": dec.rope_theta, "rope_type": "default"}, "tie_word_embeddings": True,
        },
    )  # fmt: skip


def half_split(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Reorder the rows of q or k from Mistral's pairs to transformers' halves (asr.md section 10)."""
    heads = weight.shape[0] // head_dim
    return weight.reshape(heads, head_dim // 2, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _layer(
    tensors: Mapping[str, torch.Tensor], prefix: str, target: str, head_dim: int
) -> dict[str, torch.Tensor]:
    renamed = {}
    for ours, theirs in PROJECTIONS.items():
        for kind in ("weight", "bias"):
            tensor = tensors.get(f"{prefix}attention.{ours}.{kind}")
            if tensor is not None:
                renamed[f"{target}self_attn.{theirs}.{kind}"] = (
                    half_split(tensor, head_dim) if ours in ("wq", "wk") else tensor
                )
    for ours, theirs in FEED_FORWARD.items():
        for kind in ("weight", "bias"):
            if (tensor := tensors.get(f"{prefix}feed_forward.{ours}.{kind}")) is not None:
                renamed[f"{target}mlp.{theirs}.{kind}"] = tensor
    return renamed


def as_state_dict(tensors: Mapping[str, torch.Tensor], config: AsrConfig) -> dict[str, torch.Tensor]:
    """Rename Mistral tensors to transformers' module names, written here a second time on purpose."""
    audio, text = "model.audio_tower.", "model.language_model."
    state = {
        f"{audio}norm.weight": tensors[f"{ROOT}whisper_encoder.transformer.norm.weight"],
        "model.multi_modal_projector.linear_1.weight": tensors[f"{ROOT}audio_language_projection.0.weight"],
        "model.multi_modal_projector.linear_2.weight": tensors[f"{ROOT}audio_language_projection.2.weight"],
        f"{text}embed_tokens.weight": tensors[f"{ROOT}tok_embeddings.weight"],
        "lm_head.weight": tensors[f"{ROOT}tok_embeddings.weight"],
        f"{text}norm.weight": tensors["norm.weight"],
    }
    for i in range(2):
        for kind in ("weight", "bias"):
            state[f"{audio}embedder.conv{i + 1}.{kind}"] = tensors[
                f"{ROOT}whisper_encoder.conv_layers.{i}.conv.{kind}"
            ]
    for i in range(config.encoder.n_layers):
        prefix, target = f"{ROOT}whisper_encoder.transformer.layers.{i}.", f"{audio}layers.{i}."
        state |= _layer(tensors, prefix, target, config.encoder.head_dim)
        state[f"{target}self_attn_layer_norm.weight"] = tensors[f"{prefix}attention_norm.weight"]
        state[f"{target}final_layer_norm.weight"] = tensors[f"{prefix}ffn_norm.weight"]
    for i in range(config.decoder.n_layers):
        prefix, target = f"layers.{i}.", f"{text}layers.{i}."
        state |= _layer(tensors, prefix, target, config.decoder.head_dim)
        state[f"{target}input_layernorm.weight"] = tensors[f"{prefix}attention_norm.weight"]
        state[f"{target}post_attention_layernorm.weight"] = tensors[f"{prefix}ffn_norm.weight"]
        for ours, theirs in ((0, "linear1"), (2, "linear2")):
            state[f"{target}ada_rms_norm.{theirs}.weight"] = tensors[
                f"{prefix}ada_rms_norm_t_cond.{ours}.weight"
            ]
    return state


def reference_of(
    config: AsrConfig, encoder_seed: int = 1, decoder_seed: int = 2
) -> VoxtralRealtimeForConditionalGeneration:
    """Return transformers' model with the weights that asr_models draws, float32."""
    tensors = {
        **random_tensors(encoder_shapes(config), encoder_seed),
        **random_tensors(decoder_shapes(config), decoder_seed),
    }
    model = VoxtralRealtimeForConditionalGeneration(reference_config(config)).float().eval()
    model.load_state_dict(as_state_dict(tensors, config), strict=True)
    return model
