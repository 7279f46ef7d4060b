"""Read one tensor from a file that torch.save or safetensors wrote.

torch.load would unpickle what it finds, if only from a list of allowed things, and unpack what is compressed.  The
`.pt` of a voice is a zip archive of uncompressed entries, among them 160 bytes of pickle that say what lies where
(tts.md section 2); here those may name a tensor and its storage and nothing else.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from voxtral_pipes.errors import BadModelError
from voxtral_pipes.formats.safetensors import SafetensorsFile

MAX_PICKLE_BYTES = 4096
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_STORAGES = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}
_OPCODES = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BINPERSID", "BINPUT", "BINGET", "MEMOIZE",
    "BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "NONE", "NEWTRUE", "NEWFALSE", "TUPLE", "TUPLE1",
    "TUPLE2", "TUPLE3", "EMPTY_TUPLE", "EMPTY_DICT", "SETITEM", "SETITEMS",
})  # fmt: skip
"""What torch.save writes for a tensor, or a map of them; none can take more memory than the pickle is long."""


@dataclass(frozen=True, slots=True)
class _Described:
    """A tensor as the pickle describes it."""

    storage: tuple[str, str]
    """Type, and name of the entry under data/."""
    offset: int
    shape: tuple[int, ...]

    @classmethod
    def rebuilt(cls, storage: Any, offset: Any, shape: Any, stride: Any, *others: Any) -> _Described:
        """Take the arguments of torch._utils._rebuild_tensor_v2."""
        kind, key = storage
        numbers = (offset, *shape, *stride)
        if not all(type(number) is int and 0 <= number < 1 << 40 for number in numbers):
            raise ValueError("sizes that are no numbers")
        if len(shape) > 4 or tuple(stride) != tuple(prod(shape[i + 1 :]) for i in range(len(shape))):
            raise ValueError("a tensor that is not contiguous")
        return cls((kind, key), offset, tuple(shape))


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Described.rebuilt
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda described, *others: described
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise ValueError(f"it asks for {module}.{name}, and only a tensor of F32, F16 or BF16 is read")

    def persistent_load(self, pid: Any) -> Any:
        what, kind, key, _, _ = pid
        if what != "storage" or not isinstance(key, str) or kind not in DTYPES:
            raise ValueError("it refers to something that is no storage")
        return kind, key


def read_saved(path: Path) -> Tensor:
    """Read the tensor that torch.save wrote to a file, or the one tensor in a map.

    Nothing in the file is run, and no more memory is used than a few times its size.

    Raises:
        BadModelError: it is anything else, or compressed.
    """
    try:
        return _from_archive(path)
    except Exception as error:  # a malformed archive or pickle raises almost anything
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise BadModelError(f"{path} cannot be read as a tensor saved by torch ({said:.160})") from error


def _from_archive(path: Path) -> Tensor:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}

        def content(name: str, most: int) -> bytes:
            info = entries.get(name)
            if info is None:
                raise ValueError(f"it holds no {name}")
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"its {name} is compressed, which torch.save does not do")
            if info.file_size > most:
                raise ValueError(f"its {name} declares {info.file_size} bytes")
            return archive.read(info)

        if "byteorder" in entries and content("byteorder", 16) != b"little":
            raise ValueError("it is not little-endian")
        recipe = content("data.pkl", MAX_PICKLE_BYTES)
        unknown = {opcode.name for opcode, _, _ in pickletools.genops(recipe)} - _OPCODES
        if unknown:
            raise ValueError(f"its data.pkl holds {min(unknown)}, which no tensor needs")
        held = _Unpickler(io.BytesIO(recipe)).load()
        if isinstance(held, dict) and len(held) == 1:
            held = next(iter(held.values()))
        if not isinstance(held, _Described):
            raise ValueError(f"it holds a {type(held).__name__}, not a tensor")
        (kind, key), n = held.storage, prod(held.shape)
        data = content(f"data/{key}", size)
    begin = held.offset * DTYPES[kind].itemsize
    piece = data[begin : begin + n * DTYPES[kind].itemsize]
    return as_tensor(piece, kind, held.shape)


def read_safetensors(path: Path, key: str) -> Tensor:
    """Read the tensor `key` of a safetensors file, or else its only one.

    Raises:
        BadModelError: there is no such tensor, or the file is malformed.
    """
    file = SafetensorsFile.open([path])
    name = key if key in file.tensors else next(iter(file.tensors), "")
    if not name or (name != key and len(file.tensors) > 1):
        raise BadModelError(f"{path} holds {len(file.tensors)} tensors, and none is {key!r}")
    info = file.tensors[name]
    if info.type not in DTYPES:
        raise BadModelError(f"{path}: {name!r:.80} is {info.type}, not {', '.join(DTYPES)}")
    return as_tensor(bytes(file.bytes(name)), info.type, info.shape)


def as_tensor(data: bytes, kind: str, shape: tuple[int, ...]) -> Tensor:
    """Make a tensor of its own memory from stored bytes.

    Raises:
        ValueError: there are not as many as the shape needs.
    """
    if len(data) != prod(shape) * DTYPES[kind].itemsize:
        raise ValueError(f"a tensor {list(shape)} of {kind} cannot be {len(data)} bytes")
    if not data:
        return torch.empty(shape, dtype=DTYPES[kind])
    return torch.frombuffer(bytearray(data), dtype=DTYPES[kind]).reshape(shape)
