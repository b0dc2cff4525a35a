"""Draw the analysis as PNG files: loss against tokens and seconds, speedups, gaps, learning rates."""

from pathlib import Path

from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lab.figures import (
    MARKERS,
    PALETTE,
    STYLE,
    Plot,
    add_legend,
    literal,
    plt,
    save_plot,
    tick_budgets,
    tick_log_axis,
)
from lab.speedup.loss_plots import draw_headline_pair, draw_loss_by_seconds, draw_loss_by_tokens
from lab.words import format_rate, format_tokens


def draw_plots(analysis, out: Path) -> list[Plot]:
    """Write every picture that the analysis has data for, and return them in reading order."""
    plots = []
    with plt.rc_context(STYLE):
        for draw in (
            draw_loss_by_tokens,
            draw_headline_pair,
            draw_loss_by_seconds,
            draw_speedups,
            draw_gaps,
            draw_learning_rates,
        ):
            plots += draw(analysis, out)
    return plots


def draw_speedups(analysis, out: Path) -> list[Plot]:
    """Draw the speedup at the loss of every budget; bounds as arrows."""
    if not any(comparison.token_rows for comparison in analysis.comparisons):
        return []
    figure, axes = plt.subplots(layout="constrained")
    for index, comparison in enumerate(analysis.comparisons, start=1):
        label = literal(comparison.challenger)
        for rows, words, shade, fill in (
            (comparison.token_rows, "tokens", 1.0, True),
            (comparison.time_rows, "training time", 0.55, False),
        ):
            if not fill and len(analysis.comparisons) > 2:
                continue  # too many lines for one picture; the table has them
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
                if row.interval and fill:
                    axes.plot([row.loss] * 2, [row.interval.low, row.interval.high], color=colour, alpha=0.4, linewidth=4)
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
    _frame_speedups(axes, analysis)
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
    add_legend(figure, axes, handles)
    return [
        save_plot(
            figure,
            out / "speedup.png",
            "Speedup at equal loss",
            "How many times less the challenger needs for the loss of each budget; 1x is no difference, below it "
            "the challenger needs more. Triangles are bounds, where one arm was already better at its smallest "
            "budget or never got there in the budgets run. Bars: 95% intervals over seeds. Nothing is extrapolated.",
        )
    ]


def _frame_speedups(axes, analysis) -> None:
    """Set scales, limits and labels of the speedup plot."""
    axes.axhline(1, color="black", linewidth=1)
    axes.set_yscale("log")
    ratios = [row.ratio for comparison in analysis.comparisons for row in comparison.token_rows + comparison.time_rows]
    ends = [
        end
        for item in analysis.comparisons
        for row in item.token_rows
        if row.interval
        for end in (row.interval.low, row.interval.high)
    ]
    # Room for the intervals, unless they are so wide (two seeds) that the ratios would drown.
    ratios += [min(max(end, min(ratios) / 3), max(ratios) * 3) for end in ends]
    axes.set_ylim(min(ratios + [0.8]) / 1.15, max(ratios + [1.25]) * 1.15)
    tick_log_axis(axes.yaxis, lambda value: f"{value:g}x")
    axes.invert_xaxis()
    axes.set_xlabel("validation loss reached (nats/token), better to the right")
    axes.set_ylabel(f"speedup over {literal(analysis.comparisons[0].baseline)} (times less needed)")


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
            label=f"{literal(comparison.challenger)} minus {literal(comparison.baseline)}",
        )
    axes.axhline(0, color="black", linewidth=1)
    axes.set_xscale("log")
    tick_budgets(axes, sorted({gap.tokens for comparison in analysis.comparisons for gap in comparison.gaps}))
    axes.set_xlabel("training tokens (the same for both)")
    axes.set_ylabel("loss difference (nats/token)")
    add_legend(figure, axes)
    return [
        save_plot(
            figure,
            out / "gap.png",
            "Loss gap at equal tokens",
            "Below zero the challenger is better. Bars: one standard error over seeds, where both arms have at least two.",
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
            for item in sorted(point.candidates, key=lambda item: -item.loss):
                lowest[item.learning_rate] = item
            curve = [lowest[rate] for rate in sorted(lowest)]
            axes.errorbar(
                [item.learning_rate for item in curve],
                [item.loss for item in curve],
                yerr=[item.standard_error or 0.0 for item in curve],
                capsize=3,
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
        tick_log_axis(axes.xaxis, format_rate)
    axes.set_xlabel("peak learning rate")
    axes.set_ylabel("final validation loss (nats/token)")
    handles = [
        Line2D([], [], color=PALETTE[index % len(PALETTE)], marker=MARKERS[index % len(MARKERS)], label=literal(arm))
        for index, arm in enumerate(analysis.ladders)
    ]
    handles += [
        Line2D([], [], color="grey", linestyle=styles[index % len(styles)], label=format_tokens(tokens))
        for index, tokens in enumerate(budgets)
    ]
    add_legend(figure, axes, handles)
    return [
        save_plot(
            figure,
            out / "learning_rates.png",
            "Learning rates tried",
            "Final loss (mean over seeds, bars: one standard error) of each learning rate, by arm and budget in "
            "tokens; filled: the one kept. A filled mark at the end of its line means that the optimum "
            "may lie beyond the rates tried.",
        )
    ]
