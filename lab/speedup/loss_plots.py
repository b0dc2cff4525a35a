"""Draw ladders: validation loss against tokens, against training seconds, and of every section side by side."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from lab.figures import STYLE, Look, Plot, add_legend, error_bars, find_looks, literal, plt, save_plot, tick_budgets, tick_log_axis
from lab.runs import lookup, to_number
from lab.speedup.caveats import describe_unsteady_timing
from lab.speedup.comparable import end_of
from lab.speedup.published import PublishedSeries, find_series, read_published
from lab.speedup.report import Section
from lab.words import format_context, format_tokens

SERIES_MARKERS = {"HY": "D", "NV": "p", "JL": "h", "P1": "*", "NK": "X"}
LINES = ("-", "--", ":", "-.")
UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
MANY_RUNS = 24  # more single runs than this are a cloud in which the ladders drown


def draw_loss_by_tokens(section: Section, out: Path) -> list[Plot]:
    """Draw validation loss against training tokens, in front of published results of the very same setting."""
    series = find_series(section.runs)
    figure, axes = _draw_ladders(section, "tokens", 1.0, series)
    if series:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tokens(value)))
    else:
        tick_budgets(axes, sorted({point.tokens for ladder in section.ladders.values() for point in ladder.points}))
    axes.set_xlabel("training tokens")
    factor = _find_bits_per_nat(section)
    if factor:
        right = axes.secondary_yaxis("right", functions=(lambda loss: loss * factor, lambda bits: bits / factor))
        right.set_ylabel("bits/byte of text")
    caption = "Each arm's ladder: one fully annealed run per budget (best learning rate, mean over seeds)."
    if any(point.best.standard_error for ladder in section.ladders.values() for point in ladder.points):
        caption += " Bars: standard error."
    if _shows_curves(section, "tokens"):
        caption += (
            " Thin: every run's validation curve; small marks: its end. Only the ends may be compared: along a "
            "thin curve the learning rate is still falling." + _say_clipped(axes, section)
        )
    return [save_plot(figure, out / "loss_by_tokens.png", "Validation loss by tokens", caption + _describe_series(series))]


def draw_loss_by_seconds(section: Section, out: Path) -> list[Plot]:
    """Draw validation loss against training time, if the runs recorded it and their speed was steady."""
    ladders = section.ladders.values()
    if describe_unsteady_timing(*ladders):
        return []
    ends = [ladder.points[-1].steps * ladder.step_seconds for ladder in ladders if ladder.step_seconds]
    if len(ends) < len(ladders):
        return []
    longest = max(ends)
    unit, size = next(((unit, size) for unit, size in (("hours", 3600), ("minutes", 60)) if longest >= 2 * size), ("seconds", 1))
    figure, axes = _draw_ladders(section, "seconds", size)
    axes.set_xlabel(f"training time ({unit}, training steps only)")
    thin = " Thin: single runs at their own speed." if _shows_curves(section, "train_seconds") else ""
    return [
        save_plot(
            figure,
            out / "loss_by_seconds.png",
            "Validation loss by training time",
            f"The same ladders, steps times the arm's measured seconds per step (median over its runs).{thin} No start-up, no "
            "evaluation. It depends on the machine, on what else ran on it and on how well each step is optimized.",
        )
    ]


def choose_loss_range(section: Section) -> tuple[float, float]:
    """Return limits around the final losses (nats/token): the start of training would flatten them."""
    best = [point.best.loss for ladder in section.ladders.values() for point in ladder.points]
    spread = max(max(best) - min(best), 0.02 * max(best))
    return min(best) - 0.12 * spread, max(best) + (0.4 if _shows_curves(section, "tokens") else 0.12) * spread


def _say_clipped(axes: Any, section: Section) -> str:
    top = axes.get_ylim()[1]
    clipped = any(point.loss > top for run in section.runs for point in run.curve)
    return " Losses above the frame (early training, poor learning rates) are cut off." if clipped else ""


def _find_bits_per_nat(section: Section) -> float | None:
    """Return (bits/byte) / (nats/token), one number for all runs that share tokenizer and validation text."""
    ends = [end_of(run) for run in section.runs]
    ratios = [end.bits_per_byte / end.loss for end in ends if end.bits_per_byte and end.loss > 0]
    return ratios[0] if len(ratios) == len(ends) else None


def _describe_series(series: Sequence[PublishedSeries]) -> str:
    sources = read_published()["sources"]
    notes = [f"{sources[key]['name']} ({sources[key]['note']})" for key in dict.fromkeys(item.source for item in series)]
    if not notes:
        return ""
    return (
        " Faint marks and dashes: published by others for this vocabulary, context, size and text, not measured here; "
        f"filled: fp32 weights, hollow: matrices stored in bf16 or not stated. {'; '.join(notes)}."
    )


def _draw_ladders(section: Section, cost: str, size: float, series: Sequence[PublishedSeries] = ()):
    """Draw each arm's ladder, and thin validation curves if the runs are few; costs are divided by size."""
    figure, axes = plt.subplots(layout="constrained")
    looks = find_looks(section.ladders)
    attribute = "tokens" if cost == "tokens" else "train_seconds"
    curves = _shows_curves(section, attribute)
    costs = []
    for arm, ladder in section.ladders.items():
        if curves:
            _draw_curves(axes, section, arm, looks[arm], attribute, size)
        ends = [(point.tokens if cost == "tokens" else point.steps * (ladder.step_seconds or 0)) / size for point in ladder.points]
        costs += ends
        axes.errorbar(
            ends,
            [point.best.loss for point in ladder.points],
            yerr=error_bars([point.best.standard_error for point in ladder.points]),
            color=looks[arm].colour,
            linewidth=2.4,
            elinewidth=1.4,
            capsize=3,
            marker=looks[arm].marker,
            markersize=8,
            label=literal(arm),
            zorder=5,
        )
    axes.set_xscale("log")
    axes.set_ylim(*choose_loss_range(section))
    room = max(1.12, (max(costs) / min(costs)) ** 0.06)
    # Where there are thin curves, half of the way to the smallest budget is of interest.
    axes.set_xlim(min(costs) / (2 * room if curves else room), max(costs) * room)
    tick_log_axis(axes.xaxis, lambda value: f"{value:g}")
    axes.set_ylabel("validation loss (nats/token)")
    handles = axes.get_legend_handles_labels()[0]
    if curves:
        handles.append(Line2D([], [], color="grey", linewidth=0.8, label="single runs"))
    add_legend(figure, axes, handles + _draw_series(axes, looks, section.models, series))
    return figure, axes


