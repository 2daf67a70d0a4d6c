"""What a prompt says beside its words: the published examples of A1111's parser, and where ours differs on purpose."""

import time

import pytest

from vivant.errors import InputError
from vivant.text import prompt
from vivant.text.prompt import BACKTRACK, MAX_DEPTH, chunks, parse

COMMA = 9


def pieces(text: str) -> list[tuple[str, float]]:
    """Of a prompt without breaks."""
    (section,) = parse(text)
    return [tuple(piece) for piece in section]


# The examples in the documentation of A1111's parse_prompt_attention.
PUBLISHED = {
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    r"\(literal\]": [("(literal]", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0),
        ("house", 1.5730000000000004),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641000000000006),
        (".", 1.1),
    ],
}


@pytest.mark.parametrize("text", PUBLISHED)
def test_the_published_examples(text):
    assert pieces(text) == PUBLISHED[text]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("(word:1.3)", [("word", 1.3)]),
        ("(word: 1.3 )", [("word", 1.3)]),
        ("(word:.5)", [("word", 0.5)]),
        ("(word:-1)", [("word", -1.0)]),
        ("(word:0)", [("word", 0.0)]),
        ("((word))", [("word", 1.1 * 1.1)]),
        ("[word]", [("word", 1 / 1.1)]),
        ("[[word", [("word", 1 / 1.1 / 1.1)]),
        ("(a (b:2))", [("a ", 1.1), ("b", 2.2)]),
        (
            "(a [b) c]",
            [("a ", 1.1), ("b", 1.1 * (1 / 1.1)), (" c", 1 / 1.1)],
        ),  # kinds of brackets know nothing of each other
        ("a) b", [("a) b", 1.0)]),
        ("a:1.3) b", [("a:1.3) b", 1.0)]),
        ("[word:1.3]", [("word:1.3", 1 / 1.1)]),
        (r"\\ \( \) \[ \] \x", [(r"\ ( ) [ ] x", 1.0)]),
        (r"(a\))", [("a)", 1.1)]),
        ("ratio 3:2", [("ratio 3:2", 1.0)]),
        ("", []),
        ("()", []),
    ],
)
def test_the_rules_one_by_one(text, read):
    found = pieces(text)
    assert [word for word, _ in found] == [word for word, _ in read]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in read], rel=1e-12)


@pytest.mark.parametrize("text", ["(a:1.2.3)", "(a:.)", "(a:1e3)", "(a:x)"])
def test_what_is_no_number_is_text(text):
    assert pieces(text) == [(text[1:-1], 1.1)]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a BREAK b", [["a"], ["b"]]),
        ("BREAK a", [[], ["a"]]),
        ("a BREAK", [["a"], []]),
        ("a\nBREAK  BREAK b", [["a"], [], ["b"]]),
        ("a BREAK, b", [["a"], [", b"]]),
        ("a break b", [["a break b"]]),
        ("BREAKFAST, OUTBREAK", [["BREAKFAST, OUTBREAK"]]),
    ],
)
def test_breaks(text, read):
    assert [[piece.text for piece in section] for section in parse(text)] == read


def test_a_break_inside_brackets_is_one_too():
    assert parse("(a BREAK b:1.5)") == ((("a", 1.5),), (("b", 1.5),))


def test_the_work_is_linear_in_the_length():
    start = time.process_time()
    for unit in ("(a", "[a", "a ", "\\", ":1", "(a:", "[|", ": ", "1"):
        parse(unit * 10_000)
        prompt.unread("[" + unit * 10_000)
    assert time.process_time() - start < 4


def test_deeper_brackets_are_characters():
    assert pieces("(" * (MAX_DEPTH + 2) + "a") == [("((a", pytest.approx(1.1**MAX_DEPTH))]


@pytest.mark.parametrize("text", [f"(a:{'9' * 400})", f"((a:{'9' * 200}):{'9' * 200})"])
def test_weights_beyond_all_numbers_are_refused(text):
    with pytest.raises(InputError, match="E-PROMPT-WEIGHT"):
        prompt.check_weights(text)
    prompt.check_weights("(a:1e999) (b:100)")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a [cat:dog:0.5] b", ("[cat:dog:0.5]",)),
        ("a [hat:10] b", ("[hat:10]",)),
        ("a [cat|dog]", ("[cat|dog]",)),
        ("a <lora:film:0.8> b", ("<lora:film:0.8>",)),
        (r"a \[cat|dog\] (b:1.3) [c] [d: e] <x>", ()),
    ],
)
def test_what_other_programs_would_act_upon(text, found):
    assert prompt.unread(text) == found


# Chunks


def ids(sections, **settings):
    return [chunk.ids for chunk in chunks([[(s, 1.0)] for s in sections], **settings)]


def test_a_full_chunk_is_closed():
    assert ids([range(10, 17)], capacity=3) == [(10, 11, 12), (13, 14, 15), (16,)]
    assert ids([range(10, 13)], capacity=3) == [(10, 11, 12)]
    assert ids([[]]) == [()]


def test_weights_go_with_their_tokens():
    found = chunks([[((1, 2), 1.5), ((3, 4), 0.5)]], capacity=3)
    assert found == (((1, 2, 3), (1.5, 1.5, 0.5)), ((4,), (0.5,)))


def test_breaks_close_even_an_empty_chunk():
    assert ids([[1], [], [2]]) == [(1,), (), (2,)]
    assert ids([[], [1]]) == [(), (1,)]
    assert ids([[1], []]) == [(1,)]  # as in A1111, nothing is begun by a break at the end
    assert ids([range(10, 13), [1]], capacity=3) == [(10, 11, 12), (1,)]


@pytest.mark.parametrize(("behind", "moves"), [(BACKTRACK - 1, True), (BACKTRACK, False)])
def test_what_follows_a_near_comma_moves_to_the_next_chunk(behind, moves):
    before, after = [1] * (74 - behind), [2] * behind
    found = ids([[*before, COMMA, *after, 3]], comma=COMMA)
    assert found == ([(*before, COMMA), (*after, 3)] if moves else [(*before, COMMA, *after), (3,)])


def test_a_comma_at_the_border_moves_nothing():
    assert ids([[1] * 75 + [COMMA, 2]], comma=COMMA) == [(1,) * 75, (COMMA, 2)]
    assert ids([[1] * 74 + [COMMA, 2]], comma=COMMA) == [(1,) * 74 + (COMMA,), (2,)]


def test_a_comma_of_an_earlier_chunk_does_not_count():
    assert ids([[1, COMMA], [2, 2, 2, 2]], capacity=3, comma=COMMA) == [(1, COMMA), (2, 2, 2), (2,)]


def test_a_run_is_not_divided():
    together = {50: 3}
    assert ids([[1, 2, 50, 51, 52, 3]], capacity=4, together=together) == [(1, 2), (50, 51, 52, 3)]
    assert ids([[1, 50, 51, 52, 3]], capacity=4, together=together) == [(1, 50, 51, 52), (3,)]
    assert ids([[50, 51, 52]], capacity=2, together=together) == [(50, 51), (52,)]  # longer than any chunk
