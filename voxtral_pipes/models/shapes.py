"""Names and shapes of all tensors of an ASR model, from its hyperparameters (asr.md section 14).

Names are Mistral's.  No import of numpy or torch.
"""

from __future__ import annotations

import re

from voxtral_pipes.config import AsrConfig
from voxtral_pipes.models.hyperparameters import EMBEDDINGS, ENCODER

Shape = tuple[int, ...]

_ROTARY = re.compile(r"(.*\.)?layers\.\d+\.attention\.w[qk]\.(weight|bias)")


def is_rotary(name: str) -> bool:
    """Whether rotary position turns the rows, so that their order differs between layouts."""
    return _ROTARY.fullmatch(name) is not None


def encoder_shapes(config: AsrConfig) -> dict[str, Shape]:
    """Return name and shape of every tensor of `vx-encode`: stem, layers, final norm, adapter."""
    c, out_dim = config.encoder, config.decoder.dim
    shapes: dict[str, Shape] = {
        f"{ENCODER}conv_layers.0.conv.weight": (c.dim, c.n_mels, 3),
        f"{ENCODER}conv_layers.0.conv.bias": (c.dim,),
        f"{ENCODER}conv_layers.1.conv.weight": (c.dim, c.dim, 3),
        f"{ENCODER}conv_layers.1.conv.bias": (c.dim,),
    }
    width = c.n_heads * c.head_dim
    for i in range(c.n_layers):
        layer = f"{ENCODER}transformer.layers.{i}."
        shapes |= block_shapes(layer, c.dim, width, width, c.hidden_dim)
        shapes |= {f"{layer}attention.{name}.bias": (width,) for name in ("wq", "wv")}
        shapes |= {f"{layer}{name}.bias": (c.dim,) for name in ("attention.wo", "feed_forward.w2")}
    shapes[f"{ENCODER}transformer.norm.weight"] = (c.dim,)
    shapes[f"{EMBEDDINGS}audio_language_projection.0.weight"] = (out_dim, c.dim * c.downsample)
    shapes[f"{EMBEDDINGS}audio_language_projection.2.weight"] = (out_dim, out_dim)
    return shapes


def decoder_shapes(config: AsrConfig) -> dict[str, Shape]:
    """Return name and shape of every tensor of `vx-decode`: embedding (= head), layers, final norm."""
    c = config.decoder
    shapes: dict[str, Shape] = {f"{EMBEDDINGS}tok_embeddings.weight": (c.vocab_size, c.dim)}
    for i in range(c.n_layers):
        layer = f"layers.{i}."
        shapes |= block_shapes(layer, c.dim, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.hidden_dim)
        shapes[f"{layer}ada_rms_norm_t_cond.0.weight"] = (c.ada_dim, c.dim)
        shapes[f"{layer}ada_rms_norm_t_cond.2.weight"] = (c.dim, c.ada_dim)
    shapes["norm.weight"] = (c.dim,)
    return shapes


def block_shapes(layer: str, dim: int, q_width: int, kv_width: int, hidden: int) -> dict[str, Shape]:
    """Return names and shapes of one transformer layer without biases; `layer` is its prefix, dot included."""
    return {
        f"{layer}attention.wq.weight": (q_width, dim),
        f"{layer}attention.wk.weight": (kv_width, dim),
        f"{layer}attention.wv.weight": (kv_width, dim),
        f"{layer}attention.wo.weight": (dim, q_width),
        f"{layer}attention_norm.weight": (dim,),
        f"{layer}ffn_norm.weight": (dim,),
        f"{layer}feed_forward.w1.weight": (hidden, dim),
        f"{layer}feed_forward.w2.weight": (dim, hidden),
        f"{layer}feed_forward.w3.weight": (hidden, dim),
    }
