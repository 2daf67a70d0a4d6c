"""A layer in pieces: every token once, and the same result as in one."""

import pytest
import torch

import tiny
import tiny_consisid as small
from tolerances import assert_parity
from vivant.consisid import pieces as module
from vivant.consisid.pieces import pieces
from vivant.consisid.transformer import ConsisIDTransformer3DModel


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize(
    ("num_tokens", "num_text", "most"), [(52, 7, 4), (52, 7, 100), (8, 7, 7), (7, 0, 3), (9, 8, 1)]
)
def test_every_token_is_in_one_piece_of_its_own_kind(num_tokens, num_text, most, by_row):
    seen, kinds = torch.zeros(3, num_tokens), torch.zeros(3, num_tokens)
    for piece in pieces(3, num_tokens, num_text, most, by_row):
        seen[piece.rows, piece.tokens] += 1
        kinds[piece.rows, piece.tokens] = float(piece.is_text)
        assert piece.tokens.stop - piece.tokens.start <= most
        assert (piece.rows.stop - piece.rows.start == 1) == by_row
    assert torch.equal(seen, torch.ones_like(seen))
    assert torch.equal(kinds, (torch.arange(num_tokens) < num_text).float().expand(3, -1))


@pytest.mark.parametrize("times", [[500.0], [500.0, 20.0]], ids=["one time", "two"])
@pytest.mark.parametrize("people", [1, 2])
def test_small_pieces_change_nothing(monkeypatch, people, times):
    network = tiny.fill(ConsisIDTransformer3DModel.from_config(small.TRANSFORMER))
    face = small.face(people)
    inputs = small.latents(), small.text(), torch.tensor(times)
    with torch.no_grad():
        whole = network(*inputs, **face).sample
        monkeypatch.setattr(module, "TOKENS", 4)
        assert_parity(network(*inputs, **face).sample, whole)
    assert_parity(network(*inputs, **face).sample.detach(), whole)  # differentiated, hence in one piece
