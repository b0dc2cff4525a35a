"""The picture of a length extrapolation: perplexity against the length of the windows, every run in one figure."""

from pathlib import Path
from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lab.evaluation.extrapolation import lines_of, perplexity_of
from lab.figures import MARKERS, PALETTE, STYLE, add_legend, plt, tick_log_axis


def draw_extrapolation(result: dict[str, Any], path: Path) -> None:
    """Write the PNG, under a temporary name until it is whole."""
    context = result["training_context"]
    panels = (("all", "All tokens"), ("last", f"The same last {context:,} tokens of each span"))
    with plt.rc_context(STYLE | {"figure.figsize": (9.6, 4.6), "savefig.dpi": 110}):
        figure, grid = plt.subplots(1, 2, sharey=True, layout="constrained")
        for axes, (key, title) in zip(grid, panels, strict=True):
            for number, (name, shown) in enumerate(lines_of(result)):
                colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
                multiples = [row["multiple"] for row in shown["lengths"]]
                perplexities = [row[key]["perplexity"] for row in shown["lengths"]]
                axes.plot(multiples, perplexities, color=colour, marker=marker, label=label(name))
                if "runs" in shown:  # the mean over seeds: the band is from the best seed to the worst
                    best, worst = (
                        [perplexity_of(row[key][f"{end}_nats"]) for row in shown["lengths"]] for end in ("lowest", "highest")
                    )
                    axes.fill_between(multiples, best, worst, color=colour, alpha=0.2, linewidth=0)
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
        temporary = path.with_name(f".{path.name}.tmp")
        figure.savefig(temporary, format="png", metadata={"Software": None})
        plt.close(figure)
        temporary.replace(path)


def label(name: str) -> str:
    """Return a run's name as literal text: matplotlib reads $...$ as mathematics."""
    return name.replace("$", r"\$")[:60]
