"""What the models compute: pure step functions over read-only weights and a state that is passed in."""
