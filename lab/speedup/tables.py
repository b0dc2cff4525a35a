"""Every table of the report, once: a header and rows of text, for the page and for the terminal."""

from collections.abc import Sequence

from lab.runs import Run, lookup
from lab.speedup.decomposition import Decomposition
from lab.speedup.equal_loss import EqualLoss
from lab.speedup.ladder import Ladder
from lab.speedup.report import Section
from lab.speedup.sentences import format_interval, format_ratio
from lab.speedup.speedup import Comparison
from lab.words import display_arm, format_context, format_optional, format_rate, format_seconds, format_tokens, shorten

Table = tuple[list[str], list[list[str]]]
EDGES = {"lowest": "lowest tried", "highest": "highest tried", "only": "one rate only", None: "inside"}
UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "k"))


def list_summary(sections: Sequence[Section]) -> Table:
    """Return one row per section, with the paper's claim for its size and context."""
    header = ["size", "context", "data", "paper", "this run", "95% interval", "time", "bits/byte", "nats/token"]
    rows = []
    for section in sections:
        item = section.comparison
        speedup = item.token_headline if item else None
        rows.append(
            [
                section.size,
                format_context(section.context),
                section.data + (f" ({section.tokenizer})" if section.tokenizer else ""),
                section.paper or "-",
                format_ratio(speedup),
                format_interval(speedup.interval if speedup else None),
                format_ratio(item.time_headline if item else None),
                format_optional(speedup.bits_per_byte if speedup else None),
                format_optional(speedup.loss if speedup else None),
            ]
        )
    return header, rows


def list_facts(section: Section) -> list[tuple[str, str]]:
    """Return what was trained, on what, where and with what: the head of the page."""
    runs = section.runs
    layers, width, heads = section.shape
    parameters = {count for run in runs if isinstance(count := lookup(run.environment, "parameters.total"), int)}
    counted = " to ".join(dict.fromkeys(map(_short, (min(parameters), max(parameters))))) if parameters else "?"
    facts = [
        ("models", f"{section.size}, {counted} parameters: {layers} layers, width {width}, {heads} heads"),
        ("context", f"{section.context} tokens"),
        ("data", _list_data(section)),
        ("hardware", "; ".join(dict.fromkeys(map(_name_device, runs)))),
        ("versions", "; ".join(dict.fromkeys(map(_list_versions, runs)))),
        ("commit of the runs", ", ".join(dict.fromkeys(str(run.environment.get("commit") or "unknown")[:10] for run in runs))),
    ]
    return [(name, shorten(words, 300)) for name, words in facts]


def _list_data(section: Section) -> str:
    tokenizer = f", {section.tokenizer} tokens" if section.tokenizer else ""
    digest = lookup(section.runs[0].environment, "data.digest")
    return f"{section.data}{tokenizer}" + (f" (digest {digest[:10]})" if isinstance(digest, str) else "")


def _name_device(run: Run) -> str:
    device, count = lookup(run.environment, "device"), run.environment.get("world_size") or 1
    if not isinstance(device, dict):
        return "unknown"
    threads = f", {device['threads']} thread(s)" if device.get("threads") else ""
    return f"{count} x {device.get('name') or device.get('type')} ({device.get('type')}{threads})"


def _list_versions(run: Run) -> str:
    versions = lookup(run.environment, "versions")
    named = [f"{name} {versions[name]}" for name in ("torch", "python") if name in versions] if isinstance(versions, dict) else []
    return ", ".join(named) or "unknown"


def _short(count: int) -> str:
    return next((f"{count / size:.3g}{unit}" for size, unit in UNITS if count >= size), str(count))


def list_budgets(ladders: dict[str, Ladder]) -> Table:
    """Return the ladder table: one row per arm and budget."""
    header = ["arm", "tokens", "steps", "lr", "seeds", "val loss", "+/- se", "bits/byte", "train time"]
    rows = [
        [
            display_arm(ladder.arm),
            format_tokens(point.tokens),
            str(point.steps),
            format_rate(point.best.learning_rate) + ("*" if point.edge in ("lowest", "highest") else ""),
            str(len(point.best.endpoints)),
            f"{point.best.loss:.4f}",
            format_optional(point.best.standard_error),
            format_optional(point.best.bits_per_byte),
            format_seconds(point.best.seconds),
        ]
        for ladder in ladders.values()
        for point in ladder.points
    ]
    return header, rows


