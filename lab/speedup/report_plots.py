"""Draw what belongs to a whole report: the ladders of every size and context, and the parts of a speedup."""

from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter

from lab.figures import MARKERS, PALETTE, STYLE, Plot, add_legend, literal, plt, save_plot, tick_log_axis
from lab.runs import lookup, to_number
from lab.speedup.decomposition import Decomposition
from lab.speedup.groups import Report
from lab.words import format_context, format_tokens

STYLES = ("-", "--", ":", "-.")
UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def draw_overview(report: Report, out: Path) -> list[Plot]:
    """Draw every section's ladders, one panel per size, context and corpus; vocabularies share a panel.

    In bits/byte against bytes of text, which no vocabulary changes, if all runs recorded them; else in nats against tokens.
    """
    scales = [_bytes_per_token(section.analysis) for section in report.sections]
    in_bytes = all(scales)
    panels: dict = {}
    for section, scale in zip(report.sections, scales, strict=True):
        key = section.size, section.setting.context, section.setting.data
        panels.setdefault(key, []).append((section, scale if in_bytes else 1.0))
    vocabularies = list(dict.fromkeys(section.setting.tokenizer for section in report.sections))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            rows, columns, squeeze=False, layout="constrained", figsize=(4.2 * columns + 0.6, 3.6 * rows + 0.6)
        )
        colours: dict[str, int] = {}
        handles: dict[str, Any] = {}
        for axes, ((size, context, data), members) in zip(grid.flat, panels.items(), strict=False):
            for section, scale in members:
                style = STYLES[vocabularies.index(section.setting.tokenizer) % len(STYLES)]
                for arm, ladder in section.analysis.ladders.items():
                    index = colours.setdefault(arm, len(colours))
                    vocabulary = f", {section.setting.tokenizer}" if len(vocabularies) > 1 else ""
                    line = axes.plot(
                        [point.tokens * scale for point in ladder.points],
                        [point.best.bits_per_byte if in_bytes else point.best.loss for point in ladder.points],
                        color=PALETTE[index % len(PALETTE)],
                        marker=MARKERS[index % len(MARKERS)],
                        linestyle=style,
                        linewidth=2,
                        label=literal(arm) + literal(vocabulary),
                    )
                    handles.setdefault(line[0].get_label(), line[0])
            axes.set_xscale("log")
            tick_log_axis(axes.xaxis, _format_bytes if in_bytes else format_tokens)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.set_title(f"{size}, context {format_context(context)}, {data}".replace("$", r"\$")[:48], fontsize=12)
            axes.set_xlabel("text trained on (bytes)" if in_bytes else "training tokens")
            axes.set_ylabel("bits/byte of validation text" if in_bytes else "validation loss (nats/token)")
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        add_legend(figure, grid[0][0], list(handles.values()))
        caption = "Each arm's ladder (fully annealed runs, best learning rate, mean over seeds) in every setting. " + (
            "Bits/byte against bytes of text, which do not depend on the vocabulary."
            if in_bytes
            else "Losses in nats/token compare only where the vocabulary is the same."
        )
        return [save_plot(figure, out / "overview.png", "All settings", caption)]


def _format_bytes(value: float) -> str:
    size, unit = next(((size, unit) for size, unit in UNITS if value >= 0.9995 * size), (1, "B"))
    return f"{value / size:.3g} {unit}"


def _bytes_per_token(analysis) -> float | None:
    """Return the validation text's bytes per token, None unless every point of the ladders has bits/byte too."""
    environment = analysis.runs[0].environment
    counts = [to_number(lookup(environment, f"evaluation.{key}")) for key in ("bytes", "tokens")]
    complete = all(point.best.bits_per_byte is not None for ladder in analysis.ladders.values() for point in ladder.points)
    return counts[0] / counts[1] if complete and all(count and count > 0 for count in counts) else None


def draw_parts(parts: Decomposition | None, out: Path) -> list[Plot]:
    """Draw nGPT's speedup over each baseline of the decomposition, with its interval; bounds as arrows."""
    rows = [row for row in parts.rows if row.speedup and row.speedup.value] if parts else []
    if not rows:
        return []
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(layout="constrained", figsize=(8.0, 1.2 + 0.75 * len(rows)))
        for height, row in enumerate(reversed(rows)):
            ratio = row.speedup
            if ratio.interval:
                axes.plot([ratio.interval.low, ratio.interval.high], [height] * 2, color=PALETTE[1], linewidth=2)
            marker = {"=": "o", ">": ">", "<": "<"}[ratio.relation]
            axes.plot([ratio.value], [height], color=PALETTE[1], marker=marker, markersize=9)
            axes.annotate(
                f"{'' if ratio.relation == '=' else ratio.relation}{ratio.value:.2f}x",
                (ratio.value, height),
                xytext=(0, 8),
                textcoords="offset points",
                ha="center",
            )
        axes.axvline(1, color="black", linewidth=1)
        axes.set_xscale("log")
        tick_log_axis(axes.xaxis, lambda value: f"{value:g}x")
        axes.set_yticks(range(len(rows)), [row.words.replace(", ", "\n", 1) for row in reversed(rows)])
        axes.set_ylim(-0.5, len(rows) - 0.3)
        axes.set_xlabel("token speedup of nGPT at equal loss")
        caption = (
            f"At {parts.loss:.4g} nats/token, the lowest loss that all these arms reach. From top to bottom one "
            "handicap of the baseline is taken away at a time; the step between two rows is that handicap's part. "
            "Bars: 95% intervals over seeds."
        )
        return [save_plot(figure, out / "decomposition.png", "What the speedup is made of", caption)]
