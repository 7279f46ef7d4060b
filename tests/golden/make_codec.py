"""Write codec.npz: the waveform that vllm-omni's codec decodes from random codes with random weights, in float32.

README.md beside this says how to get the reference and how to run this.

All frames are one call.  Attention is the reference's own torch code, which it falls back to where flash_attn is not
installed; nothing in it is replaced.  Its table of code embeddings is in the same module: some frames of that, too.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from reference_package import made_with, reference_module
from tts_models import (
    CODEC_FRAMES,
    CODECS,
    SMALL_BACKBONE,
    random_codes,
    random_codes_of,
    random_tensors,
)

from voxtral_pipes.config import CodecConfig
from voxtral_pipes.models.codes import CODE_OFFSET
from voxtral_pipes.models.tts_shapes import (
    CODE_TABLE,
    CODEC,
    FIRST_KERNEL,
    OUT_KERNEL,
    UP_KERNEL,
    backbone_shapes,
    codec_shapes,
)

EMBEDDED_FRAMES = 5


def reference(c: CodecConfig) -> Any:
    """Make the reference's module with random weights; the encoder and its like stay as they come."""
    doublings = len(c.stage_layers) - 1

    def listed(numbers: tuple[int, ...]) -> str:
        return ",".join(map(str, numbers))

    arguments = {
        "pretransform_patch_size": c.patch_samples, "patch_proj_kernel_size": OUT_KERNEL,
        "semantic_codebook_size": c.semantic_size, "semantic_dim": c.semantic_dim,
        "acoustic_codebook_size": c.acoustic_levels, "acoustic_dim": c.acoustic_dim,
        "attn_sliding_window_size": c.first_window << doublings,
        "dim": c.dim, "hidden_dim": c.hidden_dim, "head_dim": c.head_dim, "n_heads": c.n_heads,
        "n_kv_heads": c.n_heads, "qk_norm_eps": c.qk_norm_eps, "norm_eps": c.norm_eps,
        "encoder_transformer_lengths_str": listed((1,) * (doublings + 1)),
        "encoder_convs_kernels_str": listed((UP_KERNEL,) * doublings + (FIRST_KERNEL,)),
        "encoder_convs_strides_str": listed((2,) * doublings + (1,)),
        "decoder_transformer_lengths_str": listed(c.stage_layers),
        "decoder_convs_kernels_str": listed((FIRST_KERNEL,) + (UP_KERNEL,) * doublings),
        "decoder_convs_strides_str": listed((1,) + (2,) * doublings),
    }  # fmt: skip
    b = SMALL_BACKBONE
    table = {
        "semantic_codebook_size": b.semantic_size,
        "acoustic_codebook_size": b.acoustic_levels,
        "n_acoustic_codebook": b.acoustic_dim,
        "acoustic_transformer_args": {"input_dim": b.dim},
    }
    config = SimpleNamespace(
        audio_config={"codec_args": arguments, "audio_model_args": table},
        text_config=SimpleNamespace(hidden_size=b.dim),
    )
    module = reference_module("voxtral_tts_audio_tokenizer")
    vllm_config = SimpleNamespace(model_config=SimpleNamespace(hf_config=config))
    model = module.VoxtralTTSAudioTokenizer(vllm_config=vllm_config).eval()
    weights = {name.removeprefix(CODEC): t for name, t in random_tensors(codec_shapes(c)).items()}
    weights["audio_token_embedding.embeddings.weight"] = random_tensors(backbone_shapes(b))[CODE_TABLE]
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert all(name.startswith(("input_proj.", "encoder_blocks.")) for name in missing), missing
    assert not unexpected, unexpected
    return model


def main() -> None:
    """Run the reference and write its output beside this script."""
    results: dict[str, Any] = {"made_with": made_with()}
    b = SMALL_BACKBONE
    for name, c in CODECS.items():
        model = reference(c)
        codes = random_codes(c, CODEC_FRAMES) - CODE_OFFSET
        with torch.no_grad():
            audio = model.decode(codes.transpose(1, 2), torch.float32)[0, 0]
            frames = random_codes_of(b.semantic_size, b.acoustic_levels, b.acoustic_dim, EMBEDDED_FRAMES)
            (embedded,) = model.encode_tokens([frames.transpose(1, 2)])
        results[name], results["embedded"] = audio.numpy(), embedded.numpy()
        print(name, tuple(audio.shape), "peak", float(audio.abs().max()))
    np.savez_compressed(Path(__file__).with_name("codec.npz"), **results)


if __name__ == "__main__":
    main()
