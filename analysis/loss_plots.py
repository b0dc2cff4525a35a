"""Draw validation loss against tokens and against training seconds, with each arm's budget ladder."""

from pathlib import Path

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from analysis.axes import (
    MARKERS,
    PALETTE,
    Plot,
    add_legend,
    choose_loss_range,
    literal,
    plt,
    save_plot,
    say_clipped,
    tick_log_axis,
)
from analysis.text import format_tokens


def draw_loss_by_tokens(analysis, out: Path) -> list[Plot]:
    """Draw validation loss against training tokens."""
    figure, axes = _draw_ladders(analysis, "tokens", 1.0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tokens(value)))
    axes.set_xlabel("training tokens")
    return [
        save_plot(
            figure,
            out / "loss_by_tokens.png",
            "Validation loss by tokens",
            "Thick: each arm's ladder, one separate fully annealed run per budget (best learning rate, mean over "
            "seeds). Thin: every run's validation curve; marks: its end. Only the ends may be compared: along a "
            "thin curve the learning rate is still falling." + say_clipped(axes, analysis),
        )
    ]


def draw_loss_by_seconds(analysis, out: Path) -> list[Plot]:
    """Draw validation loss against training time, if any run recorded it."""
    longest = max(point.best.seconds or 0 for ladder in analysis.ladders.values() for point in ladder.points)
    if longest <= 0:
        return []
    unit, size = next(
        ((unit, size) for unit, size in (("hours", 3600), ("minutes", 60)) if longest >= 2 * size), ("seconds", 1)
    )
    figure, axes = _draw_ladders(analysis, "seconds", size)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(f"training time ({unit}, training steps only)")
    return [
        save_plot(
            figure,
            out / "loss_by_seconds.png",
            "Validation loss by training time",
            "The same runs against the time spent in training steps (no start-up, no evaluation). It depends on "
            "the machine, on what else ran on it and on how well each step is optimized.",
        )
    ]


def _draw_ladders(analysis, cost: str, size: float):
    """Draw thin validation curves, their ends, and each arm's thick ladder; costs are divided by size."""
    figure, axes = plt.subplots(layout="constrained")
    attribute = "tokens" if cost == "tokens" else "train_seconds"
    for index, ladder in enumerate(analysis.ladders.values()):
        colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
        for run in analysis.runs:
            curve = [(getattr(point, attribute), point.loss) for point in run.curve if getattr(point, attribute)]
            if analysis.arms[run.name] == ladder.arm and curve:
                axes.plot(
                    [value / size for value, _ in curve],
                    [loss for _, loss in curve],
                    color=colour,
                    linewidth=0.8,
                    alpha=0.35,
                )
                axes.plot(
                    [curve[-1][0] / size],
                    [curve[-1][1]],
                    color=colour,
                    marker=marker,
                    markersize=4,
                    alpha=0.5,
                    linestyle="none",
                )
        ends = [(point.tokens if cost == "tokens" else point.best.seconds, point.best.loss) for point in ladder.points]
        ends = [(value / size, loss) for value, loss in ends if value]
        axes.plot(
            [value for value, _ in ends],
            [loss for _, loss in ends],
            color=colour,
            linewidth=2.6,
            marker=marker,
            markersize=8,
            label=literal(ladder.arm),
            zorder=5,
        )
    axes.set_xscale("log")
    low, high = choose_loss_range(analysis)
    axes.set_ylim(low, high)
    visible = [
        getattr(point, attribute) / size
        for run in analysis.runs
        for point in run.curve
        if point.loss <= high and getattr(point, attribute)
    ]
    axes.set_xlim(min(visible) / 1.25, max(visible) * 1.25)
    tick_log_axis(axes.xaxis, lambda value: f"{value:g}")
    axes.set_ylabel("validation loss (nats/token)")
    handles, _ = axes.get_legend_handles_labels()
    handles.append(Line2D([], [], color="grey", linewidth=0.8, label="single runs"))
    add_legend(figure, axes, handles)
    return figure, axes
