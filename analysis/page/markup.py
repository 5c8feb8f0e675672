"""Small pieces of HTML. Whatever comes from a results folder goes through `esc`."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from typing import Any


def esc(text: object) -> str:
    """Text that means nothing to a browser."""
    return html.escape(str(text), quote=True)


def rich(text: str) -> str:
    """Escaped, but `**bold**` is bold and `code` is code."""
    made = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", esc(text))
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", made)


def section(key: str, title: str, body: str, note: str = "") -> str:
    """A section with a heading to link to; nothing where it has no body."""
    if not body:
        return ""
    said = f'<p class="note">{rich(note)}</p>' if note else ""
    return f'<section id="{esc(key)}"><h2>{esc(title)}</h2>{said}{body}</section>'


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Sequence[int] = (0,),
    kind: str = "",
    bold: Sequence[int] = (),
) -> str:
    """A table of cells that are HTML already.

    Args:
        head: one cell a column; a unit after a line break is set smaller.
        left: places of the columns of words; all others are figures, set to the right.
        kind: a class.
        bold: the rows that stand out.
    """

    def cells(row: Sequence[str], tag: str) -> str:
        made = []
        for i, cell in enumerate(row):
            side = "" if i in left else ' class="num"'
            made.append(f"<{tag}{side}>{cell}</{tag}>")
        return "".join(made)

    heads = cells([_two_lines(text) for text in head], "th")
    lines = [f"<tr{' class=base' if i in bold else ''}>{cells(row, 'td')}</tr>" for i, row in enumerate(rows)]
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def folded(summary: str, body: str) -> str:
    """Closed until asked for; print shows it open."""
    return f"<details><summary>{esc(summary)}</summary>{body}</details>"


def figure(name: str, spec: dict[str, Any] | None, caption: str = "") -> str:
    """A plot that the script draws, its figures beside it; nothing where there is nothing to draw.

    Args:
        name: of the file that it may be saved as.
        spec: what is drawn.
        caption: under it.
    """
    if not spec:
        return ""
    said = f"<figcaption>{rich(caption)}</figcaption>" if caption else ""
    data = f'<script type="application/json">{_json(spec)}</script>'
    return f'<figure class="plot" data-name="{esc(name)}">{data}{said}</figure>'


def _json(value: Any) -> str:
    """No `</script>` can end it, whatever a label says."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _two_lines(text: str) -> str:
    title, _, unit = text.partition("\n")
    return f"{esc(title)}<small>{esc(unit)}</small>" if unit else esc(title)
