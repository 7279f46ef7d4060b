"""Q4_0 times one row, on CUDA, in Triton: integers, four products an instruction.

A code less 8 is a signed nibble; with zeros below it, it is a byte 16 times as large.  The row becomes integers of 16
bits, for each block of 32 inputs with a step of its own, 1 / 32767 of the greatest of them: finer than bfloat16.  Their
bytes, the upper ones signed, lie in words of four, and dp4a adds four products of bytes to a sum.  A sum of a block is
exact; it meets the two steps in float32.

Every program makes the integers of the whole row itself: they stay in the registers that they are needed in, since a
thread multiplies the same inputs of all its outputs.

Equal to, up to rounding: the same product by `reference.dequantize` in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from voxtral_pipes.kernels.early import begin

SCALE_ROWS = tl.constexpr(8)
"""Rows whose scales of one block lie beside each other: one wide load."""
DEVICE = tl.constexpr(not triton.knobs.runtime.interpret)
"""Triton's interpreter cannot run instructions of the device."""


@triton.jit
def _dot4(a, b, total, SIGNED: tl.constexpr):
    """Add to `total` the products of the four bytes of a, signed, and b, signed or not; int32."""
    if DEVICE:
        if SIGNED:
            total = tl.inline_asm_elementwise(
                "dp4a.s32.s32 $0, $1, $2, $3;",
                "=r,r,r,r",
                [a, b, total],
                dtype=tl.int32,
                is_pure=True,
                pack=1,
            )
        else:
            total = tl.inline_asm_elementwise(
                "dp4a.s32.u32 $0, $1, $2, $3;",
                "=r,r,r,r",
                [a, b, total],
                dtype=tl.int32,
                is_pure=True,
                pack=1,
            )
    else:
        for i in tl.static_range(4):
            byte = (b >> 8 * i) & 255
            if SIGNED:
                byte = (byte << 24) >> 24
            total += ((a << 24 - 8 * i) >> 24) * byte
    return total


@triton.jit
def _take(a, b, CHOICE: tl.constexpr):
    """Return the bytes of a (0 to 3) and b (4 to 7) that the nibbles of CHOICE name; int32."""
    if DEVICE:
        result = tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, CHOICE], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        result = a & 0
        for i in tl.static_range(4):
            byte: tl.constexpr = (CHOICE >> 4 * i) & 7
            result |= (((a if byte < 4 else b) >> 8 * (byte % 4)) & 255) << 8 * i
    return result


@triton.jit
def _bytes(a, b, c, d):
    """Return the lowest bytes of four int32 as a word, and those above them."""
    ab, cd = _take(a, b, 0x5140), _take(c, d, 0x5140)
    return _take(ab, cd, 0x5410), _take(ab, cd, 0x7632)


