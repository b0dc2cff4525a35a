"""The tables of the report, and the whole of it as plain text for the terminal."""

from lab.speedup.ladder import Ladder
from lab.speedup.sentences import describe_bound, format_interval, format_ratio
from lab.speedup.speedup import Comparison
from lab.words import WIDTH, align, display_arm, format_optional, format_rate, format_seconds, format_tokens, wrap


def list_budgets(ladders: dict[str, Ladder]) -> tuple[list[str], list[list[str]]]:
    """Return the ladder table: one row per arm and budget."""
    header = ["arm", "tokens", "steps", "lr", "seeds", "val loss", "+/- se", "bits/byte", "train time"]
    rows = []
    for ladder in ladders.values():
        for point in ladder.points:
            best = point.best
            rows.append(
                [
                    display_arm(ladder.arm),
                    format_tokens(point.tokens),
                    str(point.steps),
                    format_rate(best.learning_rate) + ("*" if point.edge in ("lowest", "highest") else ""),
                    str(len(best.endpoints)),
                    f"{best.loss:.4f}",
                    format_optional(best.standard_error),
                    format_optional(best.bits_per_byte),
                    format_seconds(best.seconds),
                ]
            )
    return header, rows


EDGES = {"lowest": "lowest tried", "highest": "highest tried", "only": "one rate only", None: "inside"}


def list_rates(ladders: dict[str, Ladder]) -> tuple[list[str], list[list[str]]]:
    """Return the learning rates tried at each budget with the loss of each, and where in the grid the best one lies."""
    header = ["arm", "tokens", "optimum", "loss at each learning rate (> kept)"]
    rows = []
    for ladder in ladders.values():
        for point in ladder.points:
            losses = dict.fromkeys(point.diverged, "diverged")
            for item in sorted(point.candidates, key=lambda item: -item.loss):
                losses[item.learning_rate] = f"{item.loss:.4f}"
            cells = [
                f"{'>' if rate == point.best.learning_rate else ''}{format_rate(rate)}: {losses[rate]}" for rate in sorted(losses)
            ]
            edge = EDGES[point.edge]
            rows.append([display_arm(ladder.arm), format_tokens(point.tokens), edge, ", ".join(cells)])
    return header, rows


def list_speedups(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the table of speedups at equal loss: one row per budget of either arm."""
    names = _short_names(comparison)
    header = [
        "at the loss of",
        "nats/token",
        "bits/byte",
        names[comparison.baseline],
        names[comparison.challenger],
        "tokens",
        "95% interval",
        "time",
    ]
    times = {(row.at_arm, row.at_tokens): row for row in comparison.time_rows}
    rows = []
    for row in comparison.token_rows:
        costs = ["-" if cost is None else format_tokens(cost) for cost in (row.baseline_cost, row.challenger_cost)]
        rows.append(
            [
                f"{names[row.at_arm]} at {format_tokens(row.at_tokens)}",
                f"{row.loss:.4f}",
                format_optional(row.bits_per_byte),
                *costs,
                format_ratio(row),
                format_interval(row.interval),
                format_ratio(times.get((row.at_arm, row.at_tokens))),
            ]
        )
    return header, rows


def _short_names(comparison: Comparison) -> dict[str, str]:
    """Return the arms' names for table heads, or their roles where the names are long."""
    roles = ((comparison.baseline, "baseline"), (comparison.challenger, "challenger"))
    return {arm: display_arm(arm) if len(display_arm(arm)) <= 12 else role for arm, role in roles}


def list_gaps(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the table of gaps at equal tokens, challenger minus baseline."""
    header = ["at equal tokens", "nats/token", "+/- se", "bits/byte", "+/- se", "seeds", "better in", "p"]
    rows = [
        [
            format_tokens(gap.tokens),
            f"{gap.nats_per_token:+.4f}",
            format_optional(gap.standard_error),
            format_optional(gap.bits_per_byte, "+.4f"),
            format_optional(gap.standard_error_bits_per_byte),
            f"{gap.baseline_seeds}/{gap.challenger_seeds}" + (" paired" if gap.paired else ""),
            "-" if gap.better_seeds is None else f"{gap.better_seeds} of {gap.baseline_seeds}",
            "-" if gap.p_value is None else f"{gap.p_value:.3f}" if gap.p_value >= 0.001 else "<0.001",
        ]
        for gap in comparison.gaps
    ]
    return header, rows


def list_bounds(comparison: Comparison) -> list[str]:
    """Return one line per speedup that is only a bound, with the reason."""
    return [
        f"{format_ratio(row)} at {row.loss:.4f}: {describe_bound(row.note, comparison)}"
        for row in comparison.token_rows
        if row.note
    ]


GAP_NOTE = (
    "p: one-sided t-test that the challenger is below the baseline at this budget, {test}; with few seeds it leans on "
    "normal noise, and budgets are not corrected for one another."
)


def describe_test(comparison: Comparison) -> str:
    """Return what the p-values of the gap table are, empty without any."""
    tests = sorted({gap.test for gap in comparison.gaps if gap.test})
    words = {"paired t": "on differences seed by seed (paired)", "Welch t": "Welch's where seeds differ"}
    return GAP_NOTE.format(test=" and ".join(words[test] for test in tests)) if tests else ""


def render_text(analysis, with_pairs: bool = True) -> str:
    """Return one analysis as plain text of at most 100 columns, with or without what it says of each pair of arms."""
    parts = [wrap(line) for line in analysis.headlines if with_pairs or not analysis.comparisons]
    parts.append(
        "Best fully annealed run per budget (* best learning rate at the edge of those tried):\n"
        + align(*list_budgets(analysis.ladders))
    )
    parts.append("Learning rates tried:\n" + align(*list_rates(analysis.ladders), left=(0, 2, 3), width=WIDTH))
    for comparison in analysis.comparisons if with_pairs else ():
        parts += render_comparison(comparison)
    left_out = [
        wrap(f"left out: {run.name} ({display_arm(analysis.arms[run.name])}) {reason}") for run, reason in analysis.left_out
    ]
    notes = left_out + [wrap(f"warning: {warning}") for warning in analysis.warnings]
    return "\n\n".join(parts + (["\n".join(notes)] if notes else []))


def render_comparison(comparison: Comparison) -> list[str]:
    """Return the speedups and gaps of two arms as blocks of text."""
    base, other = display_arm(comparison.baseline), display_arm(comparison.challenger)
    bounds = [f"  {line}" for line in list_bounds(comparison)]
    parts = [
        f"Speedup of {other} over {base} at equal loss (tokens needed, and how many times fewer):\n"
        + "\n".join([align(*list_speedups(comparison)), *bounds])
    ]
    if comparison.gaps:
        note = describe_test(comparison)
        parts.append(
            f"{other} minus {base} at equal tokens (negative: {other} is better):\n"
            + "\n".join([align(*list_gaps(comparison)), *([wrap(note)] if note else [])])
        )
    if comparison.interval_note:
        parts.append(wrap(comparison.interval_note))
    return parts
