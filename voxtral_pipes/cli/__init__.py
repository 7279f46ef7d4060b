"""The commands: options, descriptors, signals and exit codes."""
