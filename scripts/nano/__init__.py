"""Training data and training of the nano models, for `scripts/pack-nano-asr` and `scripts/train-nano-asr`."""
