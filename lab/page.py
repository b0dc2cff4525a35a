"""Self-contained HTML pages, light or dark, for a screen, a phone or paper. Templates escape every text by themselves.

A page is a template that extends `page.html` (blocks `style`, `body`; value `title`) and takes its pieces from `pieces.html`.
"""

import base64
import functools
import re
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from lab.figures import Plot

LAB = Path(__file__).parent


@dataclass(frozen=True)
class Link:
    """A table cell that leads to a file, by its address relative to the page."""

    text: str
    address: str


def render_page(template: str, **values: object) -> str:
    """Return a page from a template, named relative to `lab/` ("inspection/inspection.html")."""
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(LAB), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"whole": keep_numbers_whole, "breakable": let_paths_break, "data_address": data_address}
    return environment


def keep_numbers_whole(text: str) -> Markup:
    """Return text escaped, with numbers such as 3e-3 in one piece: a browser would break the line at their hyphen."""
    return Markup(re.sub(r"&gt;\d[\d.]*e-\d+|\d[\d.]*e-\d+", r'<span class="whole">\g<0></span>', str(escape(text))))


def let_paths_break(text: str) -> Markup:
    """Return text that a browser may break behind the slashes and commas of a command, rather than inside a word."""
    return Markup(re.sub(r"(?<=[/,])(?=[a-z])", "<wbr>", str(escape(text))))


def data_address(plot: Plot) -> str:
    """Return a picture's vectors as an address that holds the picture itself."""
    return "data:image/svg+xml;base64," + base64.b64encode(plot.svg.encode()).decode("ascii")
