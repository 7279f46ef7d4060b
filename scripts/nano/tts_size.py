"""How large the nano synthesis model is, and the encoder that only training needs."""

from __future__ import annotations

from dataclasses import dataclass

from voxtral_pipes.config import BackboneConfig, CodecConfig, FlowConfig, TtsConfig

N_SPECIAL = 64
"""The published ids of what is used are below."""
VOCAB_SIZE = N_SPECIAL + 256
"""Text is bytes: spelling is what so small a model learns to read."""
VOICE_ROWS = 8


@dataclass(frozen=True, slots=True)
class EncoderSize:
    """The encoder of the codec."""

    dim: int
    hidden_dim: int
    n_heads: int
    window: int = 16


def _config(semantic: int, backbone: BackboneConfig, flow: FlowConfig, codec: CodecConfig) -> TtsConfig:
    assert {backbone.semantic_size, flow.semantic_size, codec.semantic_size} == {semantic}
    return TtsConfig(backbone, flow, codec)


# The files hold the codec and the code table in float32 where the rest is packed: those two are kept small.
NANO = _config(
    192,
    BackboneConfig(
        dim=192, n_layers=4, n_heads=6, n_kv_heads=2, head_dim=32, hidden_dim=192, vocab_size=VOCAB_SIZE,
        semantic_size=192, max_positions=4096,
    ),
    FlowConfig(
        input_dim=192, dim=128, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=32, hidden_dim=192, semantic_size=192
    ),
    CodecConfig(
        semantic_size=192, semantic_dim=32, dim=112, hidden_dim=112, n_heads=4, head_dim=28, stage_layers=(1, 1, 1, 1)
    ),
)  # fmt: skip
NANO_ENCODER = EncoderSize(dim=128, hidden_dim=256, n_heads=4)

SMOKE = _config(
    30,
    BackboneConfig(
        dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, hidden_dim=128, vocab_size=VOCAB_SIZE,
        semantic_size=30, max_positions=4096,
    ),
    FlowConfig(
        input_dim=64, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, hidden_dim=96, semantic_size=30
    ),
    CodecConfig(
        semantic_size=30, semantic_dim=8, dim=48, hidden_dim=64, n_heads=4, head_dim=12, stage_layers=(1, 1, 1, 1)
    ),
)  # fmt: skip
"""To see on a CPU in two minutes that training works."""
SMOKE_ENCODER = EncoderSize(dim=48, hidden_dim=64, n_heads=4)
