"""The encoder against transformers' own, on random weights."""

import pytest
import torch
from asr_models import SMALL, random_encoder, windows
from reference_models import reference_of

from voxtral_pipes.config import AsrConfig


@pytest.mark.parametrize("window", [13, 45, 750])
@pytest.mark.parametrize("cut", ["whole", "single", "ragged"])
def test_embeddings_equal_transformers(window: int, cut: str) -> None:
    """asr.md section 18: within 1e-4, past the window, whatever the steps."""
    config = windows(window, 50)
    encoder, reference = random_encoder(config), reference_of(config)
    n_tokens = 3 * window // 4 + 50 if window < 100 else 210
    mel = torch.randn(1, 8 * n_tokens, 128, generator=torch.Generator().manual_seed(3))
    steps = {"whole": [32], "single": [1], "ragged": [5, 1, 32, 7, 2]}[cut]
    state = encoder.new_state(max(steps))
    pieces: list[torch.Tensor] = []
    done = 0
    while done < n_tokens:
        step = min(steps[len(pieces) % len(steps)], n_tokens - done)
        rows, state = encoder.step(state, mel[:, 8 * done : 8 * (done + step)])
        pieces.append(rows)
        done += step
    with torch.no_grad():
        expected = reference.model.get_audio_features(mel.transpose(1, 2), return_dict=True).pooler_output
    torch.testing.assert_close(torch.cat(pieces, 1), expected, atol=1e-4, rtol=0)


def test_rows_of_a_batch_do_not_touch() -> None:
    encoder = random_encoder()
    mel = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(4))
    both, _ = encoder.step(encoder.new_state(8, batch=2), mel)
    for row in range(2):
        alone, _ = encoder.step(encoder.new_state(8), mel[row : row + 1])
        torch.testing.assert_close(both[row : row + 1], alone, atol=1e-5, rtol=0)


def test_far_positions_are_the_same_function() -> None:
    """Scores depend on differences of positions only, so a stream begun at 524,000 gives the same rows."""
    encoder = random_encoder()
    mel = torch.randn(1, 8 * 40, 128, generator=torch.Generator().manual_seed(5))
    near, far = encoder.new_state(8), encoder.new_state(8)
    far.position = 524_000 - 524_000 % far.kv.capacity
    # An empty ring at a late position: slots that were never written must not be seen, so fill them as silence.
    rows = {}
    for name, state in (("near", near), ("far", far)):
        if name == "far":
            state.kv.keys.zero_()
            state.kv.values.zero_()
        out = [encoder.step(state, mel[:, 64 * i : 64 * (i + 1)])[0] for i in range(5)]
        rows[name] = torch.cat(out, 1)
    # Once the window (45 positions, 12 rows a layer) holds nothing but the stream itself, both agree.
    settled = 3 * 12 + 1
    torch.testing.assert_close(rows["near"][:, settled:], rows["far"][:, settled:], atol=2e-4, rtol=0)


def test_half_a_row_is_refused() -> None:
    encoder = random_encoder()
    with pytest.raises(ValueError, match="multiple of 8"):
        encoder.step(encoder.new_state(4), torch.zeros(1, 12, 128))


def test_no_look_ahead() -> None:
    """A row depends on nothing after its own eight mel frames."""
    encoder = random_encoder()
    mel = torch.randn(1, 80, 128, generator=torch.Generator().manual_seed(6))
    other = mel.clone()
    other[:, 48:] += 1
    first, _ = encoder.step(encoder.new_state(10), mel)
    second, _ = encoder.step(encoder.new_state(10), other)
    assert torch.equal(first[:, :6], second[:, :6])
    assert not torch.equal(first[:, 6], second[:, 6])


def test_bfloat16_stays_close() -> None:
    config: AsrConfig = SMALL
    wide = random_encoder(config)
    from asr_models import random_tensors

    from voxtral_pipes.models.encode import Encoder
    from voxtral_pipes.models.shapes import encoder_shapes

    tensors = {name: t.bfloat16() for name, t in random_tensors(encoder_shapes(config), 1).items()}
    narrow = Encoder.of(tensors, config.encoder)
    mel = torch.randn(1, 160, 128, generator=torch.Generator().manual_seed(7))
    expected, _ = wide.step(wide.new_state(20), mel)
    rows, _ = narrow.step(narrow.new_state(20), mel)
    assert rows.dtype == torch.bfloat16
    error = (rows.float() - expected).norm() / expected.norm()
    assert error < 0.03