def list_ladder_values(section: Section) -> Table:
    """Return the ladders at full precision, for ladder.csv; losses in nats/token, seconds of training."""
    header = ["arm", "model", "tokens", "steps", "learning_rate", "seeds", "loss", "standard_error", "bits_per_byte", "seconds"]
    rows = []
    for arm, ladder in section.ladders.items():
        for point in ladder.points:
            best = point.best
            rows.append([arm, section.models[arm], str(point.tokens), str(point.steps), repr(best.learning_rate)])
            numbers = [len(best.endpoints), best.loss, best.standard_error, best.bits_per_byte, best.seconds]
            rows[-1] += ["" if number is None else repr(number) for number in numbers]
    return header, rows


def list_rates(ladders: dict[str, Ladder]) -> Table:
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
            rows.append([display_arm(ladder.arm), format_tokens(point.tokens), EDGES[point.edge], ", ".join(cells)])
    return header, rows


def list_speedups(comparison: Comparison) -> Table:
    """Return the table of speedups at equal loss: one row per budget of either arm."""
    # Long names would make the columns wider than a terminal.
    roles = ((comparison.baseline, "baseline"), (comparison.challenger, "challenger"))
    names = {arm: display_arm(arm) if len(display_arm(arm)) <= 12 else role for arm, role in roles}
    header = ["at the loss of", "nats/token", "bits/byte", *names.values(), "tokens", "95% interval", "time"]
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


def list_gaps(comparison: Comparison) -> Table:
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


def list_needs(found: EqualLoss) -> Table:
    """Return the tokens that every arm needs for one loss, and how many times fewer that is than the baseline's."""
    header = ["arm", "tokens", f"times fewer than {display_arm(found.baseline)}", "95% interval"]
    rows = [
        [
            display_arm(need.arm),
            ("<" if need.at_most else "") + format_tokens(need.tokens),
            "-" if need.arm == found.baseline else format_ratio(need.speedup),
            format_interval(need.speedup.interval),
        ]
        for need in found.needs
    ]
    return header, rows


def list_parts(parts: Decomposition) -> Table:
    """Return the decomposition as a table: nGPT against each baseline, and the part that the next row takes away."""
    header = ["baseline", "tokens", "nGPT's speedup", "95% interval", "part", "95% interval", "of it due to"]
    rows = [
        [
            row.words,
            ("<" if row.at_most else "") + format_tokens(row.tokens),
            format_ratio(row.speedup),
            format_interval(row.speedup.interval if row.speedup else None),
            format_ratio(row.part),
            format_interval(row.part.interval if row.part else None),
            row.part_words,
        ]
        for row in parts.rows
    ]
    return header, rows


def list_settings(section: Section) -> list[tuple[str, Table]]:
    """Return the tables of settings: set per arm, varied within an arm, the same in every run."""
    settings, arms = section.settings, list(section.ladders)
    per_arm = [[key, *(shorten(values.get(arm)) for arm in arms)] for key, values in settings.per_arm.items()]
    varied = [
        [key, *(shorten(", ".join(map(str, values.get(arm, [])))) for arm in arms)] for key, values in settings.varied.items()
    ]
    same = [[key, shorten(value)] for key, value in settings.same.items() if value is not None]
    header = ["setting", *map(display_arm, arms)]
    tables = [
        ("Set differently for each arm", (header, per_arm)),
        ("Varied within an arm (budgets, candidates, seeds)", (header, varied)),
        ("The same in every run", (["setting", "value"], same)),
    ]
    return [(title, table) for title, table in tables if table[1]]


def list_left_out(section: Section) -> list[str]:
    """Return one line per run left out, with the reason."""
    return [f"{run.name} ({display_arm(section.arms[run.name])}): {reason}" for run, reason in section.left_out]