@triton.jit
def _greater(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _greatest(a, b, c, d):
    return _greater(_greater(tl.abs(a), tl.abs(b)), _greater(tl.abs(c), tl.abs(d)))


@triton.jit
def _input(x, gain, at, n_in, squares, HAS_NORM: tl.constexpr, WHOLE: tl.constexpr):
    """Load inputs as the product takes them, float32, and add their squares, before the gain, to `squares`."""
    if WHOLE:
        held = tl.load(x + at).to(tl.float32)
        if HAS_NORM:
            squares += held * held
            held *= tl.load(gain + at).to(tl.float32)
    else:
        held = tl.load(x + at, at < n_in, 0.0).to(tl.float32)
        if HAS_NORM:
            squares += held * held
            held *= tl.load(gain + at, at < n_in, 0.0).to(tl.float32)
    return held, squares


@triton.jit
def _to_integer(held, steps):
    """Return a word whose lower 16 bits are `held * steps`, at most 32767, rounded."""
    return (held * steps + 12582912.0).to(tl.int32, bitcast=True)


@triton.jit
def integers(
    x, gain, start, n_in, squares, HAS_NORM: tl.constexpr, WHOLE: tl.constexpr, BLOCKS: tl.constexpr
):  # fmt: skip
    """Load BLOCKS blocks of the row, from block `start` on, as integers.

    Returns words of bytes int32 [4 BLOCKS], lower and upper ones of what even nibbles meet and of what odd ones meet,
    the steps float32 [BLOCKS] over 16, and `squares` [4 BLOCKS] with those of these inputs.
    """
    word = tl.arange(0, 4 * BLOCKS)
    at = (start + word // 4) * 32 + word % 4
    a, squares = _input(x, gain, at, n_in, squares, HAS_NORM, WHOLE)
    b, squares = _input(x, gain, at + 4, n_in, squares, HAS_NORM, WHOLE)
    c, squares = _input(x, gain, at + 8, n_in, squares, HAS_NORM, WHOLE)
    d, squares = _input(x, gain, at + 12, n_in, squares, HAS_NORM, WHOLE)
    e, squares = _input(x, gain, at + 16, n_in, squares, HAS_NORM, WHOLE)
    f, squares = _input(x, gain, at + 20, n_in, squares, HAS_NORM, WHOLE)
    g, squares = _input(x, gain, at + 24, n_in, squares, HAS_NORM, WHOLE)
    h, squares = _input(x, gain, at + 28, n_in, squares, HAS_NORM, WHOLE)
    # A number that is none must show in the result.
    top = tl.reshape(_greater(_greatest(a, b, c, d), _greatest(e, f, g, h)), [BLOCKS, 4])
    top = tl.reduce(top, 1, _greater)
    steps = tl.where(top > 0, 32767.0 / top, 0.0)
    steps = tl.reshape(tl.broadcast_to(steps[:, None], [BLOCKS, 4]), [4 * BLOCKS])
    low_even, high_even = _bytes(
        _to_integer(a, steps), _to_integer(c, steps), _to_integer(e, steps), _to_integer(g, steps)
    )
    low_odd, high_odd = _bytes(
        _to_integer(b, steps), _to_integer(d, steps), _to_integer(f, steps), _to_integer(h, steps)
    )
    return low_even, high_even, low_odd, high_odd, top * (1 / (32767.0 * 16)), squares


@triton.jit
def tile(
    codes, scales, first, start, n_out, n_in, WHOLE: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCKS: tl.constexpr
):  # fmt: skip
    """Load words [BLOCK_OUT, 4 BLOCKS] and scales [BLOCK_OUT, BLOCKS], from block `start` on.

    WHOLE says that tiles do not reach past the end.
    """
    n_blocks = n_in // 32
    out, word, block = tl.arange(0, BLOCK_OUT), tl.arange(0, 4 * BLOCKS), tl.arange(0, BLOCKS)
    codes += first.to(tl.int64) * (4 * n_blocks) + 4 * start
    codes += out[:, None] * (4 * n_blocks) + word[None, :]
    first = tl.multiple_of(first, BLOCK_OUT)
    row = first + out
    place = (row // SCALE_ROWS * (n_blocks * SCALE_ROWS) + row % SCALE_ROWS)[:, None]
    scales += start * SCALE_ROWS + place + (block * SCALE_ROWS)[None, :]
    if WHOLE:
        w = tl.load(codes, eviction_policy="evict_first")
        s = tl.load(scales)
    else:
        inside = (row < n_out)[:, None]
        w = tl.load(
            codes, inside & (word < 4 * (n_blocks - start))[None, :], 0, eviction_policy="evict_first"
        )
        s = tl.load(scales, inside & (block < n_blocks - start)[None, :], 0.0)
    return w, s


@triton.jit
def _four(words, LEADING: tl.constexpr, BLOCKS: tl.constexpr):
    """Return the four words of each block, int32 [LEADING, 4 BLOCKS] as four of [LEADING, BLOCKS]."""
    even, odd = tl.split(tl.reshape(words, [LEADING, BLOCKS, 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _bytes_of_codes(word):
    return (word << 4) & -0x0F0F0F10, word & -0x0F0F0F10


@triton.jit
def multiply(
    w, s, low_even, high_even, low_odd, high_odd, steps, BLOCK_OUT: tl.constexpr, BLOCKS: tl.constexpr
):
    """Multiply a `tile` by `integers`: sums of blocks, float32 [BLOCK_OUT, BLOCKS]."""
    w0, w1, w2, w3 = _four(w, BLOCK_OUT, BLOCKS)
    a0, a1, a2, a3 = _four(high_even, 1, BLOCKS)
    b0, b1, b2, b3 = _four(high_odd, 1, BLOCKS)
    c0, c1, c2, c3 = _four(low_even, 1, BLOCKS)
    d0, d1, d2, d3 = _four(low_odd, 1, BLOCKS)
    even0, odd0 = _bytes_of_codes(w0)
    even1, odd1 = _bytes_of_codes(w1)
    even2, odd2 = _bytes_of_codes(w2)
    even3, odd3 = _bytes_of_codes(w3)
    total = _dot4(odd0, b0, _dot4(even0, a0, tl.zeros_like(w0), True), True)
    total = _dot4(odd1, b1, _dot4(even1, a1, total, True), True)
    total = _dot4(odd2, b2, _dot4(even2, a2, total, True), True)
    total = _dot4(odd3, b3, _dot4(even3, a3, total, True), True) << 8
    total = _dot4(odd0, d0, _dot4(even0, c0, total, False), False)
    total = _dot4(odd1, d1, _dot4(even1, c1, total, False), False)
    total = _dot4(odd2, d2, _dot4(even2, c2, total, False), False)
    total = _dot4(odd3, d3, _dot4(even3, c3, total, False), False)
    return total.to(tl.float32) * (s.to(tl.float32) * steps[None, :])


@triton.jit
def packed_row(
    x, gain, codes, scales, up, up_scales, first, n_out, n_in, eps, HAS_NORM: tl.constexpr, GATED: tl.constexpr,
    EARLY: tl.constexpr, CHUNKS: tl.constexpr, WHOLE: tl.constexpr, BLOCK_OUT: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """Return `norm(x) weight[first:]^T`, gated if asked for, float32 [BLOCK_OUT].

    CHUNKS tiles of BLOCKS blocks hold the row; a tile is asked for before the one before it is multiplied.  What the
    kernel before wrote is read from the first multiplication on.
    """
    w, s = tile(codes, scales, first, 0, n_out, n_in, WHOLE, BLOCK_OUT, BLOCKS)
    u, t = w, s
    if GATED:
        u, t = tile(up, up_scales, first, 0, n_out, n_in, WHOLE, BLOCK_OUT, BLOCKS)
    begin(EARLY)
    total = tl.zeros([BLOCK_OUT, BLOCKS], tl.float32)
    other = tl.zeros([BLOCK_OUT, BLOCKS], tl.float32)
    squares = tl.zeros([4 * BLOCKS], tl.float32)
    for chunk in tl.static_range(CHUNKS):
        next_w, next_s, next_u, next_t = w, s, u, t
        if chunk + 1 < CHUNKS:
            start = (chunk + 1) * BLOCKS
            next_w, next_s = tile(codes, scales, first, start, n_out, n_in, WHOLE, BLOCK_OUT, BLOCKS)
            if GATED:
                next_u, next_t = tile(up, up_scales, first, start, n_out, n_in, WHOLE, BLOCK_OUT, BLOCKS)
        a, b, c, d, steps, squares = integers(x, gain, chunk * BLOCKS, n_in, squares, HAS_NORM, WHOLE, BLOCKS)
        total += multiply(w, s, a, b, c, d, steps, BLOCK_OUT, BLOCKS)
        if GATED:
            other += multiply(u, t, a, b, c, d, steps, BLOCK_OUT, BLOCKS)
        w, s, u, t = next_w, next_s, next_u, next_t
    result, factor = tl.sum(total, 1), 1.0
    if HAS_NORM:
        factor = tl.rsqrt(tl.sum(squares, 0) / n_in + eps)
        result *= factor
    if GATED:
        result = result * tl.sigmoid(result) * (tl.sum(other, 1) * factor)
    return result
