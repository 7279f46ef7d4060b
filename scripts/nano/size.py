"""How large the nano recogniser is."""

from __future__ import annotations

from nano.vocabulary import VOCAB_SIZE
from voxtral_pipes.config import AsrConfig, DecoderConfig, EncoderConfig

# Windows are shorter than a training example (160 positions), so that what happens past them is trained as well.
NANO = AsrConfig(
    encoder=EncoderConfig(dim=192, n_layers=4, n_heads=3, head_dim=64, hidden_dim=320, window=150),
    decoder=DecoderConfig(
        dim=192, n_layers=2, n_heads=6, n_kv_heads=2, head_dim=32, hidden_dim=384, window=96, vocab_size=VOCAB_SIZE,
        ada_dim=32,
    ),
)  # fmt: skip
"""2.4 million weights."""

SMOKE = AsrConfig(
    encoder=EncoderConfig(dim=64, n_layers=2, n_heads=2, head_dim=32, hidden_dim=128, window=80),
    decoder=DecoderConfig(
        dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, hidden_dim=128, window=64, vocab_size=VOCAB_SIZE,
        ada_dim=32,
    ),
)  # fmt: skip
"""To see on a CPU in a minute that training works."""
