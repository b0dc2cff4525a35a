"""The picture of a length extrapolation: perplexity against the length of the windows, arms with several seeds as one line."""

from pathlib import Path
from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lab.evaluation.extrapolation import lines_of, perplexity_of
from lab.figures import MARKERS, PALETTE, STYLE, Plot, add_legend, plt, save_plot, tick_log_axis

CAPTION = (
    "Perplexity in windows longer than those of the training, on the same text at every length. A line with a band is the mean "
    "over seeds, the band reaches from the best seed to the worst."
)


def draw_extrapolation(result: dict[str, Any], out: Path) -> Plot:
    """Draw a result into a folder."""
    context = result["training_context"]
    panels = (("all", "All tokens"), ("last", f"The same last {context:,} tokens of each span"))
    with plt.rc_context(STYLE | {"figure.figsize": (9.6, 4.6), "savefig.dpi": 110}):
        figure, grid = plt.subplots(1, 2, sharey=True, layout="constrained")
        for axes, (key, title) in zip(grid, panels, strict=True):
            for number, (name, shown) in enumerate(lines_of(result)):
                draw_line(axes, key, name, shown, PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)])
            axes.set_title(title)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator(result["multiples"]))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        grid[0].set_yscale("log")
        tick_log_axis(grid[0].yaxis, lambda value: f"{value:,.10g}")
        grid[0].set_ylabel("perplexity per token (log scale)")
        figure.supxlabel(f"length of the window, in multiples of the training context ({context:,} tokens)", fontsize=11)
        add_legend(figure, grid[0])
        return save_plot(figure, out / "extrapolation.png", "Perplexity beyond the training context", CAPTION)


def draw_line(axes: Any, key: str, name: str, shown: dict[str, Any], colour: str, marker: str) -> None:
    """Draw one run, or the mean over seeds with its band."""
    multiples = [row["multiple"] for row in shown["lengths"]]
    label = name.replace("$", r"\$")[:60]  # literal text: matplotlib reads $...$ as mathematics
    axes.plot(multiples, [row[key]["perplexity"] for row in shown["lengths"]], color=colour, marker=marker, label=label)
    if "runs" in shown:
        best, worst = ([perplexity_of(row[key][f"{end}_nats"]) for row in shown["lengths"]] for end in ("lowest", "highest"))
        axes.fill_between(multiples, best, worst, color=colour, alpha=0.2, linewidth=0)
