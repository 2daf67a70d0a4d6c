"""Prompts with weights and of any length, against the rules of A1111 written once more, without this package."""

import re

import pytest
import torch

import tiny
import tiny_pia
import tiny_repo
from tolerances import assert_parity
from vivant.errors import InputError, VivantWarning
from vivant.text import clip
from vivant.text.encode import encode, weigh

LONG = "a cat in the field, " * 14 + "(a running cat:1.4) in the [field], walking " + "a photo of the cat, " * 20
SENTENCES = ["a cat in a field", "", "walking, running: the 'photo'; of 3 cats!"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    tiny_repo.write_tokenizer(folder)
    return clip.load_tokenizer(folder), tiny_repo.text_encoder().requires_grad_(False)


def weighted(parts, *prompts, clip_skip=None):
    (embeds,), _ = encode(*parts, [prompts], clip_skip, "weighted")
    return embeds


def by_rule(parts, pieces, layer=-1):
    """A1111: chunks of 75 with begin and end, moved after a comma, times their weights, scaled to the chunk's mean.

    Args:
        parts: tokenizer and encoder.
        pieces: text and weight, or None for a break.
        layer: which hidden state.
    """
    tokenizer, encoder = parts
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    done, now, last = [], [], None
    for piece in pieces:
        if piece is None:
            done, now, last = [*done, now], [], None
            continue
        for token in tokenizer(piece[0], add_special_tokens=False)["input_ids"]:
            if token == comma:
                last = len(now)
            elif len(now) == 75 and last is not None and 75 - last <= 20:
                done, now, last = [*done, now[: last + 1]], now[last + 1 :], None
            if len(now) == 75:
                done, now, last = [*done, now], [], None
            now.append((token, piece[1]))
    out = []
    for chunk in [*done, now] if now or not done else done:
        ends = [(tiny_repo.EOS, 1.0)] * (76 - len(chunk))
        ids, weights = zip(*[(tiny_repo.BOS, 1.0), *chunk, *ends], strict=True)
        hidden = encoder(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer]
        z = getattr(encoder, "text_model", encoder).final_layer_norm(hidden)
        mean = z.mean()
        z = z * torch.tensor(weights)[None, :, None]
        out.append(z * (mean / z.mean()))
    return torch.cat(out, dim=1)


@pytest.mark.parametrize(("clip_skip", "layer"), [(None, -1), (0, -1), (1, -2), (2, -3)])
def test_a_weighted_prompt_is_a1111_s(parts, clip_skip, layer):
    due = by_rule(parts, [("a ", 1.0), ("cat", 1.3), (" in a ", 1.0), ("field", 1 / 1.1)], layer)
    found = weighted(parts, "a (cat:1.3) in a [field]", clip_skip=clip_skip)
    assert_parity(found, due)
    with pytest.raises(AssertionError):
        assert_parity(weighted(parts, "a cat in a field", clip_skip=clip_skip), due)


def test_a_long_prompt_is_a1111_s(parts):
    pieces = [("a cat in the field, " * 14, 1.0), ("a running cat", 1.4), (" in the ", 1.0), ("field", 1 / 1.1)]
    due = by_rule(parts, [*pieces, (", walking " + "a photo of the cat, " * 20, 1.0)])
    found = weighted(parts, LONG)
    assert found.shape == (1, 3 * 77, tiny.TEXT_DIM)
    assert_parity(found, due)


def test_a_break_begins_a_chunk(parts):
    due = by_rule(parts, [("a cat", 1.0), None, ("in a ", 1.0), ("field", 1.1)])
    assert_parity(weighted(parts, "a cat BREAK in a (field)"), due)


@pytest.mark.parametrize("clip_skip", [None, 1])
def test_a_sentence_without_syntax_is_the_same_to_the_bit(parts, clip_skip):
    batches = [SENTENCES, ["dark", "", "a"]]
    plain = encode(*parts, batches, clip_skip)
    found = encode(*parts, batches, clip_skip, "weighted")
    assert all(torch.equal(a, b) for a, b in zip(found.embeds, plain.embeds, strict=True))
    assert torch.equal(plain.embeds[0], clip.encode(*parts, SENTENCES, clip_skip))
    assert found.notes == plain.notes == ()
    assert not torch.equal(
        found.embeds[0], encode(*parts, [["a (cat) in a field", *SENTENCES[1:]]], clip_skip, "weighted")[0][0]
    )


def test_that_holds_for_any_padding_and_mask(parts, tmp_path):
    """Some tokenizers pad with another token, and some checkpoints ask for the mask."""
    tiny_repo.write_tokenizer(tmp_path)
    tokenizer, encoder = clip.load_tokenizer(tmp_path), tiny_repo.text_encoder().requires_grad_(False)
    tokenizer.pad_token = "!"
    encoder.config.use_attention_mask = True
    plain = clip.encode(tokenizer, encoder, SENTENCES)
    assert not torch.equal(plain, clip.encode(*parts, SENTENCES))
    assert torch.equal(weighted((tokenizer, encoder), *SENTENCES), plain)


def test_brackets_are_brackets_in_plain_syntax(parts):
    (plain,), notes = encode(*parts, [["a (cat:1.3)"]])
    assert torch.equal(plain, clip.encode(*parts, ["a (cat:1.3)"]))
    assert_parity(weighted(parts, r"a \(cat:1.3\)"), plain)
    assert notes == ()


def test_all_prompts_get_as_many_chunks_as_the_longest(parts):
    (positive, negative), notes = encode(*parts, [[LONG, "a cat"], ["dark"]], None, "weighted")
    assert positive.shape == (2, 3 * 77, tiny.TEXT_DIM)
    empty = weighted(parts, "")
    assert_parity(negative, torch.cat([weighted(parts, "dark"), empty, empty], dim=1))
    assert_parity(positive[1:], torch.cat([weighted(parts, "a cat"), empty, empty], dim=1))
    backwards, _ = encode(*parts, [["dark"], ["a cat", LONG]], None, "weighted")
    assert_parity(backwards[0], negative)
    assert_parity(backwards[1].flip(0), positive)
    (note,) = notes
    assert re.search(r"has \d+ tokens, read in 3 chunks of up to 75", note)


def test_prompts_do_not_weigh_on_each_other(parts):
    together = weighted(parts, "a (cat:1.5)", "the (photo:0.2)", "a dog")
    assert_parity(together[:1], weighted(parts, "a (cat:1.5)"))
    assert_parity(together[1:2], weighted(parts, "the (photo:0.2)"))
    assert torch.equal(together[2], weighted(parts, "a (cat:2)", "x", "a dog")[2])


def test_long_prompts_are_cut_with_a_warning_in_plain_syntax(parts):
    with pytest.warns(VivantWarning, match="W-PROMPT-TRUNCATED"):
        (plain,), notes = encode(*parts, [[LONG]])
    assert plain.shape == (1, 77, tiny.TEXT_DIM)
    assert len(notes) == 1


def test_what_other_programs_would_act_upon_is_said(parts):
    with pytest.warns(VivantWarning, match=r"W-PROMPT-SYNTAX.*'\[cat\|dog\]'"):
        _, notes = encode(*parts, [["a [cat|dog]"]], None, "weighted")
    assert "[W-PROMPT-SYNTAX]" in notes[0]
    assert encode(*parts, [["a [cat|dog]"]]).notes == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_data_types(parts, dtype):
    tokenizer, _ = parts
    encoder = tiny_repo.text_encoder().requires_grad_(False).to(dtype)
    found = weighted((tokenizer, encoder), "a (cat:1.3) in a [field]")
    assert found.dtype == dtype
    assert_parity(found, weighted(parts, "a (cat:1.3) in a [field]").to(dtype), torch.bfloat16)


def test_the_mean_is_kept_and_ones_change_nothing():
    z, weights = 1 + tiny.noise(2, 5, 3), torch.ones(2, 5)
    z[0] = torch.tensor([[1.0, -1.0, 0.0]])  # a mean of 0 cannot be scaled to
    assert weigh(z, weights) is z
    weights[1, 2] = 1.5
    found = weigh(z, weights)
    assert torch.equal(found[0], z[0])
    assert float((found[1].mean() - z[1].mean()).abs()) < 1e-6
    assert_parity(found[1] / found[1, 0, 0], z[1] * weights[1, :, None] / z[1, 0, 0])


def test_weights_that_leave_no_numbers_are_refused():
    z = torch.tensor([[[1.0, 2.0], [-3.0, 5.0]]])
    with pytest.raises(InputError, match="E-PROMPT-WEIGHT"):
        weigh(z, torch.tensor([[2.0, -3.0]]))  # the mean becomes 0


@pytest.mark.parametrize(
    ("prompts", "code"),
    [
        (["a (cat:" + "9" * 400 + ")"], "E-PROMPT-WEIGHT"),
        ([], "E-PROMPT-TYPE"),
        (["a", "\ud800"], "E-PROMPT-TEXT"),
    ],
)
def test_what_is_refused(parts, prompts, code):
    with pytest.raises(InputError) as error:
        encode(*parts, [["a"], prompts], None, "weighted")
    assert error.value.code == code


@pytest.mark.unchecked
def test_there_are_two_syntaxes(parts):
    with pytest.raises(InputError, match=r"E-PROMPT-SYNTAX.*plain, weighted"):
        encode(*parts, [["a"]], None, "compel")


# In the pipeline


def test_the_pipeline_reads_weights_only_when_asked():
    pipe = tiny_pia.pipeline()
    plain = tiny_pia.run(pipe, prompt="a (cat:1.4)", num_inference_steps=1)
    found = tiny_pia.run(pipe, prompt="a (cat:1.4)", num_inference_steps=1, prompt_syntax="weighted")
    embeds = pipe.encode_prompt("a (cat:1.4)", negative_prompt="dark, sketches", prompt_syntax="weighted")
    given = {"prompt": None, "negative_prompt": None, "num_inference_steps": 1}
    ready = tiny_pia.run(pipe, prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], **given)
    assert torch.equal(found, ready)
    assert not torch.equal(found, plain)


def test_the_pipeline_takes_prompts_of_any_length():
    pipe = tiny_pia.pipeline()
    long = tiny_pia.run(pipe, prompt=LONG, num_inference_steps=1, prompt_syntax="weighted")
    ends = tiny_pia.run(pipe, prompt=LONG + "walking", num_inference_steps=1, prompt_syntax="weighted")
    assert torch.isfinite(long).all()
    assert not torch.equal(long, ends)
    assert any("read in 3 chunks" in note for note in pipe.notes)
    assert not any("W-PROMPT-TRUNCATED" in note for note in pipe.notes)
    positive, negative = pipe.encode_prompt([LONG, "a"], negative_prompt="dark", prompt_syntax="weighted")
    assert positive.shape == negative.shape == (2, 3 * 77, tiny.TEXT_DIM)
