"""What the pictures of an inspection share: one look a run, layer axes, log ticks."""

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterMathtext, LogLocator, MaxNLocator, NullLocator

from lab.figures import MARKERS, PALETTE, tick_log_axis
from lab.inspection.checkpoints import Inspection

WIDE = (13.0, 7.4)  # inches, for two rows of three panels
LINE_WIDTHS = (3.0, 1.8, 1.5, 1.3, 1.1, 1.0)


def run_look(index: int) -> dict:
    """Return a line's colour and width; later runs are thinner, so that equal lines are all seen."""
    return {"color": PALETTE[index], "linewidth": LINE_WIDTHS[index]}


def run_marker(index: int, count: int) -> dict:
    """Return markers for a line of count points, at no more than about a dozen of them."""
    return {"marker": MARKERS[index], "markersize": 4 + LINE_WIDTHS[index], "markevery": max(1, count // 12)}


def run_handles(inspections: list[Inspection], with_scales: bool = False) -> list[Line2D]:
    return [
        Line2D([], [], **run_look(index), marker=MARKERS[index], label=literal_label(item.label))
        for index, item in enumerate(inspections)
        if item.measured.scales or not with_scales
    ]


def literal_label(label: str) -> str:
    """Return a label as literal text, its end kept where it is long: matplotlib reads $...$ as mathematics."""
    return (label if len(label) <= 48 else "..." + label[-45:]).replace("$", r"\$")


def layer_positions(inspections: list[Inspection], count: int) -> np.ndarray:
    """Return layers from 1, or from 0 to 1 where models of different depth share the picture."""
    if len({item.size["n_layer"] for item in inspections}) == 1:
        return np.arange(1, count + 1)
    return np.linspace(0, 1, count)


def label_layers(axes, inspections: list[Inspection]) -> None:
    if len({item.size["n_layer"] for item in inspections}) == 1:
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    else:
        axes.set_xlabel("normalized layer index")


def tick_decades(axes) -> None:
    """Label a log axis by decades where it spans several, else finely."""
    low, high = axes.get_ylim()
    if high / low < 1000:
        tick_log_axis(axes.yaxis, lambda value: f"{value:g}")
    else:
        axes.yaxis.set_major_locator(LogLocator(base=10, numticks=10))
        axes.yaxis.set_major_formatter(LogFormatterMathtext())
        axes.yaxis.set_minor_locator(NullLocator())


def add_run_legend(figure, handles: list[Line2D]) -> None:
    """Put the legend above the panels, where it can hide no data."""
    longest = max(len(handle.get_label()) for handle in handles)
    columns = 4 if longest <= 26 else 3 if longest <= 36 else 2
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, fontsize=11)
