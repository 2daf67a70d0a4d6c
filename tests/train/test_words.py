"""Vocabularies: words that a tokenizer can only spell become words of their own, and nothing else changes."""

import tiny_pia
from vivant.train.text import learn_words, num_ids, strange_words, train_tokenizer

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
    old = tiny_pia.pipeline().tokenizer
    new = learn_words(old, ("growing",), tmp_path)
    assert new.tokenize("growing") == ["growing</w>"]
    assert new("a cat in a field")["input_ids"] == old("a cat in a field")["input_ids"]
