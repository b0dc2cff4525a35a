"""Draw validation loss against tokens and against training seconds, and the pair of runs behind the headline."""

import math
from pathlib import Path

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from lab.figures import (
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
from lab.speedup.published import find_anchors, read_published
from lab.words import format_tokens

ANCHOR_MARKERS = {"HY": "D", "NV": "p", "JL": "h", "P1": "*", "NK": "X"}


def draw_loss_by_tokens(analysis, out: Path) -> list[Plot]:
    """Draw validation loss against training tokens, in front of published results of the very same setting."""
    anchors = find_anchors(analysis.runs)
    figure, axes = _draw_ladders(analysis, "tokens", 1.0, anchors)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tokens(value)))
    axes.set_xlabel("training tokens")
    factor = find_bits_per_nat(analysis)
    if factor:
        right = axes.secondary_yaxis("right", functions=(lambda loss: loss * factor, lambda bits: bits / factor))
        right.set_ylabel("bits/byte of text")
    return [
        save_plot(
            figure,
            out / "loss_by_tokens.png",
            "Validation loss by tokens",
            "Thick: each arm's ladder, one separate fully annealed run per budget (best learning rate, mean over "
            "seeds). Thin: every run's validation curve; marks: its end. Only the ends may be compared: along a "
            "thin curve the learning rate is still falling." + say_clipped(axes, analysis) + _describe_anchors(anchors),
        )
    ]


def find_bits_per_nat(analysis) -> float | None:
    """Return (bits/byte) / (nats/token), one number for all runs that share tokenizer and validation text."""
    ends = [run.final for run in analysis.runs if run.final.bits_per_byte and run.final.loss > 0]
    return ends[0].bits_per_byte / ends[0].loss if len(ends) == len(analysis.runs) else None


def _describe_anchors(anchors) -> str:
    sources = read_published()["sources"]
    notes = [f"{sources[key]['name']} ({sources[key]['note']})" for key in dict.fromkeys(a.source for a in anchors)]
    if not notes:
        return ""
    return (
        " Faint marks and dashes: published by others for this vocabulary, context, size and text, not measured here; "
        f"filled: fp32 weights, hollow: matrices stored in bf16 or not stated. {'; '.join(notes)}."
    )


def draw_loss_by_seconds(analysis, out: Path) -> list[Plot]:
    """Draw validation loss against training time, if the runs recorded it."""
    ladders = analysis.ladders.values()
    if not all(ladder.step_seconds for ladder in ladders):
        return []
    longest = max(ladder.points[-1].steps * ladder.step_seconds for ladder in ladders)
    unit, size = next(((unit, size) for unit, size in (("hours", 3600), ("minutes", 60)) if longest >= 2 * size), ("seconds", 1))
    figure, axes = _draw_ladders(analysis, "seconds", size)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(f"training time ({unit}, training steps only)")
    return [
        save_plot(
            figure,
            out / "loss_by_seconds.png",
            "Validation loss by training time",
            "The same ladders, steps times the arm's measured seconds per step (median over its runs). Thin: single "
            "runs at their own speed. No start-up, no evaluation. It depends on the machine, on what else ran on it "
            "and on how well each step is optimized.",
        )
    ]


def _draw_ladders(analysis, cost: str, size: float, anchors=()):
    """Draw thin validation curves, their ends, and each arm's thick ladder; costs are divided by size."""
    figure, axes = plt.subplots(layout="constrained")
    attribute = "tokens" if cost == "tokens" else "train_seconds"
    faint = 1.0 if len(analysis.runs) <= 60 else 0.4
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
                    alpha=0.35 * faint,
                )
                axes.plot(
                    [curve[-1][0] / size],
                    [curve[-1][1]],
                    color=colour,
                    marker=marker,
                    markersize=4,
                    alpha=0.5 * faint,
                    linestyle="none",
                )
        ends = [
            ((point.tokens if cost == "tokens" else point.steps * ladder.step_seconds) / size, point.best.loss)
            for point in ladder.points
        ]
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
    add_legend(figure, axes, handles + _draw_anchors(axes, analysis, anchors))
    return figure, axes


