"""Read the hyperparameters of an ASR model: params.json, config.json, or the shapes of a bare GGUF.

No import of numpy or torch.  Spec: asr.md section 13; formats.md section 1; design.md section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from voxtral_pipes.config import AsrConfig, AudioConfig, DecoderConfig, EncoderConfig, exact_div
from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.settings import Settings
from voxtral_pipes.models.table_shapes import TableShapes

EMBEDDINGS = "mm_streams_embeddings.embedding_module."
ENCODER = EMBEDDINGS + "whisper_encoder."
MAX_LAYERS = 1000
"""A shape is listed for every layer that a settings file asks for: it must not ask for millions."""


def from_params(path: Path, audio: AudioConfig) -> AsrConfig:
    """Read Mistral's params.json: decoder fields at top level, encoder fields under `multimodal`.

    Raises:
        BadModelError: a field is missing, malformed, or asks for a computation that is not implemented.
    """
    top = Settings.read(path)
    whisper = _whisper(top)
    top.expect("tied_embeddings", True)
    top.expect("ada_rms_norm_t_cond", True)
    top.expect("causal", True)
    decoder = DecoderConfig(
        **stack_sizes(top),
        window=top.integer("sliding_window"),
        rope_theta=top.positive("rope_theta"),
        norm_eps=top.positive("norm_eps"),
        vocab_size=top.integer("vocab_size"),
        ada_dim=top.integer("ada_rms_norm_t_cond_dim", DecoderConfig().ada_dim),
    )
    args = whisper.section("encoder_args")
    for key, value in (
        ("causal", True),
        ("pos_embed", "rope"),
        ("ffn_type", "swiglu"),
        ("norm_type", "rms_norm"),
    ):
        args.expect(key, value)
    args.expect("n_kv_heads", args.integer("n_heads"))
    encoder = EncoderConfig(
        n_mels=args.section("audio_encoding_args").integer("num_mel_bins"),
        dim=args.integer("dim"),
        n_layers=args.integer("n_layers", most=MAX_LAYERS),
        n_heads=args.integer("n_heads"),
        head_dim=args.integer("head_dim"),
        hidden_dim=args.integer("hidden_dim"),
        window=args.integer("sliding_window"),
        rope_theta=args.positive("rope_theta"),
        norm_eps=args.positive("norm_eps"),
        downsample=whisper.section("downsample_args").integer("downsample_factor"),
    )
    return _checked(AsrConfig(audio, encoder, decoder), path.name)


def stack_sizes(section: Settings) -> dict[str, int]:
    """Read the sizes that every stack with grouped queries has under the same names."""
    return {
        "dim": section.integer("dim"),
        "n_layers": section.integer("n_layers", most=MAX_LAYERS),
        **{key: section.integer(key) for key in ("n_heads", "n_kv_heads", "head_dim", "hidden_dim")},
    }


def audio_encoding_args(path: Path) -> Settings:
    """Return `audio_encoding_args` of a params.json.

    Raises:
        BadModelError: the file is malformed, or is that of another kind of model.
    """
    return _whisper(Settings.read(path)).section("encoder_args").section("audio_encoding_args")


def _whisper(top: Settings) -> Settings:
    multimodal = top.section("multimodal")
    if multimodal.has("audio_model_args") and not multimodal.has("whisper_model_args"):
        raise top.fail(
            "multimodal", "describes a speech synthesis model (voxtral-tts), not a recognition model"
        )
    return multimodal.section("whisper_model_args")


def from_hf_config(path: Path, audio: AudioConfig) -> AsrConfig:
    """Read a config.json of transformers' `voxtral_realtime`, as published or as `save_pretrained` writes it.

    Raises:
        BadModelError: a field is missing, malformed, or asks for what is not implemented.  Class defaults of
            transformers are not guessed: the encoder's rope_theta has one that is not the published value.
    """
    top = Settings.read(path)
    top.expect("model_type", "voxtral_realtime")
    top.expect("projector_hidden_act", "gelu")
    top.expect("audio_length_per_tok", audio.token_frames)
    top.expect("tie_word_embeddings", True)
    text, sound = top.section("text_config"), top.section("audio_config")
    for section in (text, sound):
        section.expect("hidden_act", "silu")
    text.expect("tie_word_embeddings", True)
    sound.expect("activation_function", "gelu")
    dim, heads = text.integer("hidden_size"), text.integer("num_attention_heads")
    decoder = DecoderConfig(
        dim=dim,
        n_layers=text.integer("num_hidden_layers", most=MAX_LAYERS),
        n_heads=heads,
        n_kv_heads=text.integer("num_key_value_heads"),
        head_dim=text.integer("head_dim", dim // heads),
        hidden_dim=text.integer("intermediate_size"),
        window=text.integer("sliding_window"),
        rope_theta=_theta(text),
        norm_eps=text.positive("rms_norm_eps"),
        vocab_size=text.integer("vocab_size"),
    )
    sound.expect("num_key_value_heads", sound.integer("num_attention_heads"))
    encoder = EncoderConfig(
        n_mels=sound.integer("num_mel_bins"),
        dim=sound.integer("hidden_size"),
        n_layers=sound.integer("num_hidden_layers", most=MAX_LAYERS),
        n_heads=sound.integer("num_attention_heads"),
        head_dim=sound.integer("head_dim"),
        hidden_dim=sound.integer("intermediate_size"),
        window=sound.integer("sliding_window"),
        rope_theta=_theta(sound),
        norm_eps=sound.positive("rms_norm_eps"),
        downsample=top.integer("downsample_factor"),
    )
    return _checked(AsrConfig(audio, encoder, decoder), path.name)


def _theta(section: Settings) -> float:
    if not section.has("rope_parameters"):
        return section.positive("rope_theta")  # where transformers 4 wrote it
    rope = section.section("rope_parameters")
    rope.expect("rope_type", "default")
    return rope.positive("rope_theta")


def from_shapes(shapes: Mapping[str, tuple[int, ...]], audio: AudioConfig, label: str) -> AsrConfig:
    """Derive what shapes tell (widths, layers, vocabulary) and take the rest as published.

    `shapes` holds Mistral names; head sizes, windows, rope_theta and eps are not to be seen in them.

    Raises:
        BadModelError: a tensor that is needed for this is missing, or does not fit the published head sizes.
    """
    seen = TableShapes(shapes, label)
    published = AsrConfig()
    decoder = DecoderConfig(
        dim=seen.size(EMBEDDINGS + "tok_embeddings.weight", 1),
        **seen.stack("layers.", published.decoder.head_dim),
        vocab_size=seen.size(EMBEDDINGS + "tok_embeddings.weight", 0),
        ada_dim=seen.size("layers.0.ada_rms_norm_t_cond.0.weight", 0),
    )
    layers = ENCODER + "transformer.layers."
    dim = seen.size(ENCODER + "conv_layers.0.conv.weight", 0, 3)
    joined = seen.size(EMBEDDINGS + "audio_language_projection.0.weight", 1)
    encoder = EncoderConfig(
        n_mels=seen.size(ENCODER + "conv_layers.0.conv.weight", 1, 3),
        dim=dim,
        n_layers=seen.layers(layers),
        n_heads=seen.heads(layers + "0.attention.wq.weight", published.encoder.head_dim),
        hidden_dim=seen.size(layers + "0.feed_forward.w1.weight", 0),
        downsample=exact_div(joined, dim, f"{label}: adapter and encoder width"),
    )
    return _checked(AsrConfig(audio, encoder, decoder), label)


def _checked(config: AsrConfig, label: str) -> AsrConfig:
    """Check what shapes cannot: that heads pair and that rotary halves exist."""
    decoder, encoder = config.decoder, config.encoder
    exact_div(decoder.n_heads, decoder.n_kv_heads, f"{label}: query and key-value heads")
    for name, head_dim in (("decoder", decoder.head_dim), ("encoder", encoder.head_dim)):
        exact_div(head_dim, 2, f"{label}: {name} head size")
    exact_div(decoder.dim, 2, f"{label}: decoder width")  # the time embedding is half cosines, half sines
    if 2 * encoder.downsample != config.audio.token_frames:  # the second convolution halves the frames
        raise BadModelError(
            f"{label}: the encoder makes one embedding of {2 * encoder.downsample} mel frames, the audio settings "
            f"have {config.audio.token_frames} in a token"
        )
    if encoder.n_mels != config.audio.n_mels:
        raise BadModelError(
            f"{label}: the encoder takes {encoder.n_mels} mel bands, the audio settings {config.audio.n_mels}"
        )
    return config
