"""The report as plain text of at most 100 columns, for the terminal."""

from lab.speedup.report import Report, Section
from lab.speedup.sentences import NEEDS_NOTE, PARTS_NOTE, SUMMARY_NOTE, describe_parts, describe_test, list_bounds, list_checks
from lab.speedup.speedup import Comparison
from lab.speedup.tables import (
    list_budgets,
    list_gaps,
    list_left_out,
    list_needs,
    list_parts,
    list_rates,
    list_speedups,
    list_summary,
)
from lab.words import WIDTH, align, display_arm, wrap


def render_text(report: Report) -> str:
    """Return the whole report as plain text of at most 100 columns."""
    blocks = []
    several = len(report.sections) > 1 or bool(report.notes)
    if several:
        blocks.append(align(*list_summary(report.sections), left=(0, 1, 2)) + "\n" + wrap(SUMMARY_NOTE))
        blocks += [wrap(f"left out: {note}") for note in report.notes]
    for section in report.sections:
        blocks += [f"== {section.label} =="] if several else []
        blocks += render_section(section)
    return "\n\n".join(block for block in blocks if block)


def render_section(section: Section) -> list[str]:
    """Return one section as blocks of text: the answer, what to know of it, the numbers, what was left out."""
    blocks = []
    if section.paper:
        blocks.append(f"The paper's claim for this size and context: {section.paper}")
    if found := section.equal_loss:
        lines = [wrap(NEEDS_NOTE.format(loss=found.loss)), align(*list_needs(found)), wrap(found.note)]
        blocks.append("\n".join(filter(None, lines)))
    if section.decomposition:
        blocks += render_parts(section)
    else:
        for line in section.headlines:
            blocks += [wrap(" ".join(filter(None, (line.claim, line.basis)))), wrap(line.time)]
    blocks.append("\n".join(wrap(f"CAUTION: {line}") for line in section.caveats.cautions))
    blocks.append("\n".join(map(wrap, section.caveats.conditions)))
    blocks.append(
        "Best fully annealed run per budget (* best learning rate at the edge of those tried):\n"
        + align(*list_budgets(section.ladders))
    )
    blocks.append("Learning rates tried:\n" + align(*list_rates(section.ladders), left=(0, 2, 3), width=WIDTH))
    for comparison in section.comparisons if section.decomposition is None else ():
        blocks += render_comparison(comparison)
    notes = [f"left out: {line}" for line in list_left_out(section)] + [f"warning: {line}" for line in section.caveats.warnings]
    return [*blocks, "\n".join(map(wrap, notes))]


def render_parts(section: Section) -> list[str]:
    """Return the decomposition as blocks of text; the parts lie between the rows they connect, as a wider table would not fit."""
    parts = section.decomposition
    if parts is None:
        return []
    header, rows = list_parts(parts)
    lines = []
    for row in rows:
        lines.append([row[0], *row[1:4]])
        lines += [[f"    {row[6]}", "", f"part {row[4]}", row[5]]] if row[6] else []
    checks = [f"  {wrap(line)}" for line in list_checks(parts)]
    return [
        wrap(describe_parts(parts)),
        align([header[0], *header[1:4]], lines) + "\n" + wrap(PARTS_NOTE.format(loss=parts.loss)),
        "\n".join(["Beside the chain:", *checks]) if checks else "",
        "\n".join(wrap(f"note: {note}") for note in parts.notes),
    ]


def render_comparison(comparison: Comparison) -> list[str]:
    """Return the speedups and gaps of two arms as blocks of text."""
    base, other = display_arm(comparison.baseline), display_arm(comparison.challenger)
    bounds = [f"  {line}" for line in list_bounds(comparison)]
    blocks = [
        f"Speedup of {other} over {base} at equal loss (tokens needed, and how many times fewer):\n"
        + "\n".join([align(*list_speedups(comparison)), *bounds])
    ]
    if comparison.gaps:
        title = f"{other} minus {base} at equal tokens (negative: {other} is better):"
        blocks.append("\n".join(filter(None, [title, align(*list_gaps(comparison)), wrap(describe_test(comparison))])))
    return [*blocks, wrap(comparison.interval_note)]
