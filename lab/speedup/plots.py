"""Draw what follows from the ladders: speedups, gaps, learning rates, the parts of a speedup."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lab.figures import STYLE, Look, Plot, add_legend, error_bars, find_looks, literal, plt, save_plot, tick_budgets, tick_log_axis
from lab.speedup.caveats import describe_unsteady_timing
from lab.speedup.loss_plots import LINES, draw_loss_by_seconds, draw_loss_by_tokens
from lab.speedup.report import Section
from lab.speedup.run_plots import draw_headline_pair, draw_training
from lab.speedup.speedup import Speedup
from lab.words import format_rate, format_tokens


def draw_section(section: Section, out: Path) -> list[Plot]:
    """Write every picture that the section has data for, and return them in reading order."""
    plots: list[Plot] = []
    with plt.rc_context(STYLE):
        for draw in (
            draw_loss_by_tokens,
            draw_headline_pair,
            draw_speedups,
            draw_gaps,
            draw_learning_rates,
            draw_loss_by_seconds,
            draw_training,
            draw_parts,
        ):
            plots += draw(section, out)
    return plots


def draw_speedups(section: Section, out: Path) -> list[Plot]:
    """Draw the speedup at the loss of every budget; bounds as arrows."""
    if not any(comparison.token_rows for comparison in section.comparisons):
        return []
    figure, axes = plt.subplots(layout="constrained")
    looks = find_looks(section.ladders)
    # More lines are too many for one picture, and times that nobody should trust are not drawn; the table has them.
    with_time = len(section.comparisons) <= 2 and not describe_unsteady_timing(*section.ladders.values())
    for comparison in section.comparisons:
        look, label = looks[comparison.challenger], literal(comparison.challenger)
        _draw_rows(axes, comparison.token_rows, look, f"{label}: tokens", filled=True)
        if with_time:
            _draw_rows(axes, comparison.time_rows, look, f"{label}: training time", filled=False)
    _frame_speedups(axes, section, with_time)
    bounds = {row.relation for comparison in section.comparisons for row in comparison.token_rows} - {"="}
    intervals = any(row.interval for comparison in section.comparisons for row in comparison.token_rows)
    named = {">": ("^", "more than this"), "<": ("v", "less than this")}
    handles = axes.get_legend_handles_labels()[0] + [
        Line2D([], [], color="grey", linestyle="none", marker=named[relation][0], markersize=9, label=named[relation][1])
        for relation in sorted(bounds)
    ]
    add_legend(figure, axes, handles)
    return [
        save_plot(
            figure,
            out / "speedup.png",
            "Speedup at equal loss",
            "How many times less the challenger needs for the loss of each budget; 1x is no difference, below it "
            f"the challenger needs more.{' Filled: tokens, hollow: training time.' if with_time else ''}"
            f"{' Triangles are bounds: one arm was better at its smallest budget or never got there.' if bounds else ''}"
            f"{' Bars: 95% intervals over seeds.' if intervals else ''} Nothing is extrapolated.",
        )
    ]


def _draw_rows(axes: Any, rows: Sequence[Speedup], look: Look, label: str, filled: bool) -> None:
    """Draw one series of speedups, filled marks on a line or hollow ones on dashes; intervals only for the filled."""
    style = {"color": look.colour, "alpha": 1.0 if filled else 0.55, "markerfacecolor": look.colour if filled else "none"}
    measured = [row for row in rows if row.relation == "="]
    axes.plot(
        [row.loss for row in measured],
        [row.ratio for row in measured],
        linestyle="-" if filled else "--",
        marker=look.marker,
        markersize=7,
        label=label,
        **style,
    )
    for row in rows:
        if row.interval and filled:
            axes.plot([row.loss] * 2, [row.interval.low, row.interval.high], color=look.colour, alpha=0.4, linewidth=4)
        if row.relation != "=":
            marker = "^" if row.relation == ">" else "v"
            axes.plot([row.loss], [row.ratio], marker=marker, markersize=10, linestyle="none", **style)


def _frame_speedups(axes: Any, section: Section, with_time: bool) -> None:
    """Set scales, limits and labels of the speedup plot."""
    axes.axhline(1, color="black", linewidth=1)
    axes.set_yscale("log")
    rows = [row for item in section.comparisons for row in item.token_rows + (item.time_rows if with_time else ())]
    ratios = [row.ratio for row in rows]
    ends = [end for row in rows if row.interval for end in (row.interval.low, row.interval.high)]
    # Room for the intervals, unless they are so wide (two seeds) that the ratios would drown.
    ratios += [min(max(end, min(ratios) / 3), max(ratios) * 3) for end in ends]
    axes.set_ylim(min(ratios + [0.8]) / 1.15, max(ratios + [1.25]) * 1.15)
    tick_log_axis(axes.yaxis, lambda value: f"{value:g}x")
    axes.invert_xaxis()
    axes.set_xlabel("validation loss reached (nats/token), better to the right")
    axes.set_ylabel(f"speedup over {literal(section.comparisons[0].baseline)} (times less needed)")


def draw_gaps(section: Section, out: Path) -> list[Plot]:
    """Draw the loss gap at equal tokens, with its standard error over seeds where there is one."""
    if not any(comparison.gaps for comparison in section.comparisons):
        return []
    figure, axes = plt.subplots(layout="constrained")
    looks = find_looks(section.ladders)
    seeds = any(gap.standard_error for comparison in section.comparisons for gap in comparison.gaps)
    for comparison in section.comparisons:
        gaps, look = comparison.gaps, looks[comparison.challenger]
        axes.errorbar(
            [gap.tokens for gap in gaps],
            [gap.nats_per_token for gap in gaps],
            yerr=error_bars([gap.standard_error for gap in gaps]),
            capsize=5,
            color=look.colour,
            marker=look.marker,
            markersize=7,
            linewidth=2,
            label=f"{literal(comparison.challenger)} minus {literal(comparison.baseline)}",
        )
    axes.axhline(0, color="black", linewidth=1)
    axes.set_xscale("log")
    tick_budgets(axes, sorted({gap.tokens for comparison in section.comparisons for gap in comparison.gaps}))
    axes.set_xlabel("training tokens (the same for both)")
    axes.set_ylabel("loss difference (nats/token)")
    add_legend(figure, axes)
    return [
        save_plot(
            figure,
            out / "gap.png",
            "Loss gap at equal tokens",
            "Below zero the challenger is better." + (" Bars: one standard error over seeds." if seeds else ""),
        )
    ]


def draw_learning_rates(section: Section, out: Path) -> list[Plot]:
    """Draw final loss against learning rate, if any budget has more than one."""
    points = [point for ladder in section.ladders.values() for point in ladder.points]
    if all(len(point.tried) < 2 for point in points):
        return []
    figure, axes = plt.subplots(layout="constrained")
    looks, budgets = find_looks(section.ladders), sorted({point.tokens for point in points})
    for arm, ladder in section.ladders.items():
        for point in ladder.points:
            look, style = looks[arm], LINES[budgets.index(point.tokens) % len(LINES)]
            lowest = {}
            for item in sorted(point.candidates, key=lambda item: -item.loss):
                lowest[item.learning_rate] = item
            curve = [lowest[rate] for rate in sorted(lowest)]
            axes.errorbar(
                [item.learning_rate for item in curve],
                [item.loss for item in curve],
                yerr=error_bars([item.standard_error for item in curve]),
                capsize=3,
                color=look.colour,
                linestyle=style,
                linewidth=1.8,
                marker=look.marker,
                markersize=6,
                markerfacecolor="white",
            )
            axes.plot(
                [point.best.learning_rate],
                [point.best.loss],
                color=look.colour,
                linestyle="none",
                marker=look.marker,
                markersize=9,
                zorder=5,
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
    handles = [Line2D([], [], color=look.colour, marker=look.marker, label=literal(arm)) for arm, look in looks.items()]
    handles += [
        Line2D([], [], color="grey", linestyle=LINES[index % len(LINES)], label=format_tokens(tokens))
        for index, tokens in enumerate(budgets)
    ]
    add_legend(figure, axes, handles)
    return [
        save_plot(
            figure,
            out / "learning_rates.png",
            "Learning rates tried",
            "Final loss (mean over seeds; bars, where there are several: one standard error) of each learning rate, by arm and "
            "budget in tokens; filled: the one kept. A filled mark at the end of its line means that the optimum "
            "may lie beyond the rates tried.",
        )
    ]


def draw_parts(section: Section, out: Path) -> list[Plot]:
    """Draw nGPT's speedup over each baseline of the decomposition, with its interval; bounds as arrows."""
    parts = section.decomposition
    rows = [(row, row.speedup, row.speedup.value) for row in parts.rows if row.speedup and row.speedup.value] if parts else []
    if parts is None or not rows:
        return []
    look = find_looks(["ngpt"])["ngpt"]
    figure, axes = plt.subplots(layout="constrained", figsize=(8.0, 1.2 + 0.75 * len(rows)))
    for height, (_, ratio, value) in enumerate(reversed(rows)):
        if ratio.interval:
            axes.plot([ratio.interval.low, ratio.interval.high], [height] * 2, color=look.colour, linewidth=2)
        marker = {"=": "o", ">": ">", "<": "<"}[ratio.relation]
        axes.plot([value], [height], color=look.colour, marker=marker, markersize=9)
        axes.annotate(
            f"{'' if ratio.relation == '=' else ratio.relation}{value:.2f}x",
            (value, height),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
        )
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    tick_log_axis(axes.xaxis, lambda value: f"{value:g}x")
    axes.set_yticks(range(len(rows)), [row.words.replace(", ", "\n", 1) for row, *_ in reversed(rows)])
    axes.set_ylim(-0.5, len(rows) - 0.3)
    axes.set_xlabel("token speedup of nGPT at equal loss")
    caption = (
        f"At {parts.loss:.4g} nats/token, the lowest loss that all these arms reach. From top to bottom one "
        "handicap of the baseline is taken away at a time; the step between two rows is that handicap's part. "
        "Bars: 95% intervals over seeds."
    )
    return [save_plot(figure, out / "decomposition.png", "What the speedup is made of", caption)]
