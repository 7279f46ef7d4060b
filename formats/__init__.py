"""Bytes on disk and on pipes: frames, WAV, safetensors, GGUF, tekken.json.  Knows no model."""
