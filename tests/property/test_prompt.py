"""Every text is a prompt, and nothing of it is lost on the way to its chunks."""

import re

from hypothesis import example, given
from hypothesis import strategies as st

from vivant.text.prompt import chunks, parse, unread

MARKED = st.lists(st.sampled_from(["(", ")", "[", "]", "\\", ":", "1.3", "a", " b", "BREAK", ",", "ü"])).map("".join)
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="()[]\\")).filter(
    lambda text: not re.search(r"\bBREAK\b", text)
)


def words(text: str) -> str:
    return "".join(piece.text for section in parse(text) for piece in section)


@given(st.text() | MARKED)
@example("(" * 3000)
@example("[:" * 3000)
def test_every_text_is_a_prompt(text):
    sections = parse(text)
    assert sections
    assert all(piece.text for section in sections for piece in section)
    unread(text)


@given(PLAIN)
def test_without_syntax_a_text_is_itself_with_weight_one(text):
    assert parse(text) == ((((text, 1.0),) if text else ()),)


@given(MARKED)
def test_what_is_read_is_the_text_without_its_syntax(text):
    """An independent reading, one character at a time, of brackets, weights and escapes."""
    kept, opened, i = "", {"(": 0, "[": 0}, 0
    while i < len(text):
        weight = re.compile(r":\s*[+-]?(\d+(\.\d*)?|\.\d+)\s*\)").match(text, i)
        char = text[i]
        if char == "\\":
            following = text[i + 1 : i + 2]
            kept += following if following in ("(", ")", "[", "]", "\\") else ""
            i += 2 if following and following in "()[]\\" else 1
        elif weight and opened["("]:
            opened["("] -= 1
            i = weight.end()
        elif char in opened:
            opened[char] += 1
            i += 1
        elif char in ")]" and opened["(" if char == ")" else "["]:
            opened["(" if char == ")" else "["] -= 1
            i += 1
        else:
            kept += char
            i += 1
    # Escapes can join letters to the word BREAK, or part it, so both sides are compared without it.
    without = [re.sub(r"BREAK|\s", "", side) for side in (words(text), kept)]
    assert without[0] == without[1]


@given(st.recursive(st.just("x"), lambda inner: st.tuples(st.sampled_from(["()", "[]"]), inner), max_leaves=8))
def test_nested_brackets_multiply(tree):
    def write(node):
        return node if isinstance(node, str) else node[0][0] + write(node[1]) + node[0][1]

    def due(node):
        return 1.0 if isinstance(node, str) else due(node[1]) * (1.1 if node[0] == "()" else 1 / 1.1)

    (((text, weight),),) = parse(write(tree))
    assert text == "x"
    assert abs(weight - due(tree)) < 1e-9


TOKENS = st.lists(st.integers(0, 5), max_size=60)
SECTIONS = st.lists(st.lists(st.tuples(TOKENS, st.sampled_from([1.0, 1.3])), max_size=3), min_size=1, max_size=3)


@given(
    SECTIONS, st.integers(1, 30), st.none() | st.integers(0, 5), st.dictionaries(st.integers(0, 5), st.integers(1, 6))
)
def test_chunks_hold_every_token_once_in_order_with_its_weight(sections, capacity, comma, together):
    found = chunks(sections, capacity, comma, together)
    assert found
    assert all(len(chunk.ids) == len(chunk.weights) <= capacity for chunk in found)
    pairs = [pair for chunk in found for pair in zip(chunk.ids, chunk.weights, strict=True)]
    assert pairs == [(token, weight) for section in sections for tokens, weight in section for token in tokens]
    assert len(found) >= len(sections) - 1
