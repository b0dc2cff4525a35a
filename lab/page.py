"""The pieces of a self-contained HTML page, light or dark, for a screen, a phone or paper; every text is escaped."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from lab.figures import Plot

# Paper is light, whatever the screen is.
PAGE_STYLE = """
:root { color-scheme: light; --text: #1a1a1a; --page: #ffffff; --soft: #5c5c5c; --line: #d5d5d5; --box: #f3f5f7;
        --link: #0b5cad; --edge: rgb(0 0 0 / .22); }
@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --text: #e6e6e6; --page: #15181c; --soft: #a5abb3; --line: #3a4047; --box: #1f242a;
          --link: #7db8f0; --edge: rgb(255 255 255 / .25); }
  /* Pictures are black on nothing. Turned here, not drawn twice: a browser that prints a dark page keeps its sources. */
  img { filter: invert(1) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1rem; max-width: 56rem; color: var(--text); background: var(--page);
       font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
a { color: var(--link); }
h1 { font-size: 1.1rem; color: var(--soft); font-weight: 600; }
h1.section { font-size: 1.5rem; color: var(--text); margin: 3rem 0 .5rem; padding-top: 1rem; border-top: 2px solid var(--line); }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2.2rem 0 .5rem; }
.headline { font-size: 1.35rem; line-height: 1.35; font-weight: 600; margin: .5rem 0; }
.second { font-size: 1rem; color: var(--soft); margin: .3rem 0 1rem; }
/* What is wider than the page scrolls by itself; a shade at its edge says that there is more. */
.scroll { overflow-x: auto; background:
          linear-gradient(to right, var(--page) 40%, transparent) left / 2.5rem 100% no-repeat local,
          linear-gradient(to left, var(--page) 40%, transparent) right / 2.5rem 100% no-repeat local,
          linear-gradient(to right, var(--edge), transparent) left / .8rem 100% no-repeat scroll,
          linear-gradient(to left, var(--edge), transparent) right / .8rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
         vertical-align: top; }
th { vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.words td, .words th { text-align: left; white-space: normal; overflow-wrap: break-word; min-width: 6.5rem; }
.rates td:last-child, .rates th:last-child { text-align: left; white-space: normal; min-width: 17rem; }
figure { margin: 1.5rem 0; break-inside: avoid; }
img { width: 100%; height: auto; max-width: 46rem; display: block; }
img.wide { max-width: none; min-width: 48rem; }
figcaption { font-size: .9rem; color: var(--soft); max-width: 46rem; margin-top: .4rem; }
.whole { white-space: nowrap; }
figcaption b { color: var(--text); }
.notes { background: var(--box); border-radius: 6px; padding: .6rem 1rem .6rem 2rem; }
.notes li { margin: .2rem 0; }
.summary td, .summary th { text-align: left; white-space: normal; overflow-wrap: break-word; min-width: 4.5rem; }
.summary td:first-child { min-width: 8rem; }
.summary td:nth-last-child(-n+2) { min-width: 11rem; }
@page { margin: 15mm; }
@media print {
  html { font-size: 10.5pt; }
  body { max-width: none; font-size: 1rem; padding: 0; }
  h1, h2 { break-after: avoid; }
  p, li { orphans: 3; widows: 3; }
  tr { break-inside: avoid; }
  .scroll { overflow: visible; background: none; }
  th, td, .words td, .summary td { white-space: normal; padding: .15rem .35rem; min-width: 0; }
  th:first-child, td:first-child { padding-left: 0; }
  img { max-width: 15cm; max-height: 9cm; width: auto; margin: 0 auto; }
  img.wide { min-width: 0; max-width: 100%; max-height: none; width: 100%; }
  figcaption { max-width: none; }
  a { color: inherit; text-decoration: none; }
}
"""


@dataclass(frozen=True)
class Link:
    """Hold a table cell that leads to a file, by its address relative to the page."""

    text: str
    address: str


def render_document(title: str, body: list[str], style: str = "") -> str:
    """Return a whole page that needs nothing outside itself; `style` follows the common style sheet."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{PAGE_STYLE}{style}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def render_plot(plot: Plot) -> str:
    """Return a picture in vectors, with its caption."""
    data = base64.b64encode(plot.svg.encode()).decode("ascii")
    kind = ' class="wide"' if plot.is_wide else ""
    picture = f'<img{kind} alt="{escape(f"{plot.title}: {plot.alt}")}" src="data:image/svg+xml;base64,{data}">'
    if plot.is_wide:
        picture = f'<div class="scroll">{picture}</div>'
    return f"<figure>{picture}<figcaption><b>{escape(plot.title)}.</b> {escape(plot.caption)}</figcaption></figure>"


def render_table(header: list[str], rows: Sequence[Sequence[str | Link]], kind: str = "") -> str:
    """Return a table that scrolls by itself where the page is narrow; kind is a class of the style sheet."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = "".join("<tr>" + "".join(f"<td>{_render_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _render_cell(cell: str | Link) -> str:
    if isinstance(cell, Link):
        return f'<a href="{escape(cell.address)}">{escape(cell.text)}</a>'
    return render_text(cell)


def render_text(text: str) -> str:
    """Return text escaped, with numbers such as 3e-3 in one piece: a browser would break the line at their hyphen."""
    return re.sub(r"&gt;\d[\d.]*e-\d+|\d[\d.]*e-\d+", r'<span class="whole">\g<0></span>', escape(text))


def render_list(lines) -> str:
    return '<ul class="notes">' + "".join(f"<li>{render_text(line)}</li>" for line in lines) + "</ul>"
