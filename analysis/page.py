"""The pieces of a self-contained HTML page, light or dark; every text is escaped."""

import base64
from html import escape

from analysis.axes import Plot

PAGE_STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --page: #ffffff; --soft: #5c5c5c; --line: #d5d5d5; --box: #f3f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --page: #15181c; --soft: #a5abb3; --line: #3a4047; --box: #1f242a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 56rem; color: var(--text); background: var(--page);
       font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.1rem; color: var(--soft); font-weight: 600; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
.headline { font-size: 1.35rem; line-height: 1.35; font-weight: 600; margin: .5rem 0; }
.second { font-size: 1rem; color: var(--soft); margin: .3rem 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
         vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
.words td, .words th { text-align: left; white-space: normal; overflow-wrap: break-word; }
figure { margin: 1.5rem 0; break-inside: avoid; }
img { width: 100%; height: auto; max-width: 46rem; display: block; background: #ffffff; border-radius: 6px; }
figcaption { font-size: .9rem; color: var(--soft); max-width: 46rem; margin-top: .4rem; }
.notes { background: var(--box); border-radius: 6px; padding: .6rem 1rem .6rem 2rem; }
.summary td, .summary th { text-align: left; white-space: normal; overflow-wrap: break-word; }
.summary td:nth-last-child(-n+2) { min-width: 11rem; }
@media print { body { max-width: none; font-size: 10.5pt; padding: 0; } .scroll { overflow: visible; }
               th, td { white-space: normal; padding: .15rem .35rem; } h2 { break-after: avoid; } }
"""


def render_document(title: str, body: list[str]) -> str:
    """Return a whole page that refers to nothing outside itself."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{PAGE_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def render_plot(plot: Plot) -> str:
    data = base64.b64encode(plot.path.read_bytes()).decode("ascii")
    return (
        f'<figure><img alt="{escape(plot.title)}" src="data:image/png;base64,{data}">'
        f"<figcaption><b>{escape(plot.title)}.</b> {escape(plot.caption)}</figcaption></figure>"
    )


def render_table(header: list[str], rows: list[list[str]], kind: str = "") -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def render_list(lines) -> str:
    return '<ul class="notes">' + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
