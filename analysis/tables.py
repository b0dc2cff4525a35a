"""The tables of the report, and the whole of it as plain text for the terminal."""

import textwrap

from analysis.ladder import Ladder
from analysis.speedup import Comparison
from analysis.text import describe_bound, display_arm, format_rate, format_ratio, format_seconds, format_tokens

WIDTH = 100


def align(header: list[str], rows: list[list[str]]) -> str:
    """Return a table whose first column is left-aligned and whose others are right-aligned."""
    widths = [max(len(row[index]) for row in [header, *rows]) for index in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def list_budgets(ladders: dict[str, Ladder]) -> tuple[list[str], list[list[str]]]:
    """Return the ladder table: one row per arm and budget."""
    header = ["arm", "tokens", "steps", "lr", "lrs tried", "seeds", "val loss", "+/- se", "bits/byte", "train time"]
    rows = []
    for ladder in ladders.values():
        for point in ladder.points:
            best = point.best
            tried = (
                ",".join(map(format_rate, point.tried))
                if len(point.tried) <= 3
                else (f"{len(point.tried)}: {format_rate(point.tried[0])}..{format_rate(point.tried[-1])}")
            )
            mark = {"lowest": "*", "highest": "*"}.get(point.edge, "")
            rows.append(
                [
                    display_arm(ladder.arm),
                    format_tokens(point.tokens),
                    str(point.steps),
                    format_rate(best.learning_rate) + mark,
                    tried,
                    str(len(best.endpoints)),
                    f"{best.loss:.4f}",
                    _optional(best.standard_error),
                    _optional(best.bits_per_byte),
                    format_seconds(best.seconds),
                ]
            )
    return header, rows


def list_speedups(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the table of speedups at equal loss: one row per budget of either arm."""
    header = [
        "at the final loss of",
        "nats/token",
        f"{display_arm(comparison.baseline)} tokens",
        f"{display_arm(comparison.challenger)} tokens",
        "token speedup",
        "time speedup",
    ]
    times = {(row.at_arm, row.at_tokens): row for row in comparison.time_rows}
    rows = []
    for row in comparison.token_rows:
        costs = ["-" if cost is None else format_tokens(cost) for cost in (row.baseline_cost, row.challenger_cost)]
        rows.append(
            [
                f"{display_arm(row.at_arm)} at {format_tokens(row.at_tokens)}",
                f"{row.loss:.4f}",
                *costs,
                format_ratio(row),
                format_ratio(times.get((row.at_arm, row.at_tokens))),
            ]
        )
    return header, rows


def list_gaps(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the table of gaps at equal tokens, challenger minus baseline."""
    header = ["at equal tokens", "nats/token", "+/- se", "bits/byte", "+/- se", "seeds"]
    rows = [
        [
            format_tokens(gap.tokens),
            f"{gap.nats_per_token:+.4f}",
            _optional(gap.standard_error),
            _optional(gap.bits_per_byte, "+.4f"),
            _optional(gap.standard_error_bits_per_byte),
            f"{gap.baseline_seeds}/{gap.challenger_seeds}" + (" paired" if gap.paired else ""),
        ]
        for gap in comparison.gaps
    ]
    return header, rows


def _optional(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else format(value, form)


def list_bounds(comparison: Comparison) -> list[str]:
    """Return one line per speedup that is only a bound, with the reason."""
    return [
        f"{format_ratio(row)} at {row.loss:.4f}: {describe_bound(row.note, comparison)}"
        for row in comparison.token_rows
        if row.note
    ]


def render_text(analysis) -> str:
    """Return the whole analysis as plain text of at most 100 columns."""
    parts = [_wrap(line) for line in analysis.headlines]
    parts.append(
        "Best fully annealed run per budget (* best learning rate at the edge of those tried):\n"
        + align(*list_budgets(analysis.ladders))
    )
    for comparison in analysis.comparisons:
        base, other = display_arm(comparison.baseline), display_arm(comparison.challenger)
        bounds = [f"  {line}" for line in list_bounds(comparison)]
        parts.append(
            f"Speedup of {other} over {base} at equal loss:\n" + "\n".join([align(*list_speedups(comparison)), *bounds])
        )
        if comparison.gaps:
            parts.append(
                f"{other} minus {base} at equal tokens (negative: {other} is better):\n" + align(*list_gaps(comparison))
            )
        if comparison.interval_note:
            parts.append(_wrap(comparison.interval_note))
    left_out = [
        _wrap(f"left out: {run.name} ({display_arm(analysis.arms[run.name])}) {reason}")
        for run, reason in analysis.left_out
    ]
    notes = left_out + [_wrap(f"warning: {warning}") for warning in analysis.warnings]
    return "\n\n".join(parts + (["\n".join(notes)] if notes else []))


def _wrap(line: str) -> str:
    return textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
