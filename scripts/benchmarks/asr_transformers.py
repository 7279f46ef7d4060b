"""transformers' own recognition model beside ours: the same shape, the same mel frames, random weights."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch

from benchmarks.report import synchronize
from voxtral_pipes.config import AsrConfig


def transformers_run(
    config: AsrConfig, device: torch.device, dtype: torch.dtype, mel_frames: Iterable[Any], seconds: float
) -> dict[str, float]:
    """Time generate() as its users call it, on `seconds` of audio: its mel frames as vx-mel sends them."""
    from transformers import VoxtralRealtimeConfig, VoxtralRealtimeForConditionalGeneration

    enc, dec = config.encoder, config.decoder
    theta = {"rope_theta": 1e6, "rope_type": "default"}
    settings = VoxtralRealtimeConfig(
        audio_config={
            "hidden_size": enc.dim, "intermediate_size": enc.hidden_dim, "num_hidden_layers": enc.n_layers,
            "num_attention_heads": enc.n_heads, "head_dim": enc.head_dim, "sliding_window": enc.window,
            "rope_parameters": theta,
        },
        text_config={
            "hidden_size": dec.dim, "intermediate_size": dec.hidden_dim, "num_hidden_layers": dec.n_layers,
            "num_attention_heads": dec.n_heads, "num_key_value_heads": dec.n_kv_heads, "head_dim": dec.head_dim,
            "sliding_window": dec.window, "vocab_size": dec.vocab_size, "rope_parameters": theta,
            "rms_norm_eps": dec.norm_eps,
        },
    )  # fmt: skip
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = VoxtralRealtimeForConditionalGeneration(settings).eval()
    torch.set_default_dtype(torch.float32)
    mel = torch.cat(list(_mel_tensors(mel_frames)))
    features = mel.T[None].to(device, dtype)
    delay = config.audio.delay_ms // config.audio.token_ms
    prompt = torch.tensor([[1] + [32] * (32 + delay)], device=device)
    times = []
    for _ in range(2):
        synchronize(device)
        started = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                input_ids=prompt, input_features=features, num_delay_tokens=delay, do_sample=False,
                eos_token_id=None, pad_token_id=11,
            )  # fmt: skip
        synchronize(device)
        times.append(time.perf_counter() - started)
    tokens = out.shape[1] - prompt.shape[1]
    return {
        "total ms": 1e3 * min(times), "tokens": tokens, "tok/s (encoding included)": tokens / min(times),
        "RTF": min(times) / seconds,
    }  # fmt: skip


def _mel_tensors(frames: Iterable[Any]) -> Iterable[torch.Tensor]:
    for frame in frames:
        if frame.kind == "data":
            yield torch.from_numpy(frame.tensors["mel"].numpy().copy())
