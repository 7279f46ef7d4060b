"""Word error rates of the real pipes; what `scripts/wer` is made of."""
