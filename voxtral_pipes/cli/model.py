"""From options to the weights of one stage: what the commands with a model share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping

from voxtral_pipes.cli.edge import Log
from voxtral_pipes.formats.locate import ModelFiles, locate_tekken
from voxtral_pipes.formats.tekken import Tekken
from voxtral_pipes.kernels import dispatch
from voxtral_pipes.kernels.packed import Weight
from voxtral_pipes.kernels.precision import Precision, pick_precision
from voxtral_pipes.models.checkpoint import Checkpoint
from voxtral_pipes.models.weights import load_weights
from voxtral_pipes.stages.decode import SpecialIds


def load_stage(
    checkpoint: Checkpoint,
    names: Iterable[str],
    args: argparse.Namespace,
    log: Log,
    precision: Precision | None = None,
) -> Mapping[str, Weight]:
    """Choose device and arithmetic by the options (`precision` where the choice is made), load these tensors."""
    dispatch.check_kernels()
    device = dispatch.pick_device(args.device)
    names = list(names)
    dtype = dispatch.torch_dtype(precision or pick_precision(args.dtype, checkpoint.stored_bytes(names)))
    log.note(f"model {checkpoint.label}: {checkpoint.family}, fingerprint {checkpoint.fingerprint}")
    log.note(dispatch.describe(device, dtype))
    return load_weights(checkpoint, names, device, dtype)


def special_ids(args: argparse.Namespace, files: ModelFiles, log: Log) -> SpecialIds:
    """Resolve the ids that the decoder treats apart, by name from tekken.json; the published ones without it."""
    if args.tokenizer is None and files.tekken is None:
        log.note(
            f"no tekken.json beside {files.path}: the published ids of <s>, </s> and [STREAMING_PAD] are used"
        )
        return SpecialIds()
    tekken = Tekken.read(locate_tekken(args.model, args.tokenizer))
    return SpecialIds(
        bos=tekken.special("<s>"), eos=tekken.special("</s>"), pad=tekken.special("[STREAMING_PAD]")
    )
