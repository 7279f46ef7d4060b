"""params.json of a recognition model, from its hyperparameters: the inverse of `hyperparameters.from_params`."""

from __future__ import annotations

from typing import Any

from voxtral_pipes.config import AsrConfig


def params_settings(config: AsrConfig) -> dict[str, Any]:
    """Return the contents of params.json (asr.md section 13)."""
    d, e, audio = config.decoder, config.encoder, config.audio
    return {
        "dim": d.dim, "n_layers": d.n_layers, "head_dim": d.head_dim, "hidden_dim": d.hidden_dim,
        "n_heads": d.n_heads, "n_kv_heads": d.n_kv_heads, "use_biases": False, "causal": True,
        "rope_theta": d.rope_theta, "norm_eps": d.norm_eps, "vocab_size": d.vocab_size, "model_parallel": 1,
        "tied_embeddings": True, "sliding_window": d.window, "model_max_length": 131072,
        "ada_rms_norm_t_cond": True, "ada_rms_norm_t_cond_dim": d.ada_dim,
        "multimodal": {"whisper_model_args": {
            "encoder_args": {
                "audio_encoding_args": {
                    "sampling_rate": audio.rate_hz, "frame_rate": audio.frame_rate_hz,
                    "num_mel_bins": audio.n_mels, "hop_length": audio.hop_samples,
                    "window_size": audio.window_samples, "chunk_length_s": None,
                    "global_log_mel_max": audio.log_mel_max, "transcription_format": "streaming",
                },
                "dim": e.dim, "n_layers": e.n_layers, "head_dim": e.head_dim, "hidden_dim": e.hidden_dim,
                "n_heads": e.n_heads, "n_kv_heads": e.n_heads, "vocab_size": d.vocab_size, "use_biases": True,
                "use_cache": False, "rope_theta": e.rope_theta, "causal": True, "norm_eps": e.norm_eps,
                "pos_embed": "rope", "max_source_positions": None, "ffn_type": "swiglu",
                "norm_type": "rms_norm", "sliding_window": e.window,
            },
            "downsample_args": {"downsample_factor": e.downsample},
        }},
    }  # fmt: skip
