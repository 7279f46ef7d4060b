"""The stages of a pipe: frames in, frames out; no files, no options, no process."""