def _shows_curves(section: Section, attribute: str) -> bool:
    """Return whether the single runs are few enough to be drawn, and any of them is more than its end."""
    smallest = min(end_of(run).tokens for run in section.runs)
    return len(section.runs) <= MANY_RUNS and any(
        point.tokens >= smallest / 2 and getattr(point, attribute) for run in section.runs for point in run.curve[:-1]
    )


def _draw_curves(axes: Any, section: Section, arm: str, look: Look, attribute: str, size: float) -> None:
    """Draw the validation curve of each run of an arm, thin, with a small mark at its end."""
    for run in section.runs:
        curve = [(getattr(point, attribute) / size, point.loss) for point in run.curve if getattr(point, attribute)]
        if section.arms[run.name] == arm and curve:
            axes.plot(*zip(*curve, strict=True), color=look.colour, linewidth=0.8, alpha=0.35)
            axes.plot(*curve[-1], color=look.colour, marker=look.marker, markersize=4, alpha=0.5, linestyle="none")


def _draw_series(axes: Any, looks: dict[str, Look], models: dict[str, str], series: Sequence[PublishedSeries]) -> list[Line2D]:
    """Draw published series faintly in the colours of their arms, make room for their ends, and return legend entries."""
    colours = {models[arm]: look.colour for arm, look in reversed(list(looks.items()))}
    for item in series:
        colour, filled = colours.get(item.arm, "grey"), item.weights == "float32"
        axes.plot(
            *zip(*item.points, strict=True),
            color=colour,
            alpha=0.4,
            linewidth=0.9,
            linestyle="--" if item.is_curve else ":",
            marker="" if item.is_curve else SERIES_MARKERS.get(item.source, "X"),
            markersize=6,
            markerfacecolor=colour if filled else "none",
            zorder=1,
        )
    ends = [point for item in series if not item.is_curve for point in item.points]
    if ends:
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        axes.set_xlim(min(left, min(x for x, _ in ends) / 1.25), max(right, max(x for x, _ in ends) * 1.25))
        axes.set_ylim(min(low, min(y for _, y in ends) - 0.02), max(high, max(y for _, y in ends) + 0.02))
    names = {item.source: read_published()["sources"][item.source]["name"] for item in series}
    return [
        Line2D([], [], color="grey", alpha=0.5, linestyle=":", marker=SERIES_MARKERS.get(key, "X"), label=name)
        for key, name in names.items()
    ]


