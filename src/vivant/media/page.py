"""One HTML page with pictures, clips and tables side by side, readable from a file without a server."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { text-align: left; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid #ddd; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0; }
figure { margin: 0; width: 14rem; }
figure img { width: 100%; border-radius: .4rem; display: block; }
figcaption { font-size: .9rem; color: #555; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd; } figcaption { color: #aaa; }
  td, th { border-color: #444; } a { color: #8bf; } }
"""


@dataclass(frozen=True)
class Shown:
    """A picture or moving picture and what is written below it.

    Attributes:
        file: a name beside the page, or below it.
        caption: what it is.
        link: a file that a click opens, if another.
    """

    file: str
    caption: str
    link: str | None = None


def figure(shown: Shown) -> str:
    """One picture with its caption."""
    source, target = (quote(name) for name in (shown.file, shown.link or shown.file))
    caption = escape(shown.caption)
    return (
        f'<figure><a href="{target}"><img src="{source}" alt="{caption}" loading="lazy"></a>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def row(shown: Sequence[Shown]) -> str:
    """Pictures beside each other."""
    return f'<div class="row">{"".join(figure(one) for one in shown)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts."""
    cells = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    cells += ["".join(f"<td>{escape(cell)}</td>" for cell in line) for line in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in cells)}</table>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def heading(text: str) -> str:
    """A heading inside the page."""
    return f"<h2>{escape(text)}</h2>"


def page(title: str, parts: Sequence[str]) -> str:
    """The page, from the HTML of its parts."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
