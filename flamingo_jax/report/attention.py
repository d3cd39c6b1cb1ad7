"""One page as the model sees it: its pictures, its tokens, and the cross-attention mask drawn."""

from __future__ import annotations

from flamingo_jax.report import wording
from flamingo_jax.report.charts import color
from flamingo_jax.report.markup import Markup, tag
from flamingo_jax.report.pictures import picture
from flamingo_jax.report.reading import Page, Run

MOST_TOKENS = 512  # of a page that is drawn
LETTERS = 14  # of a token over its column


def drawing(run: Run, page: Page) -> Markup:
    """The page's pictures, its text coloured by medium, and its mask (tokens by media)."""
    length = min(len(page.tokens), len(page.media_of_token), len(page.loss_mask), MOST_TOKENS)
    media = max([len(page.images), *page.media_of_token[:length]], default=0)
    attend = run.field("model", "xattn", "attend") or "one"
    latents = run.field("model", "resampler", "latents")
    thumbnails = [
        picture(run.workdir, page.images[m] if m < len(page.images) else "", f"medium {m + 1}")
        for m in range(media)
    ]
    left = len(page.tokens) - length
    note = f"{wording.plural(left, 'further token')} left out." if left else None
    return tag(
        "div",
        tag("div", [_medium(m, thumbnails[m]) for m in range(media)], class_="media"),
        tag("p", [_token(page, t) for t in range(length)], class_="page-text"),
        tag("p", _key(), class_="note"),
        tag("h3", "Cross-attention mask"),
        tag("p", mask_note(attend, latents), class_="note"),
        _matrix(page, length, thumbnails, attend),
        tag("p", note, class_="note") if note else None,
        class_="page-drawing",
    )


def sees(medium: int, media_of_token: int, attend: str) -> bool:
    """Whether a token tied to `media_of_token` (0 = none) attends to `medium` (from 1)."""
    if attend == "upto":
        return medium <= media_of_token
    return medium == media_of_token


def mask_note(attend: str, latents: int | None) -> str:
    """What a row and a filled cell of the mask stand for."""
    rows = "Each row is a medium"
    if latents:
        rows += f", that is {wording.plural(int(latents), 'latent')} of the resampler"
    rule = (
        "a token attends to its medium and to all before it"
        if attend == "upto"
        else "a token attends to its own medium alone"
    )
    return f"{rows}; each column a token. A filled cell is attended to: {rule}. "


def _key() -> Markup:
    return tag(
        "span",
        "A token's colour is that of the medium it is tied to; ",
        tag("span", "underlined", class_="token target"),
        " tokens are targets of the loss, ",
        tag("span", "faint", class_="token"),
        " ones are not.",
    )


def _medium(index: int, thumbnail: Markup) -> Markup:
    return tag(
        "span",
        thumbnail,
        tag("b", index + 1),
        class_="medium",
        style=f"--m:{color(index)}",
        data_medium=index + 1,
    )


def visible(token: str) -> str:
    """A token's text with its spaces and line breaks made visible."""
    return token.replace("\n", "\u21b5").replace("\t", "\u21e5").replace(" ", "\u00b7")


def _token(page: Page, index: int) -> Markup:
    medium = page.media_of_token[index]
    return tag(
        "span",
        page.tokens[index].replace("\n", "\u21b5"),
        class_="token target" if page.loss_mask[index] else "token",
        style=f"--m:{color(medium - 1)}" if medium else None,
        data_medium=medium or None,
        title=f"token {index}: " + (f"medium {medium}" if medium else "no medium"),
    )


def _matrix(page: Page, length: int, thumbnails: list[Markup], attend: str) -> Markup:
    """A table: a column a token, a row a medium, and the row of the loss."""
    rows = []
    for medium in range(1, len(thumbnails) + 1):
        cells = [
            tag("td", class_="on" if sees(medium, page.media_of_token[t], attend) else None)
            for t in range(length)
        ]
        head = tag("th", thumbnails[medium - 1], tag("b", medium), scope="row")
        rows.append(tag("tr", head, cells, style=f"--m:{color(medium - 1)}", data_medium=medium))
    loss = [tag("td", class_="on" if page.loss_mask[t] else None) for t in range(length)]
    rows.append(tag("tr", tag("th", "loss", scope="row"), loss, class_="loss"))
    labels = []
    for token in page.tokens[:length]:
        text = visible(token)
        short = text if len(text) <= LETTERS else text[: LETTERS - 1] + "\u2026"
        labels.append(tag("td", tag("span", short)))
    rows.append(tag("tr", tag("th", "token", scope="row"), labels, class_="labels"))
    return tag("div", tag("table", tag("tbody", rows), class_="mask"), class_="scroll")
