"""Backbone and flow head as functions of their weights, batched and differentiable, fed with the right codes.

The same mathematics as `voxtral_pipes.models.backbone` and `.flow`, which step through streams and cannot be trained;
a test holds them together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from voxtral_pipes.config import BackboneConfig, FlowConfig
from voxtral_pipes.kernels.reference import rms_norm, rotate
from voxtral_pipes.models.backbone import code_offsets
from voxtral_pipes.models.cache import Rotary
from voxtral_pipes.models.layers import TIME_THETA
from voxtral_pipes.models.tts_shapes import CODE_TABLE, FLOW, TEXT_TABLE

Weights = Mapping[str, Tensor]


def backbone(
    weights: Weights,
    config: BackboneConfig,
    ids: Tensor,
    voice: Tensor,
    codes: Tensor,
    frame: Tensor,
    dropout: float = 0.0,
) -> Tensor:
    """Map what stands at each position to hidden states [B, L, dim].

    ids int64 [B, L], the prompts, anything behind; voice [B, N, dim], the rows at positions 2 to N + 1; codes int64
    [B, n, 37], offset included; frame int64 [B, L], the number of the frame at a position, -1 where there is none.
    """
    x = F.embedding(ids, weights[TEXT_TABLE])
    x = torch.cat((x[:, :2], voice.to(x.dtype), x[:, 2 + voice.shape[1] :]), dim=1)
    spoken = F.embedding(codes + code_offsets(config).to(codes.device), weights[CODE_TABLE]).sum(dim=2)
    places = frame.clamp(min=0)[..., None].expand(-1, -1, config.dim)
    x = torch.where((frame >= 0)[..., None], spoken.gather(1, places), x)
    turn = _turn(config.head_dim, config.rope_theta, x.shape[1], x.device)
    for i in range(config.n_layers):
        x = _block(weights, f"layers.{i}.", config, x, turn, dropout)
    return rms_norm(x, weights["norm.weight"], config.norm_eps)


def semantic_logits(weights: Weights, hidden: Tensor) -> Tensor:
    """Map hidden states [..., input_dim] to logits of semantic codes, padding included."""
    return F.linear(hidden, weights[f"{FLOW}semantic_codebook_output.weight"])


def velocity(
    weights: Weights, config: FlowConfig, x: Tensor, times: Tensor, hidden: Tensor, kept: Tensor
) -> Tensor:
    """Evaluate v: x [R, acoustic_dim] at times [R], hidden [R, input_dim] -> [R, acoustic_dim].

    Where `kept` [R] is false the condition is an exact zero.
    """
    condition = F.linear(hidden, weights[f"{FLOW}llm_projection.weight"])
    condition = torch.where(kept[:, None], condition, torch.zeros_like(condition))
    moved = F.linear(x, weights[f"{FLOW}input_projection.weight"])
    time = F.linear(time_embeddings(times, config.dim), weights[f"{FLOW}time_projection.weight"])
    y = torch.stack((moved, time.to(moved.dtype), condition.to(moved.dtype)), dim=1)
    for i in range(config.n_layers):
        y = _block(weights, f"{FLOW}layers.{i}.", config, y, None)
    y = rms_norm(y[:, 0], weights[f"{FLOW}norm.weight"], config.norm_eps)
    return F.linear(y, weights[f"{FLOW}acoustic_codebook_output.weight"]).float()


def time_embeddings(times: Tensor, dim: int) -> Tensor:
    """Return `layers.time_embedding` of each time, float32 [R, dim]."""
    steps = torch.arange(dim // 2, dtype=torch.float32, device=times.device)
    angles = times[:, None] * torch.exp(-math.log(TIME_THETA) * steps / (dim // 2))
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def _block(
    weights: Weights,
    layer: str,
    config: BackboneConfig | FlowConfig,
    x: Tensor,
    turn: Tensor | None,
    dropout: float = 0.0,
) -> Tensor:
    """Run one layer; causal and with positions where there is a `turn`."""
    n = rms_norm(x, weights[f"{layer}attention_norm.weight"], config.norm_eps)
    q, k, v = (
        F.linear(n, weights[f"{layer}attention.{name}.weight"]).unflatten(-1, (-1, config.head_dim))
        for name in ("wq", "wk", "wv")
    )
    if turn is not None:
        q, k = rotate(q, turn), rotate(k, turn)
    q, k, v = (part.transpose(1, 2).to(v.dtype) for part in (q, k, v))
    groups = config.n_heads // config.n_kv_heads
    k, v = (part.repeat_interleave(groups, dim=1) for part in (k, v))
    seen = F.scaled_dot_product_attention(q, k, v, is_causal=turn is not None)
    heard = F.linear(seen.transpose(1, 2).flatten(2), weights[f"{layer}attention.wo.weight"])
    x = x + F.dropout(heard, dropout)
    m = rms_norm(x, weights[f"{layer}ffn_norm.weight"], config.norm_eps)
    w1, w2, w3 = (weights[f"{layer}feed_forward.{name}.weight"] for name in ("w1", "w2", "w3"))
    return x + F.dropout(F.linear(F.silu(F.linear(m, w1)) * F.linear(m, w3), w2), dropout)


@lru_cache(64)
def _turn(head_dim: int, theta: float, steps: int, device: torch.device) -> Tensor:
    return Rotary(head_dim, theta).at(0, steps).to(device)
