"""Word the whole report: the table over all sections, the parts of a speedup, and everything as plain text."""

from lab.speedup.decomposition import Decomposition, Ratio
from lab.speedup.groups import Report, Section, summarize
from lab.speedup.sentences import format_interval, format_ratio
from lab.speedup.tables import render_text
from lab.words import align, format_context, format_tokens, wrap

SUMMARY_NOTE = (
    "paper: its claim for this size and context; this run: how many times fewer tokens (time: less training time) nGPT "
    "needs for the lowest loss that both arms reach."
)
PARTS_NOTE = (
    "Tokens each baseline needs for {loss:.4f} nats/token, the lowest loss that all these arms reach; a part is the "
    "ratio of two successive rows, and the parts multiply to the whole. The order is a choice: in another order the "
    "parts may differ."
)


def list_summary(report: Report) -> tuple[list[str], list[list[str]]]:
    """Return the terminal's table: one row per section, with the paper's claim for its size and context."""
    header = ["size", "context", "data", "paper", "this run", "95% interval", "time", "bits/byte", "nats/token"]
    rows = []
    for row in summarize(report)[: len(report.sections)]:
        speedup = row["speedup"]
        rows.append(
            [
                row["size"],
                format_context(row["context"]),
                _word_data(row),
                row["paper"] or "-",
                format_ratio(speedup),
                format_interval(speedup.interval if speedup else None),
                format_ratio(row["time_speedup"]),
                _word_bits(speedup),
                f"{speedup.loss:.4f}" if speedup else "-",
            ]
        )
    return header, rows


def list_published(report: Report) -> tuple[list[str], list[list[str]]]:
    """Return the page's table: the paper's claim, this run, published points and reports by others, side by side."""
    header = ["size, context, data", "paper", "this run", "time", "bits/byte"]
    header += ["this method on published points", "reported by others"]
    rows = []
    for row in summarize(report):
        speedup = row["speedup"]
        interval = f" ({format_interval(speedup.interval)})" if speedup and speedup.interval else ""
        rows.append(
            [
                f"{row['size']}, {format_context(row['context'])}, {_word_data(row)}",
                row["paper"] or "-",
                format_ratio(speedup) + interval,
                format_ratio(row["time_speedup"]),
                _word_bits(speedup),
                "; ".join(map(_word_published, row["from_published_points"])) or "-",
                row["reported"] or "-",
            ]
        )
    return header, rows


def _word_bits(speedup) -> str:
    return f"{speedup.bits_per_byte:.4f}" if speedup and speedup.bits_per_byte else "-"


def _word_data(row: dict) -> str:
    return row["data"] + (f" ({row['tokenizer']})" if row["tokenizer"] else "")


def _word_published(item) -> str:
    storage = "fp32" if item.weights == "float32" else "bf16-stored"
    return f"{format_ratio(item.row)} [{item.source}, {storage}, {format_tokens(item.row.at_tokens)}]"


def describe_published(section: Section) -> list[str]:
    """Return what was published for exactly this size, context and corpus, as one line, or nothing."""
    row = summarize(Report((section,)))[0]
    if not row["paper"]:
        return []
    found = "; ".join(map(_word_published, row["from_published_points"])) or "none"
    return [
        f"Published for this size and context: the paper {row['paper']}; reported by others: {row['reported']}; this "
        f"method on published points (storage, tokens of the loss): {found}."
    ]


def _format(ratio: Ratio | None) -> str:
    if ratio is None or ratio.value is None:
        return "-"
    return f"{'' if ratio.relation == '=' else ratio.relation}{ratio.value:.2f}x"


def list_parts(parts: Decomposition) -> tuple[list[str], list[list[str]]]:
    """Return the decomposition as a table: nGPT against each baseline, and the part that the next row takes away."""
    header = ["baseline", "tokens", "nGPT's speedup", "95% interval", "part", "95% interval", "of it due to"]
    rows = [
        [
            row.words,
            ("<" if row.at_most else "") + format_tokens(row.tokens),
            _format(row.speedup),
            format_interval(row.speedup.interval if row.speedup else None),
            _format(row.part),
            format_interval(row.part.interval if row.part else None),
            row.part_words,
        ]
        for row in parts.rows
    ]
    return header, rows


def list_checks(parts: Decomposition) -> list[str]:
    """Return the ratios beside the chain, which show how far the order matters, one line each."""
    return [
        f"{words}: {_format(ratio)}" + (f" ({format_interval(ratio.interval)})" if ratio.interval else "")
        for words, ratio in parts.checks
    ]


def describe_parts(parts: Decomposition) -> str:
    """Return the decomposition as one sentence."""
    first = parts.rows[0]
    named = ", ".join(f"{_format(row.part)} {row.part_words}" for row in parts.rows[:-1])
    return f"nGPT's speedup over {first.words}: {_format(first.speedup)}. Of it: {named}."


def render_parts(parts: Decomposition) -> list[str]:
    """Return the decomposition as blocks of text."""
    header, rows = list_parts(parts)
    # On a terminal the parts stand between the rows they connect: one table of this width would not fit.
    lines = []
    for row in rows:
        lines.append([row[0], *row[1:4]])
        if row[6]:
            lines.append([f"    {row[6]}", "", f"part {row[4]}", row[5]])
    checks = [wrap(line) for line in list_checks(parts)]
    return [
        wrap(describe_parts(parts)),
        align([header[0], *header[1:4]], lines) + "\n" + wrap(PARTS_NOTE.format(loss=parts.loss)),
        *(["Beside the chain:\n" + "\n".join(f"  {line}" for line in checks)] if checks else []),
        "\n".join(wrap(f"note: {note}") for note in parts.notes),
    ]


def render_report_text(report: Report) -> str:
    """Return the whole report as plain text of at most 100 columns."""
    blocks = []
    many = len(report.sections) > 1 or report.notes
    if many:
        header, rows = list_summary(report)
        blocks.append(align(header, rows, left=(0, 1, 2)) + "\n" + wrap(SUMMARY_NOTE))
        blocks += [wrap(f"left out: {note}") for note in report.notes]
    for section in report.sections:
        if many:
            blocks.append(f"== {section.label} ==")
        blocks += [wrap(line) for line in describe_published(section)]
        if section.decomposition:
            blocks += render_parts(section.decomposition)
        blocks.append(render_text(section.analysis, with_pairs=section.decomposition is None))
    return "\n\n".join(block for block in blocks if block)