def _draw_anchors(axes, analysis, anchors) -> list[Line2D]:
    """Draw published series faintly in the colours of their arms, make room for their ends, and return legend entries."""
    colours = {arm.split(" ")[0]: PALETTE[index % len(PALETTE)] for index, arm in reversed([*enumerate(analysis.ladders)])}
    for anchor in anchors:
        colour, filled = colours.get(anchor.arm, "grey"), anchor.weights == "float32"
        axes.plot(
            *zip(*anchor.points, strict=True),
            color=colour,
            alpha=0.4,
            linewidth=0.9,
            linestyle="--" if anchor.is_curve else ":",
            marker="" if anchor.is_curve else ANCHOR_MARKERS.get(anchor.source, "X"),
            markersize=6,
            markerfacecolor=colour if filled else "none",
            zorder=1,
        )
    ends = [point for anchor in anchors if not anchor.is_curve for point in anchor.points]
    if ends:
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        axes.set_xlim(min(left, min(x for x, _ in ends) / 1.25), max(right, max(x for x, _ in ends) * 1.25))
        axes.set_ylim(min(low, min(y for _, y in ends) - 0.02), max(high, max(y for _, y in ends) + 0.02))
    names = {anchor.source: read_published()["sources"][anchor.source]["name"] for anchor in anchors}
    return [
        Line2D([], [], color="grey", alpha=0.5, linestyle=":", marker=ANCHOR_MARKERS.get(key, "X"), label=name)
        for key, name in names.items()
    ]


def draw_headline_pair(analysis, out: Path) -> list[Plot]:
    """Draw whole validation curves of the two runs behind the headline: equal final loss, different tokens."""
    comparison = next((item for item in analysis.comparisons if item.token_headline.relation == "="), None)
    if comparison is None:
        return []
    row = comparison.token_headline
    figure, axes = plt.subplots(layout="constrained")
    longest, highest = 0, row.loss
    for arm, cost in ((comparison.baseline, row.baseline_cost), (comparison.challenger, row.challenger_cost)):
        index, ladder = list(analysis.ladders).index(arm), analysis.ladders[arm]
        colour = PALETTE[index % len(PALETTE)]
        point = min(ladder.points, key=lambda item: abs(math.log(item.tokens / cost)))
        longest = max(longest, cost, point.tokens)
        names = {endpoint.run for endpoint in point.best.endpoints}
        label = f"{literal(arm)}, budget {format_tokens(point.tokens)}"
        for run in analysis.runs:
            if run.name in names:
                curve = [(item.tokens, item.loss) for item in run.curve if item.tokens]
                axes.plot(*zip(*curve, strict=True), color=colour, linewidth=1.6, alpha=0.8, label=label)
                axes.plot(*curve[-1], color=colour, marker=MARKERS[index % len(MARKERS)], markersize=6)
                label = None
                highest = max(highest, *(loss for _, loss in curve if math.isfinite(loss)))
        axes.axvline(cost, color=colour, linestyle=":", linewidth=1.2)
    axes.axhline(row.loss, color="grey", linestyle="--", linewidth=1)
    high = max(min(highest, choose_loss_range(analysis)[1]), row.loss + 0.02)
    axes.set_ylim(row.loss - 0.25 * (high - row.loss), high + 0.05 * (high - row.loss))
    height = row.loss - 0.14 * (high - row.loss)
    axes.annotate("", (row.challenger_cost, height), (row.baseline_cost, height), arrowprops={"arrowstyle": "->"})
    axes.annotate(
        f"token speedup {row.ratio:.2f}x ",
        (min(row.challenger_cost, row.baseline_cost), height),
        ha="right",
        va="center",
    )
    axes.set_xlim(0, 1.05 * longest)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tokens(value)))
    axes.set_xlabel("training tokens")
    axes.set_ylabel("validation loss (nats/token)")
    add_legend(figure, axes)
    return [
        save_plot(
            figure,
            out / "headline_pair.png",
            "The pair of runs at equal loss",
            f"The budgets nearest to the headline (every seed): dashed, the loss of {row.loss:.4g} nats/token that both "
            "arms reach; dotted, the tokens each needs for it, read between its budgets. A curve of a larger budget "
            "lies higher for most of its way and falls at its end, when the learning rate does.",
        )
    ]
