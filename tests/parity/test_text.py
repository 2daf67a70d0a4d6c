"""Prompt embeddings against `PIAPipeline.encode_prompt` of the oracle."""

from types import SimpleNamespace

import diffusers
import pytest
import torch

import tiny_repo
from tolerances import assert_parity
from vivant.errors import VivantWarning
from vivant.text import clip

PROMPTS = ["cat in a field", "a photo, of the walking cat: 12 fields!"]
NEGATIVE = ["", "running running the"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    tiny_repo.write_tokenizer(folder)
    return clip.load_tokenizer(folder), tiny_repo.text_encoder().requires_grad_(False)


def oracle(parts, prompts, **arguments):
    """The port's method, on an object that has just what the method reads."""
    tokenizer, text_encoder = parts
    pipeline = SimpleNamespace(tokenizer=tokenizer, text_encoder=text_encoder, unet=None)
    call = diffusers.PIAPipeline.encode_prompt
    return call(pipeline, prompts, torch.device("cpu"), 1, True, negative_prompt=NEGATIVE, **arguments)


def test_plain_prompts(parts):
    positive, negative = oracle(parts, PROMPTS)
    assert_parity(clip.encode(*parts, PROMPTS), positive)
    assert_parity(clip.encode(*parts, NEGATIVE), negative)


def test_prompts_that_are_cut(parts):
    long = ["cat in a field, " * 30, "cat"]
    positive, _ = oracle(parts, long)
    with pytest.warns(VivantWarning, match="W-PROMPT-TRUNCATED"):
        assert_parity(clip.encode(*parts, long), positive)


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_clip_skip(parts, clip_skip, monkeypatch):
    """The port's formula, once its encoder has the attribute that it looks for; negative prompts differ on purpose."""
    _, text_encoder = parts
    if not hasattr(text_encoder, "text_model"):
        monkeypatch.setattr(type(text_encoder), "text_model", property(lambda self: self), raising=False)
    positive, negative = oracle(parts, PROMPTS, clip_skip=clip_skip)
    assert_parity(clip.encode(*parts, PROMPTS, clip_skip), positive)
    assert_parity(clip.encode(*parts, NEGATIVE), negative)
    with pytest.raises(AssertionError):
        assert_parity(clip.encode(*parts, NEGATIVE, clip_skip), negative)
