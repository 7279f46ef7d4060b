"""The audio settings of a model: `audio` of tekken.json and `audio_encoding_args` of params.json.

No import of numpy or torch: `vx-mel -m` reads nothing else of a model.  Spec: asr.md sections 3, 12.2 and 13.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from voxtral_pipes.config import AudioConfig
from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.settings import Settings
from voxtral_pipes.formats.tekken import Tekken
from voxtral_pipes.models.hyperparameters import audio_encoding_args


def audio_config(tekken: Path | None, params: Path | None = None, *, needs_audio: bool = True) -> AudioConfig:
    """Read the audio settings; what no file says is as published.

    With `needs_audio` False a tekken.json may lack its `audio`: later stages read padding and delay from the
    open frame, and only a pipe that lacks those falls back on these settings.

    Raises:
        BadModelError: a malformed file; a tekken.json without `audio` (a model that hears nothing); a
            params.json without `global_log_mel_max` (its model scales every recording by its own maximum, so it cannot
            stream); or two files that contradict each other.
    """
    config = AudioConfig() if tekken is None else _from_tekken(tekken, needs_audio)
    if params is not None:
        config = _with_params(config, params)
    if config.token_frames < 1:
        raise BadModelError(f"the audio settings ask for {config.token_frames} mel frames a token")
    return config


def _from_tekken(path: Path, needs_audio: bool) -> AudioConfig:
    held = Tekken.read(path).audio
    if not held and not needs_audio:
        return AudioConfig()
    if not held:
        raise BadModelError(f"{path} has no audio settings: it is not the tekken.json of a recognition model")
    audio = Settings(held, f"{path.name}: audio.")
    encoding = audio.section("audio_encoding_config")
    audio.expect("transcription_format", "streaming")
    published = AudioConfig()
    audio.expect("sampling_rate", published.rate_hz)
    audio.expect("frame_rate", published.frame_rate_hz)  # delays, times and options count in tokens of 80 ms
    config = AudioConfig(
        rate_hz=audio.integer("sampling_rate", published.rate_hz),
        frame_rate_hz=audio.positive("frame_rate", published.frame_rate_hz),
        n_mels=encoding.integer("num_mel_bins", published.n_mels),
        hop_samples=encoding.integer("hop_length", published.hop_samples),
        window_samples=encoding.integer("window_size", published.window_samples),
        delay_ms=audio.integer("transcription_delay_ms", published.delay_ms),
        left_pad_tokens=audio.integer("streaming_n_left_pad_tokens", published.left_pad_tokens, least=0),
    )
    if config.delay_ms % config.token_ms:
        raise audio.fail(
            "transcription_delay_ms", f"is {config.delay_ms}, not a multiple of {config.token_ms}"
        )
    return config


def _with_params(config: AudioConfig, path: Path) -> AudioConfig:
    args = audio_encoding_args(path)
    if not args.has("global_log_mel_max"):
        raise args.fail(
            "global_log_mel_max",
            "is missing: such a model scales by the maximum of a whole recording and cannot stream",
        )
    said = {
        "sampling_rate": config.rate_hz,
        "frame_rate": config.frame_rate_hz,
        "num_mel_bins": config.n_mels,
        "hop_length": config.hop_samples,
        "window_size": config.window_samples,
    }
    for key, value in said.items():
        if args.has(key) and args.number(key) != value:
            raise BadModelError(
                f"{path.name} says {key} {args.number(key):g} and tekken.json (or the published model) "
                f"{value:g}"
            )
    return replace(config, log_mel_max=args.number("global_log_mel_max"))
