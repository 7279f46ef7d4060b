"""The Triton kernels over odd shapes: in Triton's interpreter, or, at the published shapes too, on a CUDA device.

The interpreter computes in float16, since its bfloat16 is not to be trusted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from types import FunctionType

import pytest
import torch
from asr_models import SMALL, random_decoder
from asr_models import random_tensors as random_asr_tensors
from q4 import packed_tensors, placed
from triton_cases import Cases, Form
from tts_models import SMALL_CODEC, SMALL_FLOW, random_codes, random_rows, random_tensors

from voxtral_pipes.kernels import dispatch, fitting
from voxtral_pipes.kernels.packed import Q4TileWeight
from voxtral_pipes.models.cache import Span
from voxtral_pipes.models.codec import Codec
from voxtral_pipes.models.encode import WHISPER
from voxtral_pipes.models.flow import Flow
from voxtral_pipes.models.shapes import decoder_shapes, encoder_shapes
from voxtral_pipes.models.stack import Stack
from voxtral_pipes.models.tts_shapes import FLOW, codec_shapes, flow_shapes

ON_DEVICE = torch.cuda.is_available()
pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed here"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, of the rows that are not there
]
interpreted = pytest.mark.skipif(ON_DEVICE, reason="tests/gpu runs whole models on the device")

TOLERANCE = 4e-2 if ON_DEVICE else 4e-3
"""A few units in the last place of bfloat16, or of float16, at 4."""

Shapes = Sequence[tuple[int | str, ...]]


def odd_and(odd: Shapes, published: Shapes) -> Shapes:
    """Return the shapes to test: the published ones would take the interpreter minutes."""
    return [*odd, *published] if ON_DEVICE else odd


@pytest.fixture(autouse=True, scope="module")
def without_idle_work() -> Iterator[None]:
    """Leave out what the interpreter does in vain, half of its time.

    It prepares triton.language for each function that a kernel calls, not just once a launch, and computes whether
    integers overflow, which it would tell in debug mode only.  Another version of Triton than the pinned one may have
    other names for all this, and then does its work in vain.
    """
    from triton import language
    from triton.runtime import interpreter

    if ON_DEVICE or not {"_patch_lang", "_LangPatchScope", "interpreter_builder"} <= vars(interpreter).keys():
        yield
        return
    prepare, options = interpreter._patch_lang, interpreter.interpreter_builder.options
    assert not options.debug

    def prepare_once(kernel: FunctionType) -> object:
        seen = [module for module in (language, language.core) if module in kernel.__globals__.values()]
        if any(language.core.is_builtin(module.load) for module in seen):
            return prepare(kernel)
        return interpreter._LangPatchScope()  # nothing to take back

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", prepare_once)
        patch.setattr(interpreter.interpreter_builder, "options", replace(options, sanitize_overflow=False))
        yield


@pytest.fixture
def cases() -> Cases:
    if ON_DEVICE:
        return Cases(dispatch.pick_device("cuda"), torch.bfloat16)
    return Cases(torch.device("cpu"), torch.float16)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("rows", "n_in", "n_out"),
    odd_and(
        [(1, 96, 80), (1, 1300, 7), (1, 4200, 5), (1, 1024, 12), (2, 300, 36), (6, 530, 50), (16, 64, 17)],
        [(1, 4096, 3072), (1, 3072, 9216), (1, 9216, 3072), (6, 3072, 9216), (2, 9216, 3072)],
    ),
)
def test_products_of_a_few_rows(
    cases: Cases, rows: int, n_in: int, n_out: int, norm: bool, gated: bool, residual: bool
) -> None:
    assert cases.linear_rows(rows, n_in, n_out, norm=norm, gated=gated, residual=residual) < TOLERANCE


@pytest.mark.parametrize(
    ("norm", "gated", "residual"), [(False, False, True), (True, False, False), (True, True, True)]
)
@pytest.mark.parametrize(
    ("rows", "n_in", "n_out"),
    odd_and(
        [(1, 96, 80), (2, 530, 7), (4, 300, 36), (8, 130, 50)],
        [(8, 1024, 4096), (8, 7168, 240), (2, 4096, 1024)],
    ),
)
def test_products_in_float32(
    cases: Cases, rows: int, n_in: int, n_out: int, norm: bool, gated: bool, residual: bool
) -> None:
    assert cases.float_rows(rows, n_in, n_out, norm=norm, gated=gated, residual=residual) < 2e-5


@pytest.fixture
def share_short_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut rings of some twenty slots in four, the last parts of which hold nothing: as published, 15 of 16 would."""
    if not ON_DEVICE:
        monkeypatch.setattr("voxtral_pipes.kernels.decode_attention.PARTS", 4)
        monkeypatch.setattr("voxtral_pipes.kernels.decode_attention.BLOCK_KEYS", 8)


