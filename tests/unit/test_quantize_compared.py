"""scripts/quantize --verify: what a file holds, compared with what it was made of."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from asr_models import SMALL
from quantized import KINDS, errors, opened, packed, run
from safetensors.torch import load_file
from tts_checkpoints import PACKABLE

from voxtral_pipes.errors import BadModelError
from voxtral_pipes.models.gguf_layout import Packing, tts_layout
from voxtral_pipes.models.quantize_errors import tensor_errors
from voxtral_pipes.models.random_model import make_asr_model


def test_the_table(dense_tts: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    first = run("tts", dense_tts, "-o", out, "--verify")
    assert (first.returncode, first.stderr) == (0, "")
    n = len(tts_layout(PACKABLE, "q4_0").tensors)
    lines = first.stdout.splitlines()
    assert len(lines) == n + 2
    assert lines[-1] == f"{n} tensors, all as near as their types allow"
    assert run("tts", dense_tts, "-o", out, "--verify").stdout == first.stdout
    again = run("tts", dense_tts, "-o", out)
    assert again.returncode == 1
    assert "is there already" in again.stderr and again.stderr.count("\n") == 1
    data = bytearray(out.read_bytes())
    data[-2] ^= 0x40  # of a folded convolution
    out.write_bytes(data)
    broken = run("tts", dense_tts, "-o", out, "--verify")
    assert broken.returncode == 1
    assert re.search(
        r"^audio_tokenizer.output_proj.conv.weight .* OFF: 1 weights$", broken.stdout, re.MULTILINE
    )
    assert broken.stderr == f"quantize: {out}: 1 tensors are off by more than their type allows\n"


def test_errors_are_those_of_the_values(dense_asr: Path, tmp_path: Path) -> None:
    out = packed(dense_asr / "hf", tmp_path / "a.gguf")
    tensors = load_file(dense_asr / "safetensors" / "consolidated.safetensors")
    found = errors(dense_asr / "hf", out)
    for tensor in gguf.GGUFReader(out).tensors:
        source = tensors[tensor.name].double().numpy()
        held = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        error = found[tensor.name]
        assert error.max_abs == pytest.approx(np.abs(held - source).max(), rel=1e-5)
        rms = np.sqrt(np.square(held - source).sum() / np.square(source).sum())
        assert error.rms == pytest.approx(rms, rel=1e-4)
        assert error.off == 0
        assert error.rms == 0 if error.type == "F32" else 0.05 < error.rms < 0.12


@pytest.mark.parametrize("kind", KINDS)
def test_a_code_that_is_one_off_is_found(dense_asr: Path, tmp_path: Path, kind: Packing) -> None:
    source = dense_asr / "safetensors"
    out = packed(source, tmp_path / "a.gguf", kind)
    _, rows, layout = opened(source, kind)
    name = "layers.1.attention.wk.weight"
    (held,) = (tensor for tensor in gguf.GGUFReader(out).tensors if tensor.name == name)
    values, block = rows.read(name, 0, 1), 34 if kind == "q8_0" else 18
    byte = bytearray(out.read_bytes())
    half = np.argsort(np.abs(values[0, :16]))[8]  # of middle size, so neither cut nor nearly half a step
    for offset, change in ((2 + int(half), 1), (1, 4), (1, 0x80)):  # a code; exponent and sign of the scale
        broken = bytearray(byte)
        at = int(held.data_offset) + 3 * block + offset
        broken[at] = broken[at] ^ change
        (tmp_path / "b.gguf").write_bytes(broken)
        off = [error.name for error in tensor_errors(tmp_path / "b.gguf", rows, layout) if error.off]
        assert off == [name]


def test_the_other_rule_is_allowed(dense_asr: Path, tmp_path: Path) -> None:
    """d = max / 7, never negative (formats.md section 0)."""
    source = dense_asr / "safetensors"
    out = packed(source, tmp_path / "a.gguf")
    _, rows, layout = opened(source)
    data = bytearray(out.read_bytes())
    for tensor in gguf.GGUFReader(out).tensors:
        if tensor.tensor_type.name == "Q4_0":
            wide = rows.read(tensor.name, 0, layout.tensors[tensor.name].shape[0]).reshape(-1, 32)
            scale = np.abs(wide).max(axis=1, keepdims=True) / 7
            held = np.clip(np.floor(wide / scale + 8.5), 0, 15).astype(np.uint8)
            blocks = np.concatenate(
                [scale.astype("<f2").view(np.uint8), held[:, :16] | held[:, 16:] << 4], axis=1
            )
            data[tensor.data_offset : tensor.data_offset + blocks.size] = blocks.tobytes()
    out.write_bytes(data)
    found = errors(source, out)
    assert [name for name, error in found.items() if error.off] == []
    assert found["layers.0.feed_forward.w1.weight"].rms > 0.09


def test_other_tensors_are_no_error_table(dense_asr: Path, tmp_path: Path) -> None:
    source = dense_asr / "safetensors"
    out = packed(source, tmp_path / "a.gguf", "q8_0")
    with pytest.raises(BadModelError, match=r"of Q8_0 where .* of Q4_0 is expected"):
        errors(source, out)
    shorter = replace(SMALL, decoder=replace(SMALL.decoder, n_layers=2))
    make_asr_model(tmp_path / "shorter", shorter)
    packed(tmp_path / "shorter", tmp_path / "b.gguf")
    with pytest.raises(BadModelError, match=r"is expected"):
        errors(source, tmp_path / "b.gguf")
