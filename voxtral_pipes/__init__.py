"""Voxtral speech recognition and synthesis as composable streaming filters.

Layers import leftwards only: formats <- kernels <- models <- stages <- cli.  `errors` and `config` are leaves.
"""

__version__ = "0.1.0"
