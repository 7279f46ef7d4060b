"""Read the hyperparameters of a TTS model: params.json, or the shapes of a bare GGUF.

No import of numpy or torch.  Spec: tts.md sections 2 and 9; formats.md section 2; design.md section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from voxtral_pipes.config import (
    MAX_EULER_STEPS,
    TTS_RATE_HZ,
    BackboneConfig,
    CodecConfig,
    FlowConfig,
    TtsConfig,
    exact_div,
)
from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.settings import Settings
from voxtral_pipes.models.codes import CODE_OFFSET, MAX_CODEBOOKS
from voxtral_pipes.models.hyperparameters import MAX_LAYERS, stack_sizes
from voxtral_pipes.models.table_shapes import TableShapes
from voxtral_pipes.models.tts_shapes import (
    BOOK,
    CODEC,
    FIRST_KERNEL,
    FLOW,
    OUT_KERNEL,
    TEXT_TABLE,
    UP_KERNEL,
    conv_names,
    gain_and_direction,
)

ENCODER_STRIDES = "2,2,2,1"
"""Of the codec's encoder, which is not released; its halvings of the window are what the decoder begins with."""
MAX_CODES = (1 << 16) - CODE_OFFSET
"""Of one codebook: they travel as 16 bits."""


def from_params(path: Path) -> TtsConfig:
    """Read Mistral's params.json: backbone at top level, flow head and codec under `multimodal`.

    Raises:
        BadModelError: a field is missing, malformed, or asks for a computation that is not implemented.
    """
    top = Settings.read(path)
    multimodal = top.section("multimodal")
    if multimodal.has("whisper_model_args") and not multimodal.has("audio_model_args"):
        raise top.fail(
            "multimodal", "describes a speech recognition model (voxtral-asr), not a synthesis model"
        )
    top.expect("model_type", "voxtral_tts")
    if top.has("sliding_window"):
        raise top.fail("sliding_window", "is set; a backbone with a window is not supported")
    audio = multimodal.section("audio_model_args")
    audio.expect("input_embedding_concat_type", "sum")
    if audio.has("audio_encoding_args"):
        audio.section("audio_encoding_args").expect("codebook_pattern", "parallel")
    semantic, levels = (
        audio.integer("semantic_codebook_size"),
        audio.integer("acoustic_codebook_size", least=2),
    )
    width = audio.integer("n_acoustic_codebook")
    backbone = BackboneConfig(
        **stack_sizes(top),
        rope_theta=top.positive("rope_theta"),
        norm_eps=top.positive("norm_eps"),
        vocab_size=top.integer("vocab_size"),
        semantic_size=semantic,
        acoustic_dim=width,
        acoustic_levels=levels,
        max_positions=top.integer("max_seq_len", BackboneConfig().max_positions),
    )
    args = audio.section("acoustic_transformer_args")
    args.expect("use_biases", False)
    published = FlowConfig()
    flow = FlowConfig(
        input_dim=args.integer("input_dim"),
        **stack_sizes(args),
        norm_eps=args.positive("norm_eps", published.norm_eps),
        semantic_size=semantic,
        acoustic_dim=width,
        acoustic_levels=levels,
        steps=args.integer("n_decoding_steps", published.steps, most=MAX_EULER_STEPS),
    )
    return _checked(TtsConfig(backbone, flow, _codec(multimodal.section("audio_tokenizer_args"))), path.name)


def _codec(args: Settings) -> CodecConfig:
    for key, value in (
        ("channels", 1), ("patch_proj_kernel_size", OUT_KERNEL), ("conv_weight_norm", True), ("causal", True),
        ("qk_norm", True), ("use_biases", False), ("layer_scale", True), ("half_attn_window_upon_downsampling", True),
    ):  # fmt: skip
        args.expect(key, value)
    args.expect("n_kv_heads", args.integer("n_heads"))
    layers = _numbers(args, "decoder_transformer_lengths_str")
    doublings = len(layers) - 1
    for key, wanted in (
        ("decoder_convs_strides_str", [1] + [2] * doublings),
        ("decoder_convs_kernels_str", [FIRST_KERNEL] + [UP_KERNEL] * doublings),
    ):
        if _numbers(args, key) != wanted:
            raise args.fail(
                key, f"is {args.text(key)!r:.40}; only {','.join(map(str, wanted))!r} is supported"
            )
    window = args.integer("attn_sliding_window_size")
    for stride in _numbers(args, "encoder_convs_strides_str", ENCODER_STRIDES):
        window = window // 2 if stride > 1 else window
    return CodecConfig(
        rate_hz=args.integer("sampling_rate"),
        patch_samples=args.integer("pretransform_patch_size"),
        semantic_size=args.integer("semantic_codebook_size"),
        semantic_dim=args.integer("semantic_dim"),
        acoustic_levels=args.integer("acoustic_codebook_size", least=2),
        acoustic_dim=args.integer("acoustic_dim"),
        dim=args.integer("dim"),
        hidden_dim=args.integer("hidden_dim"),
        n_heads=args.integer("n_heads"),
        head_dim=args.integer("head_dim"),
        qk_norm_eps=args.positive("qk_norm_eps"),
        norm_eps=args.positive("norm_eps"),
        stage_layers=tuple(layers),
        first_window=max(window, 1),
    )


