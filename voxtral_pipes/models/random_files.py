"""Files of random checkpoints: safetensors and GGUF written in pieces, and a whole one cut into raw shards.

What goes in is asked for tensor by tensor, in the order of the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voxtral_pipes.errors import OutputError
from voxtral_pipes.formats.bf16 import Words
from voxtral_pipes.formats.gguf_table import ALIGNMENT
from voxtral_pipes.formats.gguf_writer import encode, header
from voxtral_pipes.formats.names import raw_name
from voxtral_pipes.formats.safetensors_writer import bf16_header
from voxtral_pipes.models.gguf_layout import GgufLayout
from voxtral_pipes.models.shapes import Shape


@contextmanager
def new_directory(out_dir: Path) -> Iterator[None]:
    """Make `out_dir` for a model to be written into it.

    Raises:
        OutputError: it holds a model already, or something in it cannot be written.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        taken = [path.name for path in out_dir.iterdir() if path.suffix in (".safetensors", ".gguf", ".json")]
        if taken:
            raise OutputError(f"{out_dir} holds {taken[0]} already: name an empty directory")
        yield
    except OSError as error:
        raise OutputError(f"{out_dir} cannot be written: {error.strerror or error}") from error


def write_json(path: Path, settings: Mapping[str, Any]) -> None:
    """Write settings as the published files have them."""
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def write_safetensors(
    path: Path, shapes: Mapping[str, Shape], draw: Callable[[str], Iterable[Words]]
) -> None:
    """Write BF16 tensors in the order of `shapes`; `draw` gives the pieces of each (formats.md section 4)."""
    with path.open("xb") as file:
        file.write(bf16_header(shapes))
        for name in shapes:
            for piece in draw(name):
                file.write(piece.astype("<u2", copy=False).data)


def write_gguf(
    path: Path, layout: GgufLayout, draw: Callable[[str], Iterable[npt.NDArray[np.float32]]]
) -> None:
    """Write the tensors of `layout`; `draw` gives the float32 pieces of each (formats.md sections 0 to 2)."""
    with path.open("xb") as file:
        file.write(header(layout.architecture, layout.tensors))
        for name, info in layout.tensors.items():
            file.write(bytes(-file.tell() % ALIGNMENT))
            for piece in draw(name):
                file.write(encode(piece, info.type).data)


def cut_raw(model_dir: Path, shard_bytes: int) -> None:
    """Replace the weights file of `model_dir` by raw shards, named as `split -b` names them.

    Raises:
        ValueError: it would take more than 650 shards, or the size is not positive.
    """
    (whole,) = (path for path in model_dir.iterdir() if path.suffix in (".safetensors", ".gguf"))
    n_shards = -(-whole.stat().st_size // max(shard_bytes, 1))
    if shard_bytes < 1 or n_shards > 26 * 25:  # after shard-yz the names grow longer
        raise ValueError(f"shards of {shard_bytes} bytes: {n_shards} would be needed; 1 to 650 can be named")
    with whole.open("rb") as source:
        for index in range(n_shards):
            with (model_dir / raw_name(index)).open("xb") as shard:
                left = shard_bytes
                while left and (piece := source.read(min(left, 1 << 24))):
                    shard.write(piece)
                    left -= len(piece)
    whole.unlink()
