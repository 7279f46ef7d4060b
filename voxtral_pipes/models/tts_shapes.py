"""Names and shapes of all tensors of a TTS model, from its hyperparameters (tts.md section 11).

No import of numpy or torch.
"""

from __future__ import annotations

from collections.abc import Collection

from voxtral_pipes.config import BackboneConfig, CodecConfig, FlowConfig, TtsConfig
from voxtral_pipes.models.codes import CODE_OFFSET
from voxtral_pipes.models.shapes import Shape, block_shapes

EMBEDDINGS = "mm_audio_embeddings."
TEXT_TABLE = f"{EMBEDDINGS}tok_embeddings.weight"
CODE_TABLE = f"{EMBEDDINGS}audio_codebook_embeddings.embeddings.weight"
FLOW = "acoustic_transformer."
CODEC = "audio_tokenizer."
BOOK = f"{CODEC}quantizer.semantic_codebook."

ALIGNED = 128
"""Rows of the code table and of the semantic head are padded to a multiple of this; the padding means nothing."""
FIRST_KERNEL, UP_KERNEL, OUT_KERNEL = 3, 4, 7


def _padded(rows: int) -> int:
    return -(-rows // ALIGNED) * ALIGNED


def backbone_shapes(config: BackboneConfig) -> dict[str, Shape]:
    """Return name and shape of every tensor of `vx-backbone`: both tables, layers, final norm."""
    codes = config.semantic_size + CODE_OFFSET + config.acoustic_dim * (config.acoustic_levels + CODE_OFFSET)
    shapes: dict[str, Shape] = {
        TEXT_TABLE: (config.vocab_size, config.dim),
        CODE_TABLE: (_padded(codes), config.dim),
    }
    widths = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    for i in range(config.n_layers):
        shapes |= block_shapes(f"layers.{i}.", config.dim, *widths, config.hidden_dim)
    shapes["norm.weight"] = (config.dim,)
    return shapes


def flow_shapes(config: FlowConfig) -> dict[str, Shape]:
    """Return name and shape of every tensor of `vx-flow`: projections, both heads, layers, final norm."""
    shapes: dict[str, Shape] = {
        f"{FLOW}input_projection.weight": (config.dim, config.acoustic_dim),
        f"{FLOW}time_projection.weight": (config.dim, config.dim),
        f"{FLOW}llm_projection.weight": (config.dim, config.input_dim),
        f"{FLOW}semantic_codebook_output.weight": (
            _padded(config.semantic_size + CODE_OFFSET),
            config.input_dim,
        ),
        f"{FLOW}acoustic_codebook_output.weight": (config.acoustic_dim, config.dim),
        f"{FLOW}norm.weight": (config.dim,),
    }
    widths = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    for i in range(config.n_layers):
        shapes |= block_shapes(f"{FLOW}layers.{i}.", config.dim, *widths, config.hidden_dim)
    return shapes


def conv_names(config: CodecConfig) -> list[str]:
    """Return the names of the codec's convolutions, in order; `.weight` or its parametrisation comes behind."""
    blocks = [f"{CODEC}decoder_blocks.{2 * i}.conv" for i in range(len(config.stage_layers))]
    return [*blocks, f"{CODEC}output_proj.conv"]


def gain_and_direction(conv: str) -> tuple[str, str]:
    """Return the names of g and v of a convolution whose weight is g v / |v|."""
    return f"{conv}.parametrizations.weight.original0", f"{conv}.parametrizations.weight.original1"


def codec_shapes(config: CodecConfig, names: Collection[str] = ()) -> dict[str, Shape]:
    """Return name and shape of every tensor of `vx-codec`.

    Weight norm is parametrised, as released, but for the convolutions whose folded weight is among `names`.
    """
    latent, width = config.semantic_dim + config.acoustic_dim, config.n_heads * config.head_dim
    shapes: dict[str, Shape] = {
        f"{BOOK}embedding_sum": (config.semantic_size, config.semantic_dim),
        f"{BOOK}cluster_usage": (config.semantic_size,),
    }
    first, *ups, out = conv_names(config)
    convs: dict[str, Shape] = {first: (config.dim, latent, FIRST_KERNEL)}
    convs |= dict.fromkeys(ups, (config.dim, config.dim, UP_KERNEL))
    convs[out] = (config.patch_samples, config.dim, OUT_KERNEL)
    for name, shape in convs.items():
        if f"{name}.weight" in names:
            shapes[f"{name}.weight"] = shape
        else:
            gain, direction = gain_and_direction(name)
            shapes |= {gain: (shape[0], 1, 1), direction: shape}
    for stage, count in enumerate(config.stage_layers):
        for i in range(count):
            layer = f"{CODEC}decoder_blocks.{2 * stage + 1}.layers.{i}."
            shapes |= block_shapes(layer, config.dim, width, width, config.hidden_dim)
            shapes |= {f"{layer}attention.{name}.weight": (width,) for name in ("q_norm", "k_norm")}
            shapes |= {f"{layer}{name}": (config.dim,) for name in ("attention_scale", "ffn_scale")}
    return shapes


def tts_shapes(config: TtsConfig, names: Collection[str] = ()) -> dict[str, Shape]:
    """Return name and shape of every tensor of a model (see `codec_shapes` for `names`)."""
    return backbone_shapes(config.backbone) | flow_shapes(config.flow) | codec_shapes(config.codec, names)
