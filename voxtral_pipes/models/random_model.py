"""Random checkpoints in the real file layouts, for tests, demonstrations and speed measurements."""

from __future__ import annotations

from voxtral_pipes.models.random_asr import make_asr_model, tiny_config
from voxtral_pipes.models.random_files import cut_raw
from voxtral_pipes.models.random_tts import make_tts_model, tiny_tts_config

__all__ = ["cut_raw", "make_asr_model", "make_tts_model", "tiny_config", "tiny_tts_config"]
