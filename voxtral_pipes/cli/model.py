"""From options to vocabulary and weights: what the commands with a model share.

Nothing here imports numpy or torch before weights are loaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from voxtral_pipes.cli.edge import Log
from voxtral_pipes.formats.locate import ModelFiles, locate_tekken
from voxtral_pipes.formats.tekken import Tekken

if TYPE_CHECKING:
    from voxtral_pipes.kernels.packed import StoredWeight
    from voxtral_pipes.kernels.precision import Precision
    from voxtral_pipes.models.checkpoint import Checkpoint


def load_stage(
    checkpoint: Checkpoint,
    names: Iterable[str],
    args: argparse.Namespace,
    log: Log,
    precision: Precision | None = None,
) -> Mapping[str, StoredWeight]:
    """Choose device and arithmetic by the options (`precision` where the choice is made), load these tensors."""
    from voxtral_pipes.kernels import dispatch
    from voxtral_pipes.kernels.precision import pick_precision
    from voxtral_pipes.models.weights import load_weights

    dispatch.check_kernels()
    device = dispatch.pick_device(args.device)
    names = list(names)
    dtype = dispatch.torch_dtype(precision or pick_precision(args.dtype, checkpoint.unpacked_bytes(names)))
    log.note(f"model {checkpoint.label}: {checkpoint.family}, fingerprint {checkpoint.fingerprint}")
    log.note(dispatch.describe(device, dtype))
    return load_weights(checkpoint, names, device, dtype)


def read_vocabulary(args: argparse.Namespace, log: Log, family: str) -> Tekken:
    """Read the tekken.json of a command that needs no weights."""
    vocabulary = Tekken.read(locate_tekken(args.model, args.tokenizer, family, log.warn), log.note)
    log.note(f"{vocabulary.name}: {vocabulary.vocab_size} tokens, {vocabulary.n_special} of them special")
    return vocabulary


def read_tekken(
    args: argparse.Namespace, files: ModelFiles, log: Log, family: str, *, without: str
) -> Tekken | None:
    """Read --tokenizer, or else the tekken.json beside the weights; None without one: -v says `without`, what then."""
    if args.tokenizer is None and files.tekken is None:
        log.note(f"no tekken.json beside {files.path}: {without}")
        return None
    return Tekken.read(locate_tekken(args.model, args.tokenizer, family), log.note)
