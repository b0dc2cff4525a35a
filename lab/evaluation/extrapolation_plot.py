"""The picture of a length extrapolation: perplexity against the length of the windows, every run in one figure."""

import os
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend must be chosen first: there may be no display)
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator  # noqa: E402

from lab.evaluation.extrapolation import lines_of, perplexity_of  # noqa: E402

# Okabe-Ito colours: told apart by colour-blind readers; markers tell the runs apart in grey print.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLE = {
    "font.size": 11,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "axes.titlesize": 11,
}


def draw_extrapolation(result: dict[str, Any], path: Path) -> None:
    """Write the PNG, under a temporary name until it is whole."""
    panels = (("all", "All tokens"), ("last", f"The same last {result['training_context']:,} tokens of each span"))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.6), sharey=True, layout="constrained")
        for axis, (key, title) in zip(axes, panels, strict=True):
            for number, (name, shown) in enumerate(lines_of(result)):
                colour = COLOURS[number % len(COLOURS)]
                multiples = [row["multiple"] for row in shown["lengths"]]
                perplexities = [row[key]["perplexity"] for row in shown["lengths"]]
                axis.plot(multiples, perplexities, color=colour, marker=MARKERS[number % len(MARKERS)], label=label(name))
                if "runs" in shown:  # the mean over seeds: the band is from the best seed to the worst
                    best, worst = (
                        [perplexity_of(row[key][f"{end}_nats"]) for row in shown["lengths"]] for end in ("lowest", "highest")
                    )
                    axis.fill_between(multiples, best, worst, color=colour, alpha=0.2, linewidth=0)
            axis.set_title(title)
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_locator(FixedLocator(result["multiples"]))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axes[0].set_yscale("log")
        low, high = axes[0].get_ylim()
        axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low > 8 else range(1, 10), numticks=15))
        axes[0].yaxis.set_minor_locator(NullLocator())
        axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axes[0].set_ylabel("perplexity per token (log scale)")
        figure.supxlabel(
            f"length of the window, in multiples of the training context ({result['training_context']:,} tokens)",
            fontsize=11,
        )
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
        plt.close(figure)
        os.replace(temporary, path)


def label(name: str) -> str:
    """Return a run's name as literal text: matplotlib reads $...$ as mathematics."""
    return name.replace("$", r"\$")[:60]
