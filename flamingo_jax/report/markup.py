"""HTML by construction: every text is escaped unless it is `Markup` already."""

from __future__ import annotations

import html
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

VOID = {"img", "link", "meta"}
ALLOWED = "default-src 'none'; img-src {}; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
EMBEDDED, BESIDE = "data:", "data: 'self' file:"
"""Pictures that a page may show: those inside it, or those of files beside it, too."""
HERE = pathlib.Path(__file__).parent


class Markup(str):
    """A piece of HTML whose texts have been escaped."""

    __slots__ = ()


Child = Any
"""`Markup` goes in as it is, other strings escaped, None not at all, iterables piece by piece."""


def join(*children: Child) -> Markup:
    """Joins children into one piece, escaping what is not `Markup`."""
    pieces = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            pieces.append(str(child))
        elif isinstance(child, Iterable) and not isinstance(child, str):
            pieces.append(str(join(*child)))
        else:
            pieces.append(html.escape(str(child), quote=False))
    return Markup("".join(pieces))


def tag(name: str, /, *children: Child, **attributes: Any) -> Markup:
    """An element: `tag("p", "a < b", class_="note")` is `<p class="note">a &lt; b</p>`.

    A trailing underscore of an attribute's name is dropped, others become hyphens; True gives an
    attribute without a value, None and False none at all.
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def data(value: Any, **attributes: Any) -> Markup:
    """JSON for the page's script; `<` is written so that no text can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return tag("script", Markup(text), type="application/json", **attributes)


def table(
    head: list[Child], rows: list[list[Child]], class_: str = "", foot: int = 0, ours: int = 0
) -> Markup:
    """A table in its own scroller; cells may be `Markup`.

    The last `foot` rows are its totals; the first `ours` ones are set off from what they stand
    beside.
    """
    body = rows[: len(rows) - foot]
    return tag(
        "div",
        tag(
            "table",
            tag("thead", tag("tr", [tag("th", cell, scope="col") for cell in head])),
            tag("tbody", [_row(row, "ours" if n < ours else None) for n, row in enumerate(body)]),
            tag("tfoot", [_row(row) for row in rows[len(body) :]]) if foot else None,
            class_=class_ or None,
        ),
        class_="scroll",
    )


def _row(cells: list[Child], class_: str | None = None) -> Markup:
    head, *others = cells
    return tag(
        "tr", tag("th", head, scope="row"), [tag("td", cell) for cell in others], class_=class_
    )


def section(key: str, title: str, *children: Child) -> Markup:
    """A part of the page under its heading, to be jumped to by `#key`."""
    return tag("section", tag("h2", title), *children, id=key)


def left_out(text: str) -> Markup:
    """The line that stands where a part is missing."""
    return tag("p", text, class_="left-out")


def document(
    title: str,
    *body: Child,
    styles: Sequence[str] = ("report.css",),
    scripts: Sequence[str] = ("report.js",),
    pictures: str = EMBEDDED,
) -> Markup:
    """The whole page: style sheets and scripts inside, nothing to be loaded from a network."""
    style, script = (
        Markup("".join((HERE / name).read_text(encoding="utf-8") for name in names))
        for names in (styles, scripts)
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=ALLOWED.format(pictures)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),  # or else the browser asks for one
        tag("style", style),
    )
    page = tag("html", head, tag("body", tag("main", *body), tag("script", script)), lang="en")
    return Markup(f"<!doctype html>\n{page}\n")
