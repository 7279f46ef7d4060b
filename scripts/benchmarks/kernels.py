"""Each product of the models by itself: microseconds, bytes of weights a second, and the share of the memory's speed.

Products are called through kernels/dispatch.py, as the models call them, and beside each stands plain torch: F.linear
of dense weights.  Weights are random, and in so many copies that none is still in a cache when its turn comes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import machine, show
from benchmarks.timing import Call, memory_speed, seconds_each
from voxtral_pipes.config import AsrConfig, CodecConfig, DecoderConfig, EncoderConfig, FlowConfig, TtsConfig
from voxtral_pipes.kernels import dispatch as ops
from voxtral_pipes.kernels.packed import (
    BLOCK_BYTES,
    BLOCK_WEIGHTS,
    HeadWeight,
    Int4Weight,
    OnednnWeight,
    PackedWeight,
    StoredWeight,
    Weight,
)
from voxtral_pipes.models.random_model import tiny_config, tiny_tts_config

EPS = 1e-5
LIVE_ROWS = 4
"""Encoder positions of 80 ms."""
FLOW_ROWS = 6
"""Three tokens of two branches."""
CODEC_KERNELS = (3, 7)
"""Columns that the codec's first and last convolution take."""

KINDS = {OnednnWeight: ", oneDNN", Int4Weight: ", int4"}
Prepared = Weight | HeadWeight
Bind = Callable[[Tensor, Sequence[Any]], Call]
"""From x [rows, n_in] and prepared weights to a call that multiplies them."""


@dataclass(frozen=True, slots=True)
class Case:
    """Something to time.  A kernel that no product calls yet can be one too: see `cases`."""

    section: str
    label: str
    weight_bytes: int
    """Bytes of weights that a call reads, as they are stored."""
    make: Callable[[], Call]
    """Draws weights of its own and returns what multiplies by them."""


@dataclass(frozen=True, slots=True)
class Form:
    """How weights are stored."""

    name: str
    dtype: torch.dtype
    """What is computed in."""
    block_bytes: int
    """Of 32 weights."""
    draw: Callable[[int, int, torch.device], StoredWeight]
    """From outputs and inputs to a matrix."""


def dense(dtype: torch.dtype, n_out: int, n_in: int, device: torch.device) -> Tensor:
    """Draw a dense matrix [n_out, n_in]."""
    return torch.empty(n_out, n_in, dtype=dtype, device=device).uniform_(-(n_in**-0.5), n_in**-0.5)


def packed(n_out: int, n_in: int, device: torch.device) -> PackedWeight:
    """Draw a Q4_0 matrix [n_out, n_in]: any codes, one scale."""
    shape = n_out, n_in // BLOCK_WEIGHTS, BLOCK_BYTES["q4_0"]
    blocks = torch.randint(256, shape, dtype=torch.uint8, device=device)
    blocks[..., :2] = torch.tensor([n_in**-0.5 / 8], dtype=torch.float16).view(torch.uint8).to(device)
    return PackedWeight("q4_0", blocks)


F32 = Form("F32", torch.float32, 4 * BLOCK_WEIGHTS, partial(dense, torch.float32))
BF16 = Form("BF16", torch.bfloat16, 2 * BLOCK_WEIGHTS, partial(dense, torch.bfloat16))
Q4_0 = Form("Q4_0", torch.bfloat16, BLOCK_BYTES["q4_0"], packed)


@dataclass(frozen=True, slots=True)
class Product:
    """One product of a model: x [rows, n_in] times one matrix [n, n_in] or several, for each n of `outs`."""

    name: str
    rows: int
    n_in: int
    outs: tuple[int, ...]
    bind: Bind
    prepare: Callable[[StoredWeight, torch.dtype], Prepared] = ops.prepare

    def cases(self, section: str, forms: Sequence[Form], device: torch.device) -> Iterator[Case]:
        """Yield the product as the models make it, of weights in each form; then in plain torch, in the first one."""
        for form in forms:
            kind = kind_of(self.prepare(form.draw(64, 64, device), form.dtype))
            if form is Q4_0 and kind is OnednnWeight:
                continue  # unpacked when it is loaded: the same as BF16
            how = f"{form.name}{KINDS.get(kind, '')}"
            yield self._case(section, how, form, device, self.prepare, self.bind)
        yield self._case(section, "plain torch", forms[0], device, lambda weight, _: weight, bind_plain)

    def _case(
        self,
        section: str,
        how: str,
        form: Form,
        device: torch.device,
        prepare: Callable[[StoredWeight, torch.dtype], Prepared],
        bind: Bind,
    ) -> Case:
        def make() -> Call:
            weights = [prepare(form.draw(n_out, self.n_in, device), form.dtype) for n_out in self.outs]
            x = torch.empty(self.rows, self.n_in, dtype=form.dtype, device=device).normal_()
            return bind(x, weights)

        shape = f"{self.n_in} -> {' + '.join(map(str, self.outs))}"
        size = sum(self.outs) * self.n_in // BLOCK_WEIGHTS * form.block_bytes
        return Case(section, f"{self.name} {shape}, {how}", size, make)


