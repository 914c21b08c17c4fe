"""Behind `archsearch report`: one HTML file that says what a run found, to keep or to send.

It needs no network: style, script and drawings are inside, and its policy lets nothing in.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from archsearch.report import html_costs, html_front, html_later, html_why
from archsearch.report.html_parts import Html, join, tag
from archsearch.report.html_sheet import Sheet
from archsearch.search.fresh import write
from archsearch.words import size

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from archsearch.search.study import Study

FILE = "report.html"
SECTIONS = (
    html_front.front, html_front.winner, html_front.finals, html_why.why, html_later.scaled_up,
    html_later.fidelity, html_why.lineage, html_costs.budget, html_costs.reproduce,
)  # fmt: skip
"""What the page says, in this order; one that has nothing to say is left out."""


def report(study: Study, folder: Path, run: str, out: Path, console: Console) -> None:
    """Write the page of a run.

    Args:
        study: Its study.
        folder: Its directory.
        run: The directory as commands name it.
        out: The file to write.
        console: Told where it is.

    Raises:
        RunError: if no trial has finished, or the file cannot be written.
    """
    text = page(Sheet(study, folder, run))
    write(out, text)
    console.print(f"wrote {out} ({size(len(text))}): open it in a browser, or send it",
                  markup=False, soft_wrap=True)  # fmt: skip


def page(sheet: Sheet) -> str:
    """The page in ASCII; equal runs give equal pages."""
    style, script = (_beside(f"report.{kind}") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    body = join([
        html_front.headline(sheet), *(draw(sheet) for draw in SECTIONS), html_costs.footer(sheet),
    ])  # fmt: skip
    head = (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(sheet.study.name)}: architecture search</title>"
        f"<style>{style}</style>"
    )
    text = (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n'
        f"<body>{tag('main', body)}<script>{script}</script></body></html>\n"
    )
    return text.encode("ascii", "xmlcharrefreplace").decode()


def _beside(name: str) -> Html:
    return Html((files("archsearch.report") / name).read_text())
