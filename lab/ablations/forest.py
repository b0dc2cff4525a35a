"""Draw the ablations as a forest plot: what each change costs, with its error over seeds, beside the paper's number."""

from pathlib import Path

from matplotlib.lines import Line2D

from lab.ablations.table import Ablations
from lab.ablations.write import describe_change
from lab.figures import MARKERS, PALETTE, STYLE, Plot, add_legend, plt, save_plot
from lab.words import format_tokens, shorten


def draw_forest(ablations: Ablations, out: Path) -> list[Plot]:
    """Write one picture of the table with the largest budget; none where no change shares a seed with the base."""
    table = ablations.tables[-1]
    rows = [row for row in table.rows if row.delta_percent is not None]
    if not rows:
        return []
    with plt.rc_context(STYLE | {"figure.figsize": (6.4, 1.6 + 0.36 * len(rows))}):
        figure, axes = plt.subplots(layout="constrained")
        for height, row in enumerate(reversed(rows)):
            error = 0.0 if row.standard_error is None else row.standard_error
            axes.errorbar(row.delta_percent, height, xerr=error, color=PALETTE[1], marker=MARKERS[1], markersize=7, capsize=4)
            if row.paper:
                axes.plot(row.paper.delta_percent, height, color="grey", marker="D", markersize=7, markerfacecolor="none")
        axes.axvline(0, color="black", linewidth=1)
        names = [shorten(describe_change(row), 40).replace("$", r"\$") for row in reversed(rows)]
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel("change of the loss in % of the base's (right: worse)")
        handles = [
            Line2D([], [], color=PALETTE[1], marker=MARKERS[1], label="here"),
            Line2D([], [], color="grey", marker="D", markerfacecolor="none", linestyle="none", label="the paper"),
        ]
        add_legend(figure, axes, handles)
        caption = (
            f"Final validation loss against the base's over the seeds both ran, at {format_tokens(table.tokens)} tokens; bars: "
            f"one standard error, where there are two seeds. Hollow: {ablations.source}, another size and budget."
        )
        return [save_plot(figure, out / "ablations.png", "What each change to nGPT costs", caption)]