@pytest.mark.usefixtures("share_short_rings")
@pytest.mark.parametrize(
    ("heads", "groups", "width", "n_in", "capacity", "window", "positions"),
    odd_and(
        [(6, 2, 16, 96, 20, 15, 28), (3, 3, 32, 50, 9, 9, 12), (4, 1, 16, 40, 200, 200, 3)],
        [(32, 8, 128, 3072, 1280, 1200, 1400)],
    ),
)
def test_one_position_of_attention(
    cases: Cases, heads: int, groups: int, width: int, n_in: int, capacity: int, window: int, positions: int
) -> None:
    assert cases.attend(heads, groups, width, n_in, capacity, window, positions) < TOLERANCE


@pytest.mark.parametrize(
    ("norm", "gated", "residual"), [(False, False, True), (True, False, False), (True, True, True)]
)
@pytest.mark.parametrize(
    ("rows", "n_in", "n_out", "form"),
    odd_and(
        [
            (1, 32, 9, "row"),
            (1, 96, 80, "row"),
            (1, 1312, 7, "row"),
            (1, 2048, 24, "row"),
            (1, 4160, 5, "row"),
            (1, 96, 9, "tiles"),
            (2, 320, 36, "tiles"),
            (6, 544, 50, "tiles"),
            (9, 1056, 17, "tiles"),
            (16, 352, 33, "tiles"),
        ],
        [
            (1, 4096, 3072, "row"),
            (1, 3072, 9216, "row"),
            (1, 9216, 3072, "row"),
            (6, 3072, 9216, "tiles"),
            (4, 5120, 1280, "tiles"),
            (12, 9216, 3072, "tiles"),
        ],
    ),
)
def test_products_with_packed_weights(
    cases: Cases, rows: int, n_in: int, n_out: int, form: Form, norm: bool, gated: bool, residual: bool
) -> None:
    given = {"norm": norm, "gated": gated, "residual": residual}
    assert cases.linear_rows(rows, n_in, n_out, form=form, **given) < TOLERANCE


