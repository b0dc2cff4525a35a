"""Write the ablation tables: aligned text for the terminal, Markdown, JSON."""

from dataclasses import asdict
from pathlib import Path

from lab.ablations.table import Ablations, Row, Table
from lab.words import align, format_optional, format_rate, format_tokens, markdown_table, printable
from runfolder.files import write_atomically, write_json_atomically

# In the paper's order; other names that a run logged follow.
SCALES = {"sqk": "s_qk", "su": "s_u", "sv": "s_v", "sz": "s_z", "attn_alpha": "alpha_A", "mlp_alpha": "alpha_M"}


def render_text(ablations: Ablations) -> str:
    """Return the tables as aligned text; T4 is table 4 of the paper."""
    return "\n\n".join([*(_text_table(table) for table in ablations.tables), *_footer(ablations)])


def render_markdown(ablations: Ablations) -> str:
    """Return the tables as Markdown."""
    parts = []
    for table in ablations.tables:
        header, *rows = _cells(table)
        parts += [f"## {_title(table)}", markdown_table(header, rows)]
        parts += ["\n".join(f"- {note}" for note in table.notes)] if table.notes else []
    return "\n\n".join([*parts, *_footer(ablations)]) + "\n"


def write_ablations(ablations: Ablations, folder: Path) -> list[Path]:
    """Write ablations.json and ablations.md, each replaced as a whole, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data, page = folder / "ablations.json", folder / "ablations.md"
    write_json_atomically(data, {"format": 1, **asdict(ablations)})
    write_atomically(page, render_markdown(ablations))
    return [data, page]


def _title(table: Table) -> str:
    return f"{table.max_steps:,} steps, {format_tokens(table.tokens)} tokens"


def _footer(ablations: Ablations) -> list[str]:
    lines = [f"paper: {ablations.source}"]
    lines += [f"left out: {name}: {reason}" for name, reason in ablations.left_out.items()]
    return ["\n".join(printable(line) for line in lines)]


def _text_table(table: Table) -> str:
    header, *rows = _cells(table)
    return "\n".join([_title(table), align(header, rows), *(f"  {printable(note)}" for note in table.notes)])


def _cells(table: Table) -> list[list[str]]:
    """Return the header and the rows."""
    logged = {name for row in table.rows for name in row.scales}
    scales = [name for name in SCALES if name in logged] + sorted(logged - SCALES.keys())
    header = [
        "change",
        "loss",
        "change in %",
        "seeds",
        "paper's %",
        "rate",
        *(printable(SCALES.get(name, name)) for name in scales),
        "paper's means",
    ]
    return [header, *(_row_cells(row, scales) for row in table.rows)]


def _row_cells(row: Row, scales: list[str]) -> list[str]:
    paper = row.paper
    seeds = str(len(row.paired_seeds) if row.changes else len(row.losses))
    error = "" if row.standard_error is None else f" +/- {row.standard_error:.2f}"
    return [
        (f"T{paper.table} " if paper else "") + describe_change(row),
        "diverged" if row.loss is None else f"{row.loss:.4f}",
        format_optional(row.delta_percent, "+.2f") + error,
        seeds + (f", {row.diverged} diverged" if row.diverged else ""),
        format_optional(paper.delta_percent if paper else None, "+.2f"),
        "-" if row.learning_rate is None else format_rate(row.learning_rate),
        *(format_optional(row.scales.get(name), ".3g") for name in scales),
        (paper and paper.learned) or "-",
    ]


def describe_change(row: Row) -> str:
    """Return what a row changes: the paper's words where it has the row, else the keys with their new values."""
    if not row.changes:
        return "base"
    if row.paper:
        return row.paper.row
    return printable(", ".join(f"{key}={values.split(' -> ')[-1]}" for key, values in row.changes.items()))
