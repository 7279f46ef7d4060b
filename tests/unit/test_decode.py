"""The decoder against transformers' own, on random weights."""

import pytest
import torch
from asr_models import SMALL, random_decoder, windows
from reference_models import reference_of

from voxtral_pipes.models.layers import time_embedding


def greedy(decoder, embeds: torch.Tensor, delay: int) -> tuple[torch.Tensor, list[int]]:
    """Return the logits [n, vocab] and ids of all positions from the prompt's last on."""
    prompt = 33 + delay
    ids = torch.tensor([[1] + [32] * (prompt - 1)])
    state = decoder.new_state(delay)
    logits, state = decoder.prefill(state, embeds[:, :prompt], ids)
    rows, tokens = [logits], [int(logits.argmax())]
    for p in range(prompt, embeds.shape[1]):
        logits, state = decoder.step(state, embeds[:, p : p + 1], torch.tensor([[tokens[-1]]]))
        rows.append(logits)
        tokens.append(int(logits.argmax()))
    return torch.cat(rows), tokens


@pytest.mark.parametrize("delay", [1, 6, 12, 30])
@pytest.mark.parametrize("window", [40, 200])
def test_logits_and_greedy_tokens_equal_transformers(window: int, delay: int) -> None:
    """asr.md section 18: within 1e-3, tokens equal, also where the prompt (63) is longer than the window (40)."""
    config = windows(45, window)
    decoder, reference = random_decoder(config), reference_of(config)
    embeds = 0.5 * torch.randn(
        1, 33 + delay + 90, config.decoder.dim, generator=torch.Generator().manual_seed(delay)
    )
    logits, tokens = greedy(decoder, embeds, delay)
    ids = torch.tensor([[1] + [32] * (32 + delay) + tokens[:-1]])
    with torch.no_grad():
        inputs = reference.get_input_embeddings()(ids) + embeds
        t_cond = reference.model.time_embedding(torch.tensor([float(delay)]))[None]
        hidden = reference.model.language_model(inputs_embeds=inputs, t_cond=t_cond).last_hidden_state
        expected = reference.lm_head(hidden)[0, 32 + delay :]
    assert len(set(tokens)) > 10  # greedy over constant output would prove nothing
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=0)
    assert expected.argmax(-1).tolist() == tokens


def test_time_embedding_has_the_published_values() -> None:
    """asr.md section 9, check values for delay 6."""
    t = time_embedding(6, 3072)
    for index, value in (
        (0, 0.960170),
        (1, 0.949532),
        (1536, -0.279415),
        (1537, -0.313670),
        (3071, 0.00060361),
    ):
        assert abs(float(t[index]) - value) < 1e-6


def test_the_delay_matters_and_is_folded_once() -> None:
    decoder = random_decoder()
    assert decoder.ffn_norms(6) is decoder.ffn_norms(6)
    assert not torch.allclose(decoder.ffn_norms(6)[0], decoder.ffn_norms(30)[0])


def test_rows_of_a_batch_do_not_touch() -> None:
    decoder = random_decoder()
    embeds = torch.randn(2, 12, SMALL.decoder.dim, generator=torch.Generator().manual_seed(8))
    ids = torch.randint(0, 1300, (2, 12), generator=torch.Generator().manual_seed(9))
    both, _ = decoder.step(decoder.new_state(6, batch=2), embeds, ids)
    for row in range(2):
        alone, _ = decoder.step(decoder.new_state(6), embeds[row : row + 1], ids[row : row + 1])
        torch.testing.assert_close(both[row : row + 1], alone, atol=1e-4, rtol=0)


def test_a_start_at_position_131000_is_the_same_function() -> None:
    """Beyond every table and window: a stream whose ring was filled up to 131,000 goes on as one at 0 does."""
    config = windows(45, 40)
    decoder = random_decoder(config)
    embeds = torch.randn(1, 200, config.decoder.dim, generator=torch.Generator().manual_seed(10))
    ids = torch.randint(0, 1300, (1, 200), generator=torch.Generator().manual_seed(11))
    ends = []
    for start in (0, 131_000):
        state = decoder.new_state(6)
        state.kv.keys.zero_()
        state.kv.values.zero_()
        state.position = start
        for p in range(200):
            logits, state = decoder.step(state, embeds[:, p : p + 1], ids[:, p : p + 1])
        ends.append(logits)
    # Three layers of 40 keys reach back 118 positions: after 200 the empty beginning is forgotten.
    torch.testing.assert_close(ends[1], ends[0], atol=1e-3, rtol=0)
