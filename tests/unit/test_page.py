"""Pages that are read from a file, whatever is written on them."""

from html.parser import HTMLParser

from vivant.media.page import Shown, heading, page, paragraph, row, table


class Seen(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_nothing_that_is_written_becomes_markup():
    evil = '<script>alert("1")</script> & \' ü'
    seen = Seen(
        page(
            evil,
            [paragraph(evil), heading(evil), table([evil], [[evil]]), row([Shown('a"b <c>.gif', evil, "d e.mp4")])],
        )
    )
    assert not {"script", "c"} & {tag for tag, _ in seen.tags}
    assert seen.text.count(evil) == 7  # title, heading, paragraph, heading, two cells, caption
    image = next(values for tag, values in seen.tags if tag == "img")
    assert image["src"] == "a%22b%20%3Cc%3E.gif"
    assert image["alt"] == evil
    link = next(values for tag, values in seen.tags if tag == "a")
    assert link["href"] == "d%20e.mp4"


def test_a_page_needs_no_network():
    text = page("t", [row([Shown("a.gif", "b")])])
    assert "http" not in text
    assert text.startswith("<!doctype html>")
    assert Seen(text).tags[2][1] == {"charset": "utf-8"}