@pytest.fixture(params=["tiles", "pairs of tiles"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How products of a few rows are cut, whatever the size of the matrix."""
    from voxtral_pipes.kernels import q4_tiles

    monkeypatch.setattr(q4_tiles, "MANY_TILES", 1 if request.param == "pairs of tiles" else 1 << 20)
    monkeypatch.setattr(q4_tiles, "LONG_GROUPS", 3)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize(
    ("rows", "n_in", "n_out", "apart"),
    odd_and([(1, 96, 80, 1), (2, 544, 36, 3), (12, 320, 17, 1)], [(6, 4096, 3072, 1), (2, 9216, 3072, 3)]),
)
def test_sums_in_tiles_and_the_norm_behind_them(
    cases: Cases, rows: int, n_in: int, n_out: int, apart: int
) -> None:
    rows_error, scaled, squares = cases.add_and_begin(rows, n_in, n_out, apart)
    assert rows_error < TOLERANCE and scaled < TOLERANCE and squares < TOLERANCE


@pytest.mark.usefixtures("cut")
def test_tiles_however_they_are_cut(cases: Cases) -> None:
    given = {"norm": True, "gated": False, "residual": True}
    assert cases.linear_rows(5, 544, 50, form="tiles", **given) < TOLERANCE
    assert cases.mix_tokens(6, 2, 16, 352, 3, form="tiles") < TOLERANCE
    assert cases.attend(6, 3, 16, 96, 20, 15, 24, steps=4, form="tiles") < TOLERANCE


@pytest.mark.parametrize(("n_in", "n_out"), [(96, 5), (352, 17), (128, 4112)])
def test_tiles_are_no_larger_than_packed_weights_but_for_padding(cases: Cases, n_in: int, n_out: int) -> None:
    weight, _ = cases.matrix(n_out, n_in, "tiles")
    assert isinstance(weight, Q4TileWeight)
    held = sum(part.numel() * part.element_size() for part in (weight.codes, weight.scales))
    assert held == -(-n_out // 16) * 16 * -(-n_in // 128) * 4 * 18


@pytest.mark.parametrize("form", ["dense", "row"])
@pytest.mark.parametrize(("n_in", "n_out"), [(96, 20), (1056, 19), (1024, 24)])
def test_one_row_as_of_many_outputs(
    monkeypatch: pytest.MonkeyPatch, cases: Cases, n_in: int, n_out: int, form: Form
) -> None:
    """Their settings are others; so many would take the interpreter long."""
    monkeypatch.setattr("voxtral_pipes.kernels.rows.WIDE", 16)
    given = {"norm": True, "gated": False, "residual": True}
    assert cases.linear_rows(1, n_in, n_out, form=form, **given) < TOLERANCE


@pytest.mark.parametrize("form", ["dense", "row"])
@pytest.mark.parametrize(("norm", "gated"), [(False, False), (True, True)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_not_finite_show(
    cases: Cases, value: float, norm: bool, gated: bool, form: Form
) -> None:
    assert cases.unlike_numbers(160, form, value, norm=norm, gated=gated)


@pytest.mark.parametrize("form", ["row", "tiles"])
@pytest.mark.parametrize(("n_in", "n_out"), odd_and([(96, 5), (352, 17), (64, 30)], [(3072, 1024)]))
def test_packed_weights_unpacked(cases: Cases, n_in: int, n_out: int, form: Form) -> None:
    assert cases.unpack(n_in, n_out, form) == 0


@pytest.mark.parametrize(
    ("n_in", "n_out", "sums", "count"), odd_and([(96, 12, 3, 1), (352, 40, 2, 5)], [(3072, 400, 2, 37)])
)
def test_sums_of_packed_rows(cases: Cases, n_in: int, n_out: int, sums: int, count: int) -> None:
    assert cases.look_up(n_in, n_out, sums, count) < 1e-5


@pytest.mark.usefixtures("share_short_rings")
@pytest.mark.parametrize(
    ("heads", "groups", "width", "n_in", "capacity", "window", "positions", "steps", "form"),
    odd_and(
        [
            (6, 2, 16, 96, 7, 5, 10, 1, "row"),
            (3, 3, 32, 64, 24, 9, 40, 4, "dense"),
            (3, 3, 16, 96, 24, 20, 36, 4, "tiles"),
            (4, 2, 16, 40, 12, 5, 21, 7, "dense"),
        ],
        [
            (32, 8, 128, 3072, 1280, 1200, 1400, 1, "row"),
            (32, 32, 64, 1280, 832, 750, 960, 4, "dense"),
            (32, 32, 64, 1280, 832, 750, 960, 4, "tiles"),
        ],
    ),
)
def test_a_few_positions_of_attention(
    cases: Cases,
    heads: int,
    groups: int,
    width: int,
    n_in: int,
    capacity: int,
    window: int,
    positions: int,
    steps: int,
    form: Form,
) -> None:
    sizes = heads, groups, width, n_in, capacity, window, positions
    assert cases.attend(*sizes, steps=steps, form=form) < TOLERANCE


@pytest.mark.parametrize(
    ("rows", "size", "apart"), odd_and([(1, 40, 0), (3, 3000, 7), (2, 1024, 1023)], [(1, 131072, 32)])
)
def test_the_choice_of_an_id(cases: Cases, rows: int, size: int, apart: int) -> None:
    logits = torch.randn(rows, size, generator=torch.Generator().manual_seed(size))
    logits[0, apart] = 9.0
    logits[-1, size // 3] = logits[-1, size // 2] = 8.0  # of equals the lowest
    same, error = cases.choose(logits, apart)
    assert same and error < 1e-5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_choice_shows_that_logits_are_not_finite(cases: Cases, value: float) -> None:
    from voxtral_pipes.kernels.choose import choose

    logits = torch.full((1, 40), value).to(cases.device)
    log_sum = choose(logits, 3)[0, 3:4].view(torch.float32)
    assert not torch.isfinite(log_sum).item()


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize(
    ("heads", "groups", "width", "n_in"),
    odd_and([(6, 2, 16, 98), (3, 1, 32, 70), (4, 4, 16, 33)], [(32, 8, 128, 3072)]),
)
def test_tokens_that_attend_to_each_other(
    cases: Cases, heads: int, groups: int, width: int, n_in: int, queries: int
) -> None:
    assert cases.mix_tokens(heads, groups, width, n_in, queries) < TOLERANCE


def test_tokens_that_attend_to_each_other_by_packed_weights(cases: Cases) -> None:
    assert cases.mix_tokens(6, 2, 16, 352, 3, form="tiles") < TOLERANCE


@pytest.mark.parametrize(("n_state", "dim"), odd_and([(36, 130), (7, 98), (5, 64)], [(36, 3072)]))
def test_an_euler_step_and_the_tokens_after_it(cases: Cases, n_state: int, dim: int) -> None:
    state, tokens, norm = cases.move(n_state, dim)
    assert state < 1e-5 and tokens < TOLERANCE and norm < TOLERANCE


@interpreted
def test_a_codec_and_a_decoder_that_go_by_the_float32_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of the models brings what the kernels take: shapes, strides, vectors of one axis."""
    monkeypatch.setenv("VX_KERNELS", "torch")  # which leaves weights as they are
    monkeypatch.setattr(dispatch, "prepare", lambda weight, dtype, **how: weight)  # as on CUDA
    codec = Codec.of(random_tensors(codec_shapes(SMALL_CODEC)), SMALL_CODEC)
    codes = random_codes(SMALL_CODEC, 8)
    state, pieces = codec.new_state(), []
    for size, piece in enumerate(codes.split([2, 1, 3, 2], dim=1)):
        if size == 1:
            monkeypatch.setattr(dispatch, "fits_float", _few_float_rows)
            monkeypatch.setattr(dispatch, "fits_window", lambda q: len(q) == 1)
        pieces.append(codec.step(state, piece)[0])  # the products of three frames go by plain torch
    decoder = random_decoder()
    logits, _ = decoder.step(decoder.new_state(6), torch.ones(1, 1, 64), torch.ones(1, 1, dtype=torch.int64))
    monkeypatch.undo()
    whole, _ = codec.step(codec.new_state(), codes)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=0)
    plain, _ = decoder.step(decoder.new_state(6), torch.ones(1, 1, 64), torch.ones(1, 1, dtype=torch.int64))
    torch.testing.assert_close(logits, plain, atol=1e-4, rtol=0)


@interpreted
def test_a_flow_head_that_goes_by_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(SMALL_FLOW, head_dim=16)
    tensors = random_tensors(flow_shapes(config))
    hidden, noise = random_rows(1, config.input_dim, 3), random_rows(1, config.acoustic_dim, 4)
    exact = Flow.of(tensors, config).integrate(hidden, noise, 3, 1.2)
    half = Flow.of({name: tensor.half() for name, tensor in tensors.items()}, config)
    for name in ("fits_triton", "fits_triton_heads"):
        monkeypatch.setattr(dispatch, name, lambda *given: True)
    fast = half.integrate(hidden.half(), noise, 3, 1.2)
    assert 0 < float((fast - exact).abs().max()) < 2e-2


@interpreted
@pytest.mark.parametrize("out_is_dense", [False, True])
def test_a_flow_head_in_tiles(monkeypatch: pytest.MonkeyPatch, out_is_dense: bool) -> None:
    """Of the embedded model's widths, and once with velocities by a dense matrix."""
    config = replace(SMALL_FLOW, input_dim=192, dim=128, n_layers=2, n_heads=4, head_dim=32, hidden_dim=192)
    stored, exact = packed_tensors(random_tensors(flow_shapes(config)))
    out = f"{FLOW}acoustic_codebook_output.weight"
    if out_is_dense:
        stored[out] = exact[out]
    hidden, noise = random_rows(1, config.input_dim, 3), random_rows(1, config.acoustic_dim, 4)
    expected = Flow.of(exact, config).integrate(hidden, noise, 2, 1.2)
    _go_by_tiles(monkeypatch)
    half = Flow.of(placed(stored, torch.device("cpu"), torch.float16), config)
    assert all(block.in_tiles for block in half.blocks)
    fast = half.integrate(hidden.half(), noise, 2, 1.2)
    assert 0 < float((fast - expected).abs().max()) < 2e-2


@interpreted
def test_an_encoder_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the embedded model's widths: past its window, and then more positions than go by a few."""
    encoder = replace(SMALL.encoder, dim=192, n_layers=2, n_heads=3, head_dim=64, hidden_dim=320, window=9)
    stored, exact = packed_tensors(random_asr_tensors(encoder_shapes(replace(SMALL, encoder=encoder)), 1))
    prefix = f"{WHISPER}transformer."
    here = Stack.of(exact, prefix, encoder, rows="many")
    _go_by_tiles(monkeypatch)
    there = Stack.of(placed(stored, torch.device("cpu"), torch.float16), prefix, encoder, rows="many")
    rings = [stack.new_kv(batch=1, window=9, max_step=20) for stack in (here, there)]
    for ring in rings:
        ring.keys.zero_()
        ring.values.zero_()
    x = torch.randn(1, 36, encoder.dim, generator=torch.Generator().manual_seed(3))
    for position, steps in ((0, 4), (4, 8), (12, 4), (16, 20)):
        rows, turn = x[:, position : position + steps], here.rotary.at(position, steps)
        span = rings[0].span(position, steps)
        expected = here(rows, rings[0], turn, span)
        few = Span.one(torch.tensor([position])) if steps <= dispatch.FEW_ROWS else span
        got = there(rows.half(), rings[1], turn, few)
        assert float((got.float() - expected).norm() / expected.norm()) < 1e-2


def _go_by_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay weights out as on CUDA, and multiply 16 rows at most by the kernels."""

    def fits(x: torch.Tensor, *weights: object) -> bool:
        return x.dtype == torch.float16 and x.numel() // x.shape[-1] <= dispatch.FEW_ROWS

    monkeypatch.setattr(dispatch, "_lays_out_on_cuda", lambda device, dtype: dtype == torch.float16)
    monkeypatch.setattr(dispatch, "fits_triton", fits)
    monkeypatch.setattr(dispatch, "fits_triton_heads", lambda x, head_dim, *weights: fits(x))


@interpreted
@pytest.mark.usefixtures("share_short_rings")
@pytest.mark.parametrize(("part", "steps"), [("encoder", 4), ("decoder", 1)])
def test_a_transformer_that_goes_by_the_kernels_over_its_ring(
    monkeypatch: pytest.MonkeyPatch, part: str, steps: int
) -> None:
    """Past the window, so that slots are written again; the encoder has biases and no groups of heads."""
    encoder = replace(SMALL.encoder, n_layers=2, window=9)
    decoder = replace(SMALL.decoder, n_layers=2, window=9)
    small = replace(SMALL, encoder=encoder, decoder=decoder)
    shapes = encoder_shapes(small) if part == "encoder" else decoder_shapes(small)
    prefix, config = (f"{WHISPER}transformer.", encoder) if part == "encoder" else ("", decoder)
    tensors = random_asr_tensors(shapes, 1)
    exact = Stack.of(tensors, prefix, config)
    half = Stack.of({name: tensor.half() for name, tensor in tensors.items()}, prefix, config)
    rings = [stack.new_kv(batch=1, window=9, max_step=4) for stack in (exact, half)]
    for ring in rings:
        ring.keys.zero_()
        ring.values.zero_()
    x = torch.randn(1, 12 * steps, config.dim, generator=torch.Generator().manual_seed(3))
    for position in range(0, 12 * steps, steps):
        rows, turn = x[:, position : position + steps], exact.rotary.at(position, steps)
        expected = exact(rows, rings[0], turn, rings[0].span(position, steps))
        with monkeypatch.context() as patch:
            patch.setattr(dispatch, "fits_triton", lambda *given: True)
            got = half(rows.half(), rings[1], turn, Span.one(torch.tensor([position])))
        assert float((got.float() - expected).norm() / expected.norm()) < 1e-2


def _few_float_rows(x: torch.Tensor, *weights: object) -> bool:
    return x.dtype == torch.float32 and x.numel() // x.shape[-1] in fitting.FLOAT_ROWS
