"""scripts/bench on tiny models and the CPU: it runs and says all that it should; the figures are what they are."""

import json
from typing import Any

import pytest
import torch
from benchmarks.products import Products, seconds_of
from preloaded import run_preloaded
from processes import ROOT, environment


def bench(*arguments: str) -> dict[str, dict[str, Any]]:
    done = run_preloaded(ROOT / "scripts" / "bench", (*arguments, "--device", "cpu", "--json"), environment())
    assert done.returncode == 0, done.stderr.decode()
    sections: dict[str, dict[str, Any]] = json.loads(done.stdout)
    assert sections["machine"]["torch"]
    return sections


def test_kernels() -> None:
    sections = bench("kernels", "--size", "tiny", "--rotate-mb", "1", "--repeat", "1")
    assert sections["memory"]["reading, GB/s"] > 0
    rows = (
        "decoder and backbone, 1 row",
        "encoder, 4 rows",
        "flow head, 6 rows",
        "codec, 1 row",
        "codec, 8 rows",
    )
    for section in rows:
        lines = sections[section]
        assert any(line.startswith("gate-up ") and line.endswith(", plain torch") for line in lines)
        for figures in lines.values():
            assert figures.keys() == {"us", "GB/s", "share"}
            assert min(figures.values()) > 0
    forms = {line.split(", ")[1] for line in sections["decoder and backbone, 1 row"]}
    assert forms == {"BF16", "Q4_0", "plain torch"}


def test_some_kernels() -> None:
    sections = bench("kernels", "--size", "tiny", "--rotate-mb", "1", "--repeat", "1", "--only", "head 128")
    assert sections.keys() == {"machine", "memory", "decoder and backbone, 1 row"}
    assert all(line.startswith("head 128 -> ") for line in sections["decoder and backbone, 1 row"])


@pytest.mark.parametrize(
    ("form", "precision"), [("gguf-q4", "Q4_0 weights, bf16"), ("gguf-q8", "Q8_0 weights, bf16")]
)
def test_recognition(form: str, precision: str) -> None:
    sections = bench(
        "asr", "--format", form, "--dtype", "bf16", "--seconds", "1", "--live-seconds", "0", "--repeat", "1",
        "--memory-seconds", "2", "--no-pipes",
    )  # fmt: skip
    assert sections.keys() == {
        "machine",
        f"memory of each stage, {precision}",
        f"one process, file of 1 s, {precision}",
    }
    figures = sections[f"memory of each stage, {precision}"]
    assert figures.keys() == {"encoder, weights in the file GB", "decoder, weights in the file GB"}


@pytest.mark.parametrize(
    ("form", "precision"), [("safetensors", "BF16 weights, f32"), ("gguf-q8", "Q8_0 weights, f32")]
)
def test_synthesis(form: str, precision: str) -> None:
    sections = bench(
        "tts", "--format", form, "--frames", "4", "--steps", "1", "--memory-frames", "3", "--no-pipes"
    )
    figures = sections[f"memory of each stage, {precision}"]
    parts = ("backbone", "flow", "codec")
    assert list(figures) == [f"{part}, weights in the file GB" for part in parts]
    assert min(figures.values()) > 0
    assert sections[f"one process, n = 1, {precision}"]["flow ms a frame"] > 0


def test_bare_products_beside_a_pipe() -> None:
    sections = bench(
        "asr", "--format", "gguf-q4", "--dtype", "bf16", "--seconds", "1", "--live-seconds", "0", "--repeat", "1",
        "--compare", "products",
    )  # fmt: skip
    assert sections["real pipes, file of 1 s, Q4_0 weights, bf16"]["first token to last s"] > 0
    figures = sections["its bare products, before and after it"]
    assert list(figures) == ["encoder s", "decoder s", "sum s"]
    for name, both in figures.items():
        assert both.keys() == {"before", "after"} and min(both.values()) > 0, name


def test_products_are_remembered_and_made_again() -> None:
    """Convolutions, sums and norms are none; a made-up product counts as often as it was made."""
    made = Products()
    x, weight = torch.randn(3, 8), torch.randn(5, 8)
    with torch.inference_mode(), made:
        for _ in range(2):
            torch.nn.functional.linear(x, weight).exp().sum()
    assert len(made.made) == 2 and torch.equal(made.made[0](), x @ weight.T)
    assert seconds_of(made.made) > 0
