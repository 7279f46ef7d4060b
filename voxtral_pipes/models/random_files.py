"""Files of random checkpoints: safetensors and GGUF written in pieces, and a whole one cut into raw shards.

What goes in is asked for tensor by tensor, in the order of the file.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from voxtral_pipes.errors import OutputError
from voxtral_pipes.formats.bf16 import Words
from voxtral_pipes.models.shapes import Shape

Packing = Literal["q4", "q8"]
_BLOCK = 32
_BLOCK_BYTES: Mapping[Packing, int] = {"q4": 18, "q8": 34}


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
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in shapes:
            for piece in draw(name):
                file.write(piece.astype("<u2", copy=False).data)


def write_gguf(
    path: Path,
    architecture: str,
    shapes: Mapping[str, Shape],
    packed: Collection[str],
    packing: Packing,
    draw: Callable[[str], Iterable[npt.NDArray[np.float32]]],
) -> None:
    """Write `packed` tensors as Q4_0 or Q8_0 by ggml's rule and all else as F32 (formats.md sections 0 to 2).

    `draw` gives the float32 pieces of each.

    Raises:
        ValueError: the rows of a packed one are no multiple of 32; nothing has been written.
    """
    import gguf

    odd = [name for name in packed if shapes[name][-1] % _BLOCK]
    if odd:
        raise ValueError(
            f"{odd[0]} has rows of {shapes[odd[0]][-1]}; {packing.upper()}_0 needs multiples of {_BLOCK}"
        )
    writer = gguf.GGUFWriter(path, architecture)
    types = gguf.GGMLQuantizationType
    kinds = {name: types[f"{packing.upper()}_0"] if name in packed else types.F32 for name in shapes}
    for name, shape in shapes.items():
        if name in packed:
            stored = (*shape[:-1], shape[-1] // _BLOCK * _BLOCK_BYTES[packing])
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), math.prod(stored), raw_dtype=kinds[name])
        else:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * math.prod(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, kind in kinds.items():
        writer.write_tensor_data(np.concatenate([gguf.quantize(piece, kind) for piece in draw(name)]))
    writer.close()


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
        for letters in itertools.islice(itertools.product(ascii_lowercase, repeat=2), n_shards):
            with (model_dir / f"shard-{''.join(letters)}").open("xb") as shard:
                left = shard_bytes
                while left and (piece := source.read(min(left, 1 << 24))):
                    shard.write(piece)
                    left -= len(piece)
    whole.unlink()
