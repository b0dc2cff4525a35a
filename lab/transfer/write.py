"""Write the optima, their drift and the large runs' commands: text for the terminal, Markdown, JSON."""

from dataclasses import asdict
from pathlib import Path

from lab.transfer.large import Large
from lab.transfer.series import Series, measure_drifts
from lab.words import align, display_arm, format_rate, markdown_table, printable, wrap
from runfolder.files import write_atomically, write_json_atomically


def list_optima(series: list[Series]) -> tuple[list[str], list[list[str]]]:
    """Return one row per arm, parametrization and size."""
    header = ["arm", "parametrization", "width", "layers", "steps", "best rate", "octaves +/-", "where", "loss", "seeds"]
    rows = [
        [
            display_arm(item.arm),
            item.parametrization,
            *map(str, (size.width, size.depth, size.steps)),
            format_rate(float(f"{optimum.rate:.3g}")),
            "-" if optimum.error is None else f"{optimum.error:.2f}",
            "inside" if optimum.is_inside else "grid's end",
            f"{optimum.loss:.4f}",
            str(optimum.seeds),
        ]
        for item in series
        for size, optimum in item.optima.items()
    ]
    return header, rows


def list_drifts(series: list[Series]) -> tuple[list[str], list[list[str]]]:
    """Return one row per arm, parametrization and axis."""
    header = ["arm", "parametrization", "along", "from", "to", "octaves per doubling", "+/-", "every optimum"]
    rows = [
        [
            display_arm(item.arm),
            item.parametrization,
            drift.axis,
            str(drift.values[0]),
            str(drift.values[-1]),
            f"{drift.octaves:+.2f}",
            "-" if drift.error is None else f"{drift.error:.2f}",
            "inside" if drift.is_inside else "not inside",
        ]
        for item in series
        for drift in measure_drifts(item)
    ]
    return header, rows


def render_text(series: list[Series], large: list[Large], notes: list[str]) -> str:
    """Return everything as text for the terminal; commands are not folded, so that they can be copied."""
    blocks = ["Best rates (a parabola in log2 of the rate):\n" + align(*list_optima(series), left=(0, 1, 7))]
    header, rows = list_drifts(series)
    if rows:
        blocks.append("How far the best rate moves:\n" + align(header, rows, left=(0, 1, 2, 7)))
    for item in large:
        blocks.append("\n".join([f"{display_arm(item.arm)}, large:", item.command, *(wrap(f"  {note}") for note in item.notes)]))
    if not large:
        blocks.append("no command: there are no rules of transfer for these arms")
    return "\n\n".join(blocks + (["\n".join(wrap(printable(note)) for note in notes)] if notes else []))


def write_transfer(series: list[Series], large: list[Large], folder: Path) -> list[Path]:
    """Write transfer.json and transfer.md, each replaced as a whole, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data, page = folder / "transfer.json", folder / "transfer.md"
    optima = [
        {"arm": item.arm, "parametrization": item.parametrization, **asdict(size), "rate": optimum.rate, **asdict(optimum)}
        for item in series
        for size, optimum in item.optima.items()
    ]
    drifts = [
        {"arm": item.arm, "parametrization": item.parametrization, **asdict(drift)}
        for item in series
        for drift in measure_drifts(item)
    ]
    write_json_atomically(data, {"format": 1, "optima": optima, "drifts": drifts, "large": [asdict(item) for item in large]})
    tables = [markdown_table(*list_optima(series))]
    tables += [markdown_table(*list_drifts(series))] if drifts else []
    commands = ["\n".join([f"{display_arm(item.arm)}:", "", "```sh", item.command, "```"]) for item in large]
    write_atomically(page, "\n\n".join([*tables, *commands]) + "\n")
    return [data, page]
