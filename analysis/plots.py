"""Draw the analysis as PNG files: loss against tokens and seconds, speedups, gaps, learning rates."""

import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend must be chosen first: there may be no display)
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator  # noqa: E402

from analysis.text import display_arm, format_rate, format_tokens  # noqa: E402

# Okabe-Ito colours: told apart by colour-blind readers; markers tell the arms apart in grey print.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLE = {
    "font.size": 12,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.figsize": (7.0, 4.6),
    "savefig.dpi": 150,
    "axes.formatter.useoffset": False,
}


@dataclass(frozen=True)
class Plot:
    """Name one written picture and say what it shows."""

    path: Path
    title: str
    caption: str


def draw_plots(analysis, out: Path) -> list[Plot]:
    """Write every picture that the analysis has data for, and return them in reading order."""
    plots = []
    with plt.rc_context(STYLE):
        for draw in (draw_loss_by_tokens, draw_loss_by_seconds, draw_speedups, draw_gaps, draw_learning_rates):
            plots += draw(analysis, out)
    return plots


def draw_loss_by_tokens(analysis, out: Path) -> list[Plot]:
    """Draw validation loss against training tokens."""
    figure, axes = _draw_ladders(analysis, "tokens", 1.0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tokens(value)))
    axes.set_xlabel("training tokens")
    return [
        _save(
            figure,
            out / "loss_by_tokens.png",
            "Validation loss by tokens",
            "Thick: each arm's ladder, one separate fully annealed run per budget (best learning rate, mean over "
            "seeds). Thin: every run's validation curve; marks: its end. Only the ends may be compared: along a "
            "thin curve the learning rate is still falling." + _say_clipped(axes, analysis),
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
        _save(
            figure,
            out / "loss_by_seconds.png",
            "Validation loss by training time",
            "The same runs against the time spent in training steps (no start-up, no evaluation). It depends on "
            "the machine, on what else ran on it and on how well each step is optimized.",
        )
    ]


def draw_speedups(analysis, out: Path) -> list[Plot]:
    """Draw the speedup at the loss of every budget; bounds as arrows."""
    if not any(comparison.token_rows for comparison in analysis.comparisons):
        return []
    figure, axes = plt.subplots(layout="constrained")
    for index, comparison in enumerate(analysis.comparisons, start=1):
        label = f"{_safe(comparison.challenger)} over {_safe(comparison.baseline)}"
        for rows, words, shade, fill in (
            (comparison.token_rows, "tokens", 1.0, True),
            (comparison.time_rows, "training time", 0.55, False),
        ):
            colour = PALETTE[index % len(PALETTE)]
            face = colour if fill else "none"
            measured = [row for row in rows if row.relation == "="]
            axes.plot(
                [row.loss for row in measured],
                [row.ratio for row in measured],
                color=colour,
                alpha=shade,
                linestyle="-" if fill else "--",
                marker=MARKERS[index % len(MARKERS)],
                markersize=7,
                markerfacecolor=face,
                label=f"{label}: {words}",
            )
            for row in rows:
                if row.relation != "=":
                    axes.plot(
                        [row.loss],
                        [row.ratio],
                        marker="^" if row.relation == ">" else "v",
                        markersize=10,
                        color=colour,
                        markerfacecolor=face,
                        alpha=shade,
                        linestyle="none",
                    )
    axes.axhline(1, color="black", linewidth=1)
    axes.set_yscale("log")
    ratios = [row.ratio for comparison in analysis.comparisons for row in comparison.token_rows + comparison.time_rows]
    axes.set_ylim(min(ratios + [0.8]) / 1.15, max(ratios + [1.25]) * 1.15)
    _tick_log_axis(axes.yaxis, lambda value: f"{value:g}x")
    axes.invert_xaxis()
    axes.set_xlabel("validation loss reached (nats/token), better to the right")
    axes.set_ylabel("speedup (times less needed)")
    bounds = {row.relation for comparison in analysis.comparisons for row in comparison.token_rows} - {"="}
    handles = axes.get_legend_handles_labels()[0] + [
        Line2D(
            [],
            [],
            color="grey",
            linestyle="none",
            marker="^" if relation == ">" else "v",
            markersize=9,
            label="more than this" if relation == ">" else "less than this",
        )
        for relation in sorted(bounds)
    ]
    _add_legend(figure, axes, handles)
    return [
        _save(
            figure,
            out / "speedup.png",
            "Speedup at equal loss",
            "How many times less the challenger needs for the loss of each budget; 1x is no difference, below it "
            "the challenger needs more. Triangles are bounds, where one arm was already better at its smallest "
            "budget or never got there in the budgets run. Nothing is extrapolated.",
        )
    ]


def draw_gaps(analysis, out: Path) -> list[Plot]:
    """Draw the loss gap at equal tokens, with its standard error over seeds where there is one."""
    if not any(comparison.gaps for comparison in analysis.comparisons):
        return []
    figure, axes = plt.subplots(layout="constrained")
    for index, comparison in enumerate(analysis.comparisons, start=1):
        gaps = comparison.gaps
        errors = [gap.standard_error or float("nan") for gap in gaps]
        axes.errorbar(
            [gap.tokens for gap in gaps],
            [gap.nats_per_token for gap in gaps],
            yerr=errors,
            capsize=5,
            color=PALETTE[index % len(PALETTE)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=7,
            linewidth=2,
            label=f"{_safe(comparison.challenger)} minus {_safe(comparison.baseline)}",
        )
    axes.axhline(0, color="black", linewidth=1)
    axes.set_xscale("log")
    _tick_budgets(axes, sorted({gap.tokens for comparison in analysis.comparisons for gap in comparison.gaps}))
    axes.set_xlabel("training tokens (the same for both)")
    axes.set_ylabel("loss difference (nats/token)")
    _add_legend(figure, axes)
    return [
        _save(
            figure,
            out / "gap.png",
            "Loss gap at equal tokens",
            "Below zero the challenger is better. Bars: one standard error over seeds, where both arms have "
            "at least two.",
        )
    ]


def draw_learning_rates(analysis, out: Path) -> list[Plot]:
    """Draw final loss against learning rate, if any budget has more than one."""
    points = [point for ladder in analysis.ladders.values() for point in ladder.points]
    if all(len(point.tried) < 2 for point in points):
        return []
    figure, axes = plt.subplots(layout="constrained")
    styles, budgets = ("-", "--", ":", "-."), sorted({point.tokens for point in points})
    for index, ladder in enumerate(analysis.ladders.values()):
        for point in ladder.points:
            colour, style = PALETTE[index % len(PALETTE)], styles[budgets.index(point.tokens) % len(styles)]
            lowest = {}
            for item in point.candidates:
                lowest[item.learning_rate] = min(item.loss, lowest.get(item.learning_rate, item.loss))
            axes.plot(
                lowest.keys(),
                lowest.values(),
                color=colour,
                linestyle=style,
                linewidth=1.8,
                marker=MARKERS[index % len(MARKERS)],
                markersize=6,
                markerfacecolor="white",
            )
            axes.plot(
                [point.best.learning_rate],
                [point.best.loss],
                color=colour,
                linestyle="none",
                marker=MARKERS[index % len(MARKERS)],
                markersize=9,
            )
    axes.set_xscale("log")
    rates = sorted({rate for point in points for rate in point.tried})
    if len(rates) <= 7:
        axes.xaxis.set_major_locator(FixedLocator(rates))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_rate(value)))
    else:
        _tick_log_axis(axes.xaxis, format_rate)
    axes.set_xlabel("peak learning rate")
    axes.set_ylabel("final validation loss (nats/token)")
    handles = [
        Line2D([], [], color=PALETTE[index % len(PALETTE)], marker=MARKERS[index % len(MARKERS)], label=_safe(arm))
        for index, arm in enumerate(analysis.ladders)
    ]
    handles += [
        Line2D([], [], color="grey", linestyle=styles[index % len(styles)], label=format_tokens(tokens))
        for index, tokens in enumerate(budgets)
    ]
    _add_legend(figure, axes, handles)
    return [
        _save(
            figure,
            out / "learning_rates.png",
            "Learning rates tried",
            "Final loss (mean over seeds) of each learning rate, by arm and budget in tokens; filled: the one "
            "kept. A filled mark at the end of its line means that the optimum may lie beyond the rates tried.",
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
            label=_safe(ladder.arm),
            zorder=5,
        )
    axes.set_xscale("log")
    low, high = _choose_loss_range(analysis)
    axes.set_ylim(low, high)
    visible = [
        getattr(point, attribute) / size
        for run in analysis.runs
        for point in run.curve
        if point.loss <= high and getattr(point, attribute)
    ]
    axes.set_xlim(min(visible) / 1.25, max(visible) * 1.25)
    _tick_log_axis(axes.xaxis, lambda value: f"{value:g}")
    axes.set_ylabel("validation loss (nats/token)")
    handles, _ = axes.get_legend_handles_labels()
    handles.append(Line2D([], [], color="grey", linewidth=0.8, label="single runs"))
    _add_legend(figure, axes, handles)
    return figure, axes


def _choose_loss_range(analysis) -> tuple[float, float]:
    """Return limits around the final losses: the start of training (log of the vocabulary) would flatten them."""
    best = [point.best.loss for ladder in analysis.ladders.values() for point in ladder.points]
    spread = max(max(best) - min(best), 0.02 * max(best))
    highest = max(point.loss for run in analysis.runs for point in run.curve if math.isfinite(point.loss))
    return min(best) - 0.15 * spread, min(max(best) + 1.2 * spread, max(highest, max(best)) + 0.15 * spread)


def _say_clipped(axes, analysis) -> str:
    top = axes.get_ylim()[1]
    clipped = any(point.loss > top for run in analysis.runs for point in run.curve)
    return " Losses above the frame (early training, poor learning rates) are cut off." if clipped else ""


def _tick_log_axis(axis, form) -> None:
    """Label a log axis at 1, 2, 5 per decade, or finer where it spans less than about a factor of five."""
    low, high = sorted(axis.get_view_interval())
    subs = (1, 2, 5) if high / low > 5 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))


def _tick_budgets(axes, budgets: list[int]) -> None:
    axes.xaxis.set_minor_formatter(NullFormatter())
    if len(budgets) <= 7:
        axes.xaxis.set_major_locator(FixedLocator(budgets))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tokens(value)))
    axes.set_xlim(budgets[0] / 1.3, budgets[-1] * 1.3)


def _add_legend(figure, axes, handles=None) -> None:
    """Put the legend above the axes, where it can hide no data."""
    handles = handles or axes.get_legend_handles_labels()[0]
    longest = max(len(handle.get_label()) for handle in handles)
    figure.legend(handles=handles, loc="outside upper center", ncols=2 if longest > 18 else 4, fontsize=11)


def _safe(arm: str) -> str:
    """Return an arm's name as literal text: matplotlib reads $...$ as mathematics."""
    return display_arm(arm).replace("$", r"\$")[:40]


def _save(figure, path: Path, title: str, caption: str) -> Plot:
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
    return Plot(path, title, caption)