def draw_overview(sections: Sequence[Section], out: Path) -> list[Plot]:
    """Draw every section's ladders, one panel per size, context and corpus; vocabularies share a panel.

    In bits/byte against bytes of text, which no vocabulary changes, if all runs recorded them; else in nats against tokens.
    """
    scales = [_bytes_per_token(section) for section in sections]
    in_bytes = all(scales)
    panels: dict[tuple, list[tuple[Section, float]]] = {}
    for section, scale in zip(sections, scales, strict=True):
        key = section.size, section.context, section.data
        panels.setdefault(key, []).append((section, scale if in_bytes and scale else 1.0))
    vocabularies = list(dict.fromkeys(section.tokenizer for section in sections))
    looks = find_looks(arm for section in sections for arm in section.ladders)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with plt.rc_context(STYLE):
        size = 4.2 * columns + 0.6, 3.6 * rows + 0.6
        figure, grid = plt.subplots(rows, columns, squeeze=False, layout="constrained", figsize=size)
        handles: dict[str, Any] = {}
        for axes, ((name, context, data), members) in zip(grid.flat, panels.items(), strict=False):
            for section, scale in members:
                line_style = LINES[vocabularies.index(section.tokenizer) % len(LINES)]
                vocabulary = f", {section.tokenizer}" if len(vocabularies) > 1 else ""
                for arm, ladder in section.ladders.items():
                    line = axes.plot(
                        [point.tokens * scale for point in ladder.points],
                        [point.best.bits_per_byte if in_bytes else point.best.loss for point in ladder.points],
                        color=looks[arm].colour,
                        marker=looks[arm].marker,
                        linestyle=line_style,
                        linewidth=2,
                        label=literal(arm) + literal(vocabulary),
                    )
                    handles.setdefault(line[0].get_label(), line[0])
            axes.set_xscale("log")
            tick_log_axis(axes.xaxis, _format_bytes if in_bytes else format_tokens)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.set_title(f"{name}, context {format_context(context)}, {data}".replace("$", r"\$")[:48], fontsize=12)
            axes.set_xlabel("text trained on (bytes)" if in_bytes else "training tokens")
            axes.set_ylabel("bits/byte of validation text" if in_bytes else "validation loss (nats/token)")
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        add_legend(figure, grid[0][0], list(handles.values()))
        caption = "Each arm's ladder (fully annealed runs, best learning rate, mean over seeds) in every section. " + (
            "Bits/byte against bytes of text, which do not depend on the vocabulary."
            if in_bytes
            else "Losses in nats/token compare only where the vocabulary is the same."
        )
        return [save_plot(figure, out / "overview.png", "All sections", caption)]


def _format_bytes(value: float) -> str:
    size, unit = next(((size, unit) for size, unit in UNITS if value >= 0.9995 * size), (1, "B"))
    return f"{value / size:.3g} {unit}"


def _bytes_per_token(section: Section) -> float | None:
    """Return the validation text's bytes per token, None unless every point of the ladders has bits/byte too."""
    text, tokens = (to_number(lookup(section.runs[0].environment, f"evaluation.{key}")) for key in ("bytes", "tokens"))
    complete = all(point.best.bits_per_byte is not None for ladder in section.ladders.values() for point in ladder.points)
    if not (complete and text and tokens) or min(text, tokens) <= 0:
        return None
    return text / tokens if math.isfinite(text / tokens) else None
