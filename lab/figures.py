"""What all pictures share: one look per arm, axes, ticks, legends, and files that tell what they show."""

import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from lab.words import display_arm, format_tokens, printable
from runfolder.files import write_atomically

# Okabe-Ito colours: told apart by colour-blind readers; markers tell the arms apart in grey print.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#4D4D4D")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
STYLE = {
    "font.size": 12,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.figsize": (6.4, 4.4),  # no wider: on a phone the letters shrink with the picture
    "savefig.dpi": 150,
    "axes.formatter.useoffset": False,
}


@dataclass(frozen=True)
class Plot:
    """One written picture and what it shows; `path` is the PNG, beside it lies the same as SVG.

    `svg` is the picture as vectors on a transparent ground, `alt` its axes and its legend in words, `is_wide` that
    it is too wide to be shrunk to a phone.
    """

    path: Path
    title: str
    caption: str
    svg: str = ""
    alt: str = ""
    is_wide: bool = False


@dataclass(frozen=True)
class Look:
    """How an arm is drawn, the same in every picture."""

    colour: str
    marker: str


# Arms that are met everywhere keep their look, whatever they are compared with.
RESERVED = ("gpt", "ngpt", "gpt_qknorm")


def find_looks(arms: Iterable[str]) -> dict[str, Look]:
    """Return {arm: look}; arms that have none reserved get the looks that are left, in their order."""
    looks = {arm: Look(PALETTE[index], MARKERS[index]) for index, arm in enumerate(RESERVED)}
    found: dict[str, Look] = {}
    others = 0
    for arm in dict.fromkeys(arms):
        if arm not in looks:
            index = len(RESERVED) + others
            looks[arm] = Look(PALETTE[index % len(PALETTE)], MARKERS[(index + index // len(PALETTE)) % len(MARKERS)])
            others += 1
        found[arm] = looks[arm]
    return found


def tick_log_axis(axis, form) -> None:
    """Label a log axis at 1, 2, 5 per decade, or finer where it spans less than about a factor of five."""
    low, high = sorted(axis.get_view_interval())
    subs = (1, 2, 5) if high / low > 5 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))


def tick_budgets(axes, budgets: list[int]) -> None:
    """Label a log axis of tokens at the budgets themselves, if these are few."""
    axes.xaxis.set_minor_formatter(NullFormatter())
    if len(budgets) <= 7:
        axes.xaxis.set_major_locator(FixedLocator(budgets))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tokens(value)))


def error_bars(errors: Sequence[float | None]) -> list[float] | None:
    """Return what errorbar takes: no mark where there is no error, and none in the legend where there is none at all."""
    return [error or math.nan for error in errors] if any(errors) else None


def add_legend(figure, axes, handles=None) -> None:
    """Put the legend above the axes, where it can hide no data."""
    handles = handles or axes.get_legend_handles_labels()[0]
    longest = max(len(handle.get_label()) for handle in handles)
    columns = max(1, min(4, int(10 * figure.get_figwidth()) // (longest + 6)))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, fontsize=11)


def literal(arm: str) -> str:
    """Return an arm's name as literal text: matplotlib reads $...$ as mathematics."""
    return display_arm(arm).replace("$", r"\$")[:40]


def save_plot(figure, path: Path, title: str, caption: str) -> Plot:
    """Write a figure as PNG (white ground, for documents) and as SVG (for papers and the page), and close it."""
    # Arranged once, and written by the canvases themselves: savefig() would draw each file an additional time for its layout.
    if layout := figure.get_layout_engine():
        layout.execute(figure)
        figure.set_layout_engine("none")
    pixels = io.BytesIO()
    figure.dpi = STYLE["savefig.dpi"]
    FigureCanvasAgg(figure).print_png(pixels, metadata={"Software": None})
    write_atomically(path, pixels.getvalue())
    plot = Plot(path, title, caption, draw_svg(figure), describe_figure(figure), figure.get_figwidth() > 8)
    plt.close(figure)
    words = {"title": f"{title}: {plot.alt}", "desc": caption}
    told = "".join(f"<{name}>{escape(printable(text))}</{name}>" for name, text in words.items())
    write_atomically(path.with_suffix(".svg"), re.sub(r"(<svg [^>]*>)", lambda found: found[1] + told, plot.svg, count=1))
    return plot


def read_plots(folder: Path) -> list[Plot]:
    """Return the pictures of a folder that save_plot wrote; files that it did not write are passed over."""
    plots = []
    for path in sorted(folder.glob("*.svg")):
        text = path.read_text(encoding="utf-8", errors="replace")
        found = re.search(r"<svg [^>]*><title>(.*?): (.*?)</title><desc>(.*?)</desc>", text, re.DOTALL)
        width = re.search(r'<svg [^>]*width="([\d.]+)pt"', text)
        if found and width:
            title, alt, caption = map(unescape, found.groups())
            plots.append(Plot(path.with_suffix(".png"), title, caption, text, alt, is_wide=float(width[1]) > 576))
    return plots


def draw_svg(figure) -> str:
    """Return a figure as SVG whose letters are outlines: no font is needed, and no text of a run folder is in it."""
    text = io.StringIO()
    for part in figure.findobj(lambda artist: hasattr(artist, "patch")):  # the figure, its axes, and axes within axes
        part.patch.set_facecolor("none")
    with plt.rc_context({"svg.fonttype": "path", "svg.hashsalt": "plot"}):
        FigureCanvasSVG(figure).print_svg(text, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    # Comments hold the words as they are, with characters that XML may not have.
    return re.sub(r"<!--.*?-->\n?", "", text.getvalue(), flags=re.DOTALL)


def describe_figure(figure) -> str:
    """Return what the axes of a figure are and what its legend lists, for readers who cannot see it."""
    panels = []
    for axes in figure.axes:
        if axes.get_visible():
            against = " against ".join(filter(None, (axes.get_ylabel(), axes.get_xlabel())))
            panels.append(": ".join(filter(None, (axes.get_title(), against))))
    shown = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    words = "; ".join(dict.fromkeys(filter(None, panels))) + (f". Shown: {', '.join(shown)}" if shown else "") + "."
    return re.sub(r"[\\${}]", "", words)
