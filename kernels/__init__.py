"""The arithmetic: a plain torch reference for every operation, and the choice of faster ones."""
