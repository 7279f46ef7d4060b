"""scripts/make-random-model: repeatable, in the real layouts, with a vocabulary that works."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from preloaded import scripts_preloaded

from voxtral_pipes.config import AsrConfig, AudioConfig
from voxtral_pipes.errors import OutputError
from voxtral_pipes.formats.bf16 import bf16_words
from voxtral_pipes.formats.locate import files_at
from voxtral_pipes.models.checkpoint import AsrCheckpoint
from voxtral_pipes.models.random_model import make_asr_model, tiny_config
from voxtral_pipes.models.random_tekken import asr_audio, write_tekken
from voxtral_pipes.models.random_weights import Law, fan_in_law, random_words
from voxtral_pipes.models.shapes import decoder_shapes, encoder_shapes


@pytest.mark.parametrize("format", ["safetensors", "hf", "gguf-q4", "gguf-q8"])
def test_the_script_makes_a_model_that_opens(tmp_path: Path, format: str) -> None:
    done, cut, again = scripts_preloaded(
        "make-random-model",
        ("asr", "--size", "tiny", "--format", format, "--seed", "3", tmp_path / "a"),
        ("asr", "--format", format, "--seed", "3", "--shard-bytes", "100000", tmp_path / "b"),
        ("asr", "--format", format, tmp_path / "a"),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert cut.returncode == 0
    one, two = (AsrCheckpoint(files_at(tmp_path / name)) for name in "ab")
    assert one.config == two.config == tiny_config()
    assert one.fingerprint == two.fingerprint
    assert one.names == encoder_shapes(one.config).keys() | decoder_shapes(one.config).keys()
    assert sum(path.stat().st_size for path in (tmp_path / "a").iterdir()) < 3_000_000
    assert again.returncode == 1
    assert "holds" in again.stderr and again.stderr.count("\n") == 1


def test_seeds_and_names_decide(tmp_path: Path) -> None:
    def words(name: str, seed: int) -> bytes:
        return b"".join(piece.tobytes() for piece in random_words(name, (50, 70), seed, Law(0.0, 1.0)))

    assert words("a.weight", 0) == words("a.weight", 0)
    assert len({words("a.weight", 0), words("b.weight", 0), words("a.weight", 1)}) == 3


def test_weights_are_distributed_as_said() -> None:
    shape = (3000, 1600)  # more than one piece
    words = np.concatenate(list(random_words("layers.0.feed_forward.w1.weight", shape, 0, fan_in_law(shape))))
    values = torch.from_numpy(words.view(np.int16)).view(torch.bfloat16).float()
    assert values.shape == shape
    assert abs(values.mean().item()) < 1e-4
    assert values.std().item() == pytest.approx(1600**-0.5, rel=0.01)


def test_rounding_equals_torch() -> None:
    values = np.random.default_rng(1).standard_normal(100_000).astype(np.float32)
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(bf16_words(values), expected)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown format"):
        make_asr_model(tmp_path / "a", tiny_config(), "pickle")  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        make_asr_model(tmp_path / "file", tiny_config())


@pytest.mark.parametrize("vocab_size", [300, 1256, 1600, 131_072])
def test_the_vocabulary_works(tmp_path: Path, vocab_size: int) -> None:
    path = tmp_path / "tekken.json"
    write_tekken(path, vocab_size, asr_audio(AudioConfig()))
    held = json.loads(path.read_text())
    n_special = held["config"]["default_num_special_tokens"]
    assert len(held["special_tokens"]) == n_special
    assert [entry["rank"] for entry in held["vocab"]] == list(range(held["config"]["num_vocab_tokens"]))
    theirs = Tekkenizer.from_file(path)
    assert theirs.n_words == vocab_size
    for text in ("Hello, the world!", "naïve 日本語 🙂\n\n  x", "\0"):
        assert theirs.decode(theirs.encode(text, bos=False, eos=False)) == text
    usable = [theirs.id_to_byte_piece(token) for token in range(n_special, vocab_size)]
    encoding = tiktoken.Encoding(
        "made-up", pat_str=held["config"]["pattern"], mergeable_ranks={b: r for r, b in enumerate(usable)},
        special_tokens={},
    )  # fmt: skip
    for rank in range(0, len(usable), max(1, len(usable) // 3000)):
        assert encoding._encode_single_piece(usable[rank]) == [rank]


def test_the_published_size_streams(tmp_path: Path) -> None:
    """One tensor of the full model, the largest, is drawn in pieces far smaller than itself."""
    config = AsrConfig()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    name = "mm_streams_embeddings.embedding_module.tok_embeddings.weight"
    shape = decoder_shapes(config)[name]
    pieces = random_words(name, shape, 0, fan_in_law(shape))
    for _ in range(5):
        assert next(pieces).nbytes < 16 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
