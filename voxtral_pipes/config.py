"""Hyperparameters as frozen dataclasses.  Values are read from model files, never retyped elsewhere.

Defaults are the published ones of Voxtral-Mini-4B-Realtime-2602 (asr.md sections 3, 4, 7, 9 and 13).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from voxtral_pipes.errors import BadModelError

DELAYS_MS = (*range(80, 1201, 80), 2400)
"""Transcription delays the model was published for."""

TTS_RATE_HZ = 24000
"""Samples of speech a second; they are the ticks of a synthesis pipe (tts.md section 1)."""
TTS_FRAME_TICKS = 1920
"""Ticks of a frame, 80 ms: what every stage before vx-codec counts with, whose models do not say it."""
MAX_FRAMES = 2048
"""Frames of a stream unless the user says otherwise: 163.84 s, the reference's cap."""
MAX_EULER_STEPS = 1000
GUIDANCE = 1.2
"""Weight of the text against no text in the flow head, unless the user says otherwise (tts.md section 6)."""


def exact_div(total: int, part: int, what: str) -> int:
    """Divide where a remainder would mean that the settings do not fit together."""
    if part <= 0 or total % part:
        raise BadModelError(f"{what}: {total} is not a multiple of {part}")
    return total // part


@dataclass(frozen=True, slots=True)
class AudioConfig:
    """The audio front end: `tekken.json: audio` and `audio_encoding_args` of params.json."""

    rate_hz: int = 16000
    frame_rate_hz: float = 12.5
    n_mels: int = 128
    hop_samples: int = 160
    window_samples: int = 400
    log_mel_max: float = 1.5
    """Anchor of the log floor (floor = log_mel_max - 8); nothing is clipped from above."""
    delay_ms: int = 480
    left_pad_tokens: int = 32

    @property
    def token_samples(self) -> int:
        """Samples per decoder position (1280)."""
        samples = self.rate_hz / self.frame_rate_hz
        if samples != int(samples):
            raise BadModelError(
                f"{self.rate_hz} Hz does not divide into {self.frame_rate_hz} tokens a second"
            )
        return int(samples)

    @property
    def token_frames(self) -> int:
        """Mel frames per decoder position (8)."""
        return exact_div(self.token_samples, self.hop_samples, "samples per token and hop")

    @property
    def token_ms(self) -> int:
        """Milliseconds per decoder position (80)."""
        return exact_div(1000 * self.token_samples, self.rate_hz, "milliseconds per token")


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The causal audio encoder (asr.md sections 5 to 8)."""

    n_mels: int = 128
    dim: int = 1280
    n_layers: int = 32
    n_heads: int = 32
    head_dim: int = 64
    hidden_dim: int = 5120
    window: int = 750
    rope_theta: float = 1e6
    norm_eps: float = 1e-5
    downsample: int = 4
    """Encoder positions concatenated into one decoder position."""

    @property
    def n_kv_heads(self) -> int:
        """Key and value heads: as many as query heads."""
        return self.n_heads


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The text decoder (asr.md section 9)."""

    dim: int = 3072
    n_layers: int = 26
    n_heads: int = 32
    n_kv_heads: int = 8
    head_dim: int = 128
    hidden_dim: int = 9216
    window: int = 8192
    rope_theta: float = 1e6
    norm_eps: float = 1e-5
    vocab_size: int = 131072
    ada_dim: int = 32
    """Width of the time-conditioning MLP that scales the FFN norm."""


@dataclass(frozen=True, slots=True)
class AsrConfig:
    """Everything about one speech recognition model."""

    audio: AudioConfig = field(default_factory=AudioConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


@dataclass(frozen=True, slots=True)
class CodecConfig:
    """The decoder half of the speech codec of Voxtral-4B-TTS-2603: `audio_tokenizer_args` (tts.md sections 2 and 9)."""

    rate_hz: int = TTS_RATE_HZ
    patch_samples: int = 240
    semantic_size: int = 8192
    semantic_dim: int = 256
    acoustic_levels: int = 21
    acoustic_dim: int = 36
    dim: int = 1024
    hidden_dim: int = 4096
    n_heads: int = 8
    head_dim: int = 128
    qk_norm_eps: float = 1e-6
    norm_eps: float = 0.01
    stage_layers: tuple[int, ...] = (2, 2, 2, 2)
    """Transformer layers before each doubling of the rate, and after the last."""
    first_window: int = 2
    """Keys before the query's own that the first stage sees; doubles with the rate."""

    @property
    def frame_patches(self) -> int:
        """Patches per frame (8)."""
        return 1 << (len(self.stage_layers) - 1)

    @property
    def frame_samples(self) -> int:
        """Samples per frame (1920, 80 ms)."""
        return self.patch_samples * self.frame_patches


@dataclass(frozen=True, slots=True)
class FlowConfig:
    """The acoustic transformer of Voxtral-4B-TTS-2603: `acoustic_transformer_args` (tts.md sections 2, 5 and 6)."""

    input_dim: int = 3072
    dim: int = 3072
    n_layers: int = 3
    n_heads: int = 32
    n_kv_heads: int = 8
    head_dim: int = 128
    hidden_dim: int = 9216
    norm_eps: float = 1e-5
    semantic_size: int = 8192
    acoustic_dim: int = 36
    acoustic_levels: int = 21
    steps: int = 7
    """Euler steps of a frame unless the user says otherwise (`n_decoding_steps`)."""


@dataclass(frozen=True, slots=True)
class BackboneConfig:
    """The autoregressive backbone of Voxtral-4B-TTS-2603: top level of params.json (tts.md sections 2, 4 and 7)."""

    dim: int = 3072
    n_layers: int = 26
    n_heads: int = 32
    n_kv_heads: int = 8
    head_dim: int = 128
    hidden_dim: int = 9216
    rope_theta: float = 1e6
    norm_eps: float = 1e-5
    vocab_size: int = 131072
    semantic_size: int = 8192
    acoustic_dim: int = 36
    acoustic_levels: int = 21
    max_positions: int = 65536
    """Prompt and frames together."""


@dataclass(frozen=True, slots=True)
class TtsConfig:
    """Everything about one speech synthesis model."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)

    @property
    def codebooks(self) -> int:
        """Codes per frame (37): one semantic, the rest acoustic."""
        return 1 + self.backbone.acoustic_dim
