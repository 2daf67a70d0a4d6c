"""New words: they become tokens of their own and directions in what the text encoder says, and nothing else changes."""

import copy
from typing import Any

import numpy as np
import torch

import tiny
import tiny_pia
from train.world import settings
from vivant.pia.layers import Attention
from vivant.text.clip import encode, load_text_encoder, load_tokenizer
from vivant.train.loop import train
from vivant.train.text import add_embeddings, learn_words, num_ids, strange_words, train_tokenizer
from vivant.train.words import Captions, Said, WordsTask, aligned, clear_directions

KNOWN = ["a small red cat on a mat", "a large cat", "small mats and red cats"] * 20


def test_strange_words_are_those_that_are_spelt(tmp_path):
    tokenizer = train_tokenizer(KNOWN, tmp_path / "old", 700)
    captions = ["a cat zooming in", "a small cat zooming out", "a mat, once seldom"]
    assert strange_words(tokenizer, captions, 2) == ("zooming",)
    assert "seldom" in strange_words(tokenizer, captions, 1)
    assert "cat" not in strange_words(tokenizer, captions, 1)


def test_learnt_words_are_one_token_and_others_keep_theirs(tmp_path):
    old = train_tokenizer(KNOWN, tmp_path / "old", 700)
    words = ("zooming", "zooms", "moving", "moves", "cathedral")
    new = learn_words(old, words, tmp_path / "new")
    assert [new.tokenize(word) for word in words] == [[f"{word}</w>"] for word in words]
    for text in (*KNOWN[:3], "unknown things: ü, 5!", "mo zo cat's"):
        assert new(text)["input_ids"] == old(text)["input_ids"]
    assert (new.bos_token_id, new.eos_token_id, new.pad_token_id) == (
        old.bos_token_id,
        old.eos_token_id,
        old.pad_token_id,
    )
    assert max(new(" ".join(words))["input_ids"]) == num_ids(new) - 1


def test_words_can_be_added_to_a_vocabulary_of_another_origin(tmp_path):
    old: Any = tiny_pia.pipeline().tokenizer
    new: Any = learn_words(old, ("growing",), tmp_path)
    assert new.tokenize("growing") == ["growing</w>"]
    assert new("a cat in a field")["input_ids"] == old("a cat in a field")["input_ids"]


# ------------------------------------------------------------------------------------------------------ meanings


def test_captions_are_aligned_with_themselves_without_new_words():
    """8 and 9 are new; 0 begins, 1 ends and fills."""
    found = aligned([0, 4, 8, 5, 9, 6, 1, 1, 1], num_known=8)
    assert found["old"].tolist() == [0, 4, 5, 6, 1, 1, 1, 1, 1]
    assert found["places"].tolist() == [0, 1, 3, 5, 6, 7, 8, 0, 0]
    assert found["kept"].tolist() == [True] * 7 + [False] * 2
    assert found["after"].tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0]
    plain = aligned([0, 4, 5, 1, 1], num_known=8)
    assert (plain["old"].tolist(), plain["places"].tolist()) == ([0, 4, 5, 1, 1], [0, 1, 2, 3, 4])
    assert plain["kept"].all()
    assert plain["after"].sum() == 0


def say(rng: np.random.Generator) -> Said:
    what, new = ("a cat", "cat in a field")[rng.integers(2)], ("zooming", "wobbling", "")[rng.integers(3)]
    return Said(f"{what} {new}".strip(), (new,) if new else ())


def words_task(tmp_path) -> WordsTask:
    pipe = tiny_pia.pipeline()
    tokenizer = learn_words(pipe.tokenizer, ("zooming", "wobbling"), tmp_path / "tokenizer")
    axes = 3 * torch.linalg.qr(torch.randn(pipe.text_encoder.config.hidden_size, 2))[0].T
    ways = dict(zip(("zooming", "wobbling"), axes, strict=True))
    return WordsTask(copy.deepcopy(pipe.text_encoder), tokenizer, num_ids(pipe.tokenizer), ways, seed=1)


def attention(values: torch.Tensor, keys: torch.Tensor) -> Attention:
    """One that passes on what `values` makes of a text, where `keys` looks."""
    layer = Attention(len(values), 1, values.shape[1])
    with torch.no_grad():
        layer.to_v.weight.copy_(values)
        layer.to_k.weight.copy_(keys)
        layer.to_out[0].weight.copy_(torch.eye(len(values)))
    return layer


def test_clear_directions_pass_far_and_stand_in_nobodys_way():
    """Of four axes the first passes far, the second as far and is full of content, the third is what attention looks
    at, and the fourth passes less."""
    values, keys = torch.diag(torch.tensor([3.0, 3.0, 3.0, 1.0])), torch.diag(torch.tensor([0.1, 0.1, 9.0, 0.1]))
    hidden = tiny.noise(50, 7, 4) * torch.tensor([0.1, 5.0, 0.1, 0.1])
    found = clear_directions([attention(values, keys)], hidden, 2)
    assert torch.allclose(found @ found.T, torch.eye(2), atol=1e-5)
    assert found[0, 0].abs() > 0.99
    assert found[1, 1].abs() < 0.1
    once_more = clear_directions([attention(values, keys), attention(100 * values, keys)], hidden, 2)
    assert torch.allclose(once_more.abs(), found.abs(), atol=1e-4)  # each attention counts alike


def test_new_words_become_directions_and_old_captions_stay(tmp_path):
    task, pipe = words_task(tmp_path), tiny_pia.pipeline()
    out = train(task, Captions(500, say), settings(steps=250, batch=8, ema=0.9, learning_rate=5e-3), tmp_path / "run")
    encoder, tokenizer = load_text_encoder(out / "text_encoder"), load_tokenizer(out / "tokenizer")
    with torch.no_grad():
        before, after = (
            [encode(*parts, [text])[0, -1] for text in ("a cat", "a cat zooming", "a cat wobbling")]
            for parts in ((pipe.tokenizer, pipe.text_encoder), (tokenizer, encoder))
        )
    zooming, wobbling = task.directions.values()
    assert (after[0] - before[0]).norm() < 0.25 * before[0].norm()
    for text, way, other in ((after[1], zooming, wobbling), (after[2], wobbling, zooming)):
        moved = text - before[0]
        assert torch.cosine_similarity(moved, way, dim=0) > 0.8
        assert torch.cosine_similarity(moved, other, dim=0) < 0.4


def test_room_is_made_only_where_it_is_missing():
    encoder = copy.deepcopy(tiny_pia.pipeline().text_encoder)
    rows = encoder.get_input_embeddings().weight.detach().clone()
    add_embeddings(encoder, len(rows) - 3, seed=0)
    assert torch.equal(encoder.get_input_embeddings().weight, rows)
    add_embeddings(encoder, len(rows) + 3, seed=0)
    more = encoder.get_input_embeddings().weight
    assert (len(more), encoder.config.vocab_size) == (len(rows) + 3, len(rows) + 3)
    assert torch.equal(more[: len(rows)], rows)
    assert 0.3 < more[len(rows) :].std() / rows.std() < 3