def kind_of(weight: Prepared) -> type:
    """Return what a prepared weight is; of a head, what the fast product takes."""
    return type(weight.fast if isinstance(weight, HeadWeight) else weight)


def bind_plain(x: Tensor, weights: Sequence[Tensor]) -> Call:
    """Multiply by each matrix, and nothing else."""
    return lambda: [F.linear(x, weight) for weight in weights]


def bind_add(x: Tensor, weights: Sequence[Weight], *, bias: bool = False, scale: bool = False) -> Call:
    """Add a product to what it is the residual of."""
    (weight,) = weights
    behind = x.new_zeros(*x.shape[:-1], weight.shape[0])
    added, factor = (x.new_ones(weight.shape[0]) if wanted else None for wanted in (bias, scale))
    return lambda: ops.add_linear(behind, x, weight, added, factor)


def bind_gate_up(x: Tensor, weights: Sequence[Weight]) -> Call:
    """Norm, gate and up, and what joins them."""
    norm, (gate, up) = x.new_ones(x.shape[-1]), weights
    return lambda: ops.norm_swiglu(x, norm, EPS, gate, up)


def bind_linear(x: Tensor, weights: Sequence[Weight]) -> Call:
    """Multiply by one matrix."""
    (weight,) = weights
    return lambda: ops.linear(x, weight)


def bind_head(x: Tensor, weights: Sequence[Weight | HeadWeight]) -> Call:
    """Logits of the tied embedding."""
    (weight,) = weights
    return lambda: ops.head(x, weight)


def prepare_head(weight: StoredWeight, dtype: torch.dtype) -> Prepared:
    """Return the tied embedding as the decoder has it."""
    return ops.prepare_head(ops.prepare_table(weight, dtype), dtype)


def bind_qkv(x: Tensor, weights: Sequence[Weight], *, bias: bool = False) -> Call:
    """Norm and three projections; `bias` as the encoder has it, on q and v."""
    norm = x.new_ones(x.shape[-1])
    biases = [
        x.new_ones(weight.shape[0]) if bias and number != 1 else None for number, weight in enumerate(weights)
    ]

    def call() -> object:
        n = ops.rms_norm(x, norm, EPS)
        return [ops.linear(n, weight, added) for weight, added in zip(weights, biases, strict=True)]

    return call


