"""Write codec.npz: the waveform that Faster-Voxtral-4B-TTS decodes from random codes with random weights.

    PYTHONPATH=tests python tests/golden/make_codec.py CHECKOUT       (einops must be installed)

flash_attn needs a GPU and half precision; what it computes is written out here in float64 from its documentation:
scores - slope * (i - j), keys i - left .. i.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import torch
from reference_package import show_reference
from tts_models import SMALL_CODEC, random_codes, random_tensors

from voxtral_pipes.models.codec import codec_shapes

FRAMES = 40


def flash_attn_func(q, k, v, causal, window_size, alibi_slopes):
    """Attend: q, k, v [B, S, H, D]."""
    assert causal
    steps = torch.arange(q.shape[1])
    behind = (steps[:, None] - steps[None]).double()
    scores = torch.einsum("bihd,bjhd->bhij", q.double(), k.double()) / q.shape[3] ** 0.5
    scores = scores - alibi_slopes.double()[:, None, None] * behind
    scores = scores.masked_fill((behind < 0) | (behind > window_size[0]), -torch.inf)
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v.double()).to(q.dtype)


def main() -> None:
    """Run the reference and write its output beside this script."""
    stub = types.ModuleType("flash_attn")
    stub.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    sys.modules["flash_attn"] = stub
    show_reference(sys.argv[1])
    from voxtral.codec.decoder import CodecDecoder  # type: ignore[import-not-found]
    from voxtral.config import CodecConfig  # type: ignore[import-not-found]

    c = SMALL_CODEC
    config = CodecConfig(
        patch_size=c.patch_samples,
        semantic_codebook_size=c.semantic_size,
        semantic_dim=c.semantic_dim,
        acoustic_codebook_size=c.acoustic_levels,
        acoustic_dim=c.acoustic_dim,
        num_acoustic_codebooks=c.acoustic_dim,
        model_dim=c.dim,
        hidden_dim=c.hidden_dim,
        num_heads=c.n_heads,
        num_kv_heads=c.n_heads,
        head_dim=c.head_dim,
        norm_eps=c.norm_eps,
        qk_norm_eps=c.qk_norm_eps,
        decoder_num_layers=c.stage_layers,
    )
    model = CodecDecoder(config).eval()
    tensors = {
        name.removeprefix("audio_tokenizer."): t for name, t in random_tensors(codec_shapes(c)).items()
    }
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    codes = random_codes(c, FRAMES)
    with torch.no_grad():
        audio = model.double().decode((codes - 2).transpose(1, 2), torch.float64)[0, 0]
    np.savez_compressed(Path(__file__).with_name("codec.npz"), audio=audio.numpy().astype(np.float32))
    print(audio.shape, float(audio.abs().max()))


if __name__ == "__main__":
    main()
