"""From options to the weights of one stage: what vx-encode and vx-decode share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from voxtral_pipes.cli.edge import Log
from voxtral_pipes.config import AsrConfig
from voxtral_pipes.formats.locate import ModelFiles, locate_tekken
from voxtral_pipes.formats.tekken import Tekken
from voxtral_pipes.kernels import dispatch
from voxtral_pipes.kernels.packed import Weight
from voxtral_pipes.models.weights import open_checkpoint
from voxtral_pipes.stages.decode import SpecialIds


@dataclass(frozen=True, slots=True)
class LoadedPart:
    """The tensors of one stage, and what it must know of the whole model."""

    config: AsrConfig
    tensors: Mapping[str, Weight]
    identity: Mapping[str, str]
    """{family, fp} for hello."""


def load_asr(
    files: ModelFiles,
    args: argparse.Namespace,
    shapes: Callable[[AsrConfig], Mapping[str, tuple[int, ...]]],
    log: Log,
) -> LoadedPart:
    """Choose device and arithmetic, and load the tensors that `shapes` names."""
    dispatch.check_kernels()
    device = dispatch.pick_device(args.device)
    checkpoint = open_checkpoint(files)
    names = list(shapes(checkpoint.config))
    dtype = dispatch.pick_dtype(args.dtype, checkpoint.stored_bytes(names))
    log.note(
        f"model {files.path}: {checkpoint.family}, {files.layout} layout, fingerprint {checkpoint.fingerprint}"
    )
    log.note(dispatch.describe(device, dtype))
    return LoadedPart(
        checkpoint.config,
        checkpoint.load(names, device, dtype),
        {"family": checkpoint.family, "fp": checkpoint.fingerprint},
    )


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