def bind_attend(head_dim: int, x: Tensor, weights: Sequence[Any], *, bias: bool = False) -> Call:
    """Do what a step does at its beginning: where kernels attend too, to no more than its own keys."""
    q, k, v = weights
    if not ops.fits_triton_heads(x, head_dim, q, k, v):
        return bind_qkv(x, weights, bias=bias)
    steps, norm = x.shape[0], x.new_ones(x.shape[-1])
    biases = (x.new_ones(q.shape[0]), None, x.new_ones(v.shape[0])) if bias else (None, None, None)
    keys, values = (x.new_zeros(k.shape[0] // head_dim, steps, head_dim) for _ in range(2))
    turn = torch.ones(steps, head_dim // 2, dtype=torch.complex64, device=x.device)
    position = torch.zeros(1, dtype=torch.int64, device=x.device)
    ring = turn, keys, values, position, 1
    return lambda: ops.attend_few(x, norm, EPS, (q, k, v), biases, *ring)


def bind_mix(head_dim: int, x: Tensor, weights: Sequence[Any]) -> Call:
    """Do what a layer of the flow head does at its beginning: where there are kernels for it, mix the tokens too."""
    q, k, v = weights
    if not ops.fits_triton_heads(x[:1], head_dim, q, k, v):
        return bind_qkv(x, weights)
    norm = x.new_ones(x.shape[-1])
    return lambda: ops.flow_mix(x, norm, EPS, (q, k, v), head_dim, FLOW_ROWS // 2)


def bind_three(x: Tensor, weights: Sequence[Weight]) -> Call:
    """Norm and three projections of the codec."""
    norm, (q, k, v) = x.new_ones(x.shape[-1]), weights
    return lambda: ops.norm_linears(x, norm, EPS, (q, k, v))


def layer(config: DecoderConfig | FlowConfig, rows: int, attend: Bind, mostly: ops.Rows) -> list[Product]:
    """Return the products of a layer without biases."""
    prepare = partial(ops.prepare, rows=mostly)
    dim, hidden, heads = config.dim, config.hidden_dim, config.n_heads * config.head_dim
    keys = config.n_kv_heads * config.head_dim
    return [
        Product("qkv", rows, dim, (heads, keys, keys), attend, prepare),
        Product("o", rows, heads, (dim,), bind_add, prepare),
        Product("gate-up", rows, dim, (hidden, hidden), bind_gate_up, prepare),
        Product("down", rows, hidden, (dim,), bind_add, prepare),
    ]


def encoder(config: EncoderConfig) -> list[Product]:
    """Return the products of a layer of the encoder, which mostly meets dozens of rows and is laid out for them."""
    dim, hidden, heads = config.dim, config.hidden_dim, config.n_heads * config.head_dim
    prepare = partial(ops.prepare, rows="many")
    add = partial(bind_add, bias=True)
    return [
        Product(
            "qkv", LIVE_ROWS, dim, (heads,) * 3, partial(bind_attend, config.head_dim, bias=True), prepare
        ),
        Product("o", LIVE_ROWS, heads, (dim,), add, prepare),
        Product("gate-up", LIVE_ROWS, dim, (hidden, hidden), bind_gate_up, prepare),
        Product("down", LIVE_ROWS, hidden, (dim,), add, prepare),
    ]


def codec(config: CodecConfig) -> Iterator[list[Product]]:
    """Yield the products of each stage of a codec frame, whose rows double from stage to stage."""
    dim, hidden, heads = config.dim, config.hidden_dim, config.n_heads * config.head_dim
    first, last = CODEC_KERNELS
    add = partial(bind_add, scale=True)
    for stage in range(len(config.stage_layers)):
        rows = 2**stage
        latent = config.semantic_dim + config.acoustic_dim
        before = (
            Product("doubling", rows // 2, 2 * dim, (2 * dim,), bind_linear)
            if stage
            else Product("first convolution", rows, latent * first, (dim,), bind_linear)
        )
        yield [
            before,
            Product("qkv", rows, dim, (heads,) * 3, bind_three),
            Product("o", rows, heads, (dim,), add),
            Product("gate-up", rows, dim, (hidden, hidden), bind_gate_up),
            Product("down", rows, hidden, (dim,), add),
        ]
    yield [Product("last convolution", rows, dim * last, (config.patch_samples,), bind_linear)]


def cases(asr: AsrConfig, tts: TtsConfig, device: torch.device) -> Iterator[Case]:
    """Yield everything to time; a kernel beside these is one more Case, a way to store weights one more Form."""
    text, flow = asr.decoder, tts.flow
    parts = {
        "decoder and backbone, 1 row": [
            *layer(text, 1, partial(bind_attend, text.head_dim), "one"),
            Product("head", 1, text.dim, (text.vocab_size,), bind_head, prepare_head),
        ],
        f"encoder, {LIVE_ROWS} rows": encoder(asr.encoder),
        f"flow head, {FLOW_ROWS} rows": layer(flow, FLOW_ROWS, partial(bind_mix, flow.head_dim), "few"),
    }
    for section, products in parts.items():
        for product in products:
            yield from product.cases(section, (BF16, Q4_0), device)
    for products in codec(tts.codec):
        for product in products:
            section = f"codec, {product.rows} row{'s' * (product.rows > 1)}"
            yield from product.cases(section, (F32,), device)


def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run what was asked for and return the figures by section."""
    device = ops.pick_device(args.device)
    what = "copying, GB/s read and written" if device.type == "cuda" else "reading, GB/s"
    rotation = args.rotate_mb << 20
    speed = memory_speed(device, 4 * rotation, args.repeat)
    results: dict[str, dict[str, Any]] = {
        "machine": {**machine(), "kernels": ops.describe(device, torch.bfloat16)},
        "memory": {what: speed / 1e9},
    }
    tiny = args.size == "tiny"
    configs = (tiny_config(), tiny_tts_config()) if tiny else (AsrConfig(), TtsConfig())
    for case in cases(*configs, device):
        if args.only not in f"{case.section}, {case.label}":
            continue
        copies = -(-rotation // case.weight_bytes)  # rounded up
        seconds = seconds_each([case.make() for _ in range(copies)], device, args.repeat)
        rate = case.weight_bytes / seconds
        results.setdefault(case.section, {})[case.label] = {
            "us": 1e6 * seconds,
            "GB/s": rate / 1e9,
            "share": rate / speed,
        }
    return results


def main(arguments: list[str]) -> int:
    """Run `scripts/bench kernels`."""
    parser = argparse.ArgumentParser(prog="scripts/bench kernels", description=__doc__)
    parser.add_argument("--size", choices=("tiny", "full"), default="full", help="of the models")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose line has this in it")
    parser.add_argument(
        "--rotate-mb",
        type=int,
        default=256,
        help="bytes of weights before one comes again (MB); above the cache's",
    )
    parser.add_argument("--repeat", type=int, default=20, help="runs; the median is shown")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    with torch.inference_mode():
        show(measure(args), args.json)
    return 0
