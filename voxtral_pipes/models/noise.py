"""The noise that the flow head begins with: drawn from a counter, or read from a file.  No import of torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from voxtral_pipes.errors import BadInputError

MAGIC = b"\x93NUMPY"


def frame_noise(seed: int, stream: int, frame: int, width: int) -> npt.NDArray[np.float32]:
    """Draw the noise of one frame, float32 [width], from a counter-based generator.

    It depends on seed, stream and frame alone: not on how the input was cut, nor on what else shares the pipe.
    """
    # The frame is the highest counter word: draws of one frame never run into those of the next.
    bits = np.random.Philox(key=(seed << 64) | stream, counter=[0, 0, 0, frame])
    return np.random.Generator(bits).standard_normal(width, dtype=np.float32)


def read_noise(path: Path, width: int) -> npt.NDArray[np.float32]:
    """Map an npy file [frames, width] of float32 or float64 as float32.

    Raises:
        BadInputError: it cannot be read, or holds something else, or values that are not finite.
    """
    if path.exists() and not path.is_file():  # a pipe could not be mapped
        raise BadInputError(f"{path} is not a regular file")
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise ValueError("it does not begin as one")
        with np.errstate(over="ignore"):  # of a shape that no file can have
            # Never written to; but torch complains, on stderr, of arrays that could not be.
            held = np.load(path, mmap_mode="c", allow_pickle=False)
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a malformed header raises almost anything
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise BadInputError(f"{path} is not an npy file of numbers ({said:.120})") from error
    if held.ndim != 2 or held.shape[1] != width or held.dtype.kind != "f":
        raise BadInputError(
            f"{path} holds {held.dtype!s:.40} {list(held.shape)}, not float32 [frames, {width}]"
        )
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused as that
        noise = np.ascontiguousarray(held, dtype=np.float32)
    if not np.isfinite(noise).all():
        raise BadInputError(f"{path} holds values that are not finite")
    return noise