def _numbers(args: Settings, key: str, default: str | None = None) -> list[int]:
    """Read whole numbers that are written as "2,2,2"."""
    text = default if default is not None and not args.has(key) else args.text(key)
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or len(numbers) > 8 or not all(0 < number <= MAX_LAYERS for number in numbers):
        raise args.fail(key, f"is {text!r:.40}, not a list of small numbers such as '2,2,2,2'")
    return numbers


def from_shapes(shapes: Mapping[str, tuple[int, ...]], label: str) -> TtsConfig:
    """Derive what shapes tell (widths, layers, vocabulary, codebooks) and take the rest as published.

    Head sizes, windows, rope_theta, eps and the levels of the acoustic codebooks are not to be seen in them.

    Raises:
        BadModelError: a tensor that is needed for this is missing, or does not fit the published head sizes.
    """
    seen = TableShapes(shapes, label)
    published = TtsConfig()
    semantic = seen.size(f"{BOOK}embedding_sum", 0)
    width = seen.size(f"{FLOW}input_projection.weight", 1)
    backbone = BackboneConfig(
        dim=seen.size(TEXT_TABLE, 1),
        **seen.stack("layers.", published.backbone.head_dim),
        vocab_size=seen.size(TEXT_TABLE, 0),
        semantic_size=semantic,
        acoustic_dim=width,
    )
    flow = FlowConfig(
        input_dim=seen.size(f"{FLOW}llm_projection.weight", 1),
        dim=seen.size(f"{FLOW}llm_projection.weight", 0),
        **seen.stack(f"{FLOW}layers.", published.flow.head_dim),
        semantic_size=semantic,
        acoustic_dim=width,
    )
    return _checked(TtsConfig(backbone, flow, _codec_of(seen, published.codec)), label)


def _codec_of(seen: TableShapes, published: CodecConfig) -> CodecConfig:
    blocks = f"{CODEC}decoder_blocks."
    counts: list[int] = []
    while count := seen.layers(f"{blocks}{2 * len(counts) + 1}.layers."):
        counts.append(count)

    def conv(name: str, axis: int) -> int:
        folded = f"{name}.weight"
        return seen.size(folded if seen.has(folded) else gain_and_direction(name)[1], axis, 3)

    first, *_, out = conv_names(published)
    semantic_dim = seen.size(f"{BOOK}embedding_sum", 1)
    return CodecConfig(
        patch_samples=conv(out, 0),
        semantic_size=seen.size(f"{BOOK}embedding_sum", 0),
        semantic_dim=semantic_dim,
        acoustic_dim=conv(first, 1) - semantic_dim,
        dim=conv(first, 0),
        hidden_dim=seen.size(f"{blocks}1.layers.0.feed_forward.w1.weight", 0),
        n_heads=seen.heads(f"{blocks}1.layers.0.attention.wq.weight", published.head_dim),
        stage_layers=tuple(counts),
    )


def _checked(config: TtsConfig, label: str) -> TtsConfig:
    """Check what shapes cannot: that heads pair, that rotary halves exist, that the parts fit together."""
    backbone, flow, codec = config.backbone, config.flow, config.codec
    for name, part in (("backbone", backbone), ("flow head", flow)):
        exact_div(part.n_heads, part.n_kv_heads, f"{label}: query and key-value heads of the {name}")
    exact_div(backbone.head_dim, 2, f"{label}: backbone head size")
    exact_div(flow.dim, 2, f"{label}: flow head width")  # the time embedding is half cosines, half sines
    for what, ours, theirs in (
        ("flow head input and backbone width", flow.input_dim, backbone.dim),
        ("semantic codebook of codec and backbone", codec.semantic_size, backbone.semantic_size),
        ("acoustic codebooks of codec and backbone", codec.acoustic_dim, backbone.acoustic_dim),
        ("acoustic levels of codec and backbone", codec.acoustic_levels, backbone.acoustic_levels),
    ):
        if ours != theirs:
            raise BadModelError(f"{label}: {what} do not agree: {ours} and {theirs}")
    for what, ours, most in (
        ("entries of the semantic codebook", codec.semantic_size, MAX_CODES),
        ("levels of the acoustic codebooks", codec.acoustic_levels, MAX_CODES),
        ("codebooks", config.codebooks, MAX_CODEBOOKS),
    ):
        if ours > most:
            raise BadModelError(
                f"{label}: {ours} {what} are too many; {most} can be sent from stage to stage"
            )
    if codec.rate_hz != TTS_RATE_HZ:
        raise BadModelError(
            f"{label}: the codec speaks at {codec.rate_hz} Hz; only {TTS_RATE_HZ} Hz is supported"
        )
    if codec.frame_patches < OUT_KERNEL:
        # The first frame must hold what the last convolution sees mirrored before it (tts.md section 10).
        raise BadModelError(
            f"{label}: frames of the codec have {codec.frame_patches} patches; at least {OUT_KERNEL} are needed"
        )
    return config
