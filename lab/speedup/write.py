"""Write a report under a folder: report.html, speedup.json, ladder.csv and the pictures."""

import csv
import io
import json
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from lab.figures import Plot, read_plots
from lab.page import Link, render_page
from lab.speedup.comparable import end_of
from lab.speedup.loss_plots import draw_overview
from lab.speedup.plots import draw_section
from lab.speedup.record import Made, to_mapping
from lab.speedup.report import Report, Section
from lab.speedup.sentences import NEEDS_NOTE, PARTS_NOTE, SUMMARY_NOTE, describe_parts, describe_test, list_bounds, list_checks
from lab.speedup.speedup import Comparison
from lab.speedup.tables import (
    list_budgets,
    list_facts,
    list_gaps,
    list_ladder_values,
    list_left_out,
    list_needs,
    list_parts,
    list_rates,
    list_settings,
    list_speedups,
    list_summary,
)
from lab.words import display_arm, format_optional, format_rate, format_seconds, format_tokens, printable
from runfolder.files import write_atomically


def write_report(report: Report, out: str | Path, made: Made | None = None) -> list[Path]:
    """Write the report under a folder and return the paths: report.html, speedup.json, ladder.csv, then the pictures."""
    out, made = Path(out), made or Made()
    out.mkdir(parents=True, exist_ok=True)
    several = len(report.sections) > 1
    with tempfile.TemporaryDirectory(dir=out, prefix=".writing-") as folder:
        scratch = Path(folder)
        overview = draw_overview(report.sections, scratch) if several else []
        plots = []
        for number, section in enumerate(report.sections, start=1):
            place = scratch / f"section-{number}" if several else scratch
            place.mkdir(exist_ok=True)
            plots.append(draw_section(section, place))
        names = [[plot.path.relative_to(scratch) for plot in part] for part in plots]
        mapping = _make_strict(to_mapping(report, made, [[name.as_posix() for name in part] for part in names]))
        # First, so that what follows is known to be ours (lab/ownership.py), however soon it is cut off.
        write_atomically(out / "speedup.json", json.dumps(mapping, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
        write_atomically(out / "ladder.csv", render_ladders(report))
        write_atomically(out / "report.html", render_report(report, plots, overview, out, made))
        pictures = [plot.path.relative_to(scratch) for plot in overview] + [name for part in names for name in part]
        for name in pictures:
            (out / name).parent.mkdir(exist_ok=True)
            for suffix in (".png", ".svg"):
                os.replace((scratch / name).with_suffix(suffix), (out / name).with_suffix(suffix))
    return [out / "report.html", out / "speedup.json", out / "ladder.csv", *(out / name for name in pictures)]


def render_report(
    report: Report,
    plots: Sequence[Sequence[Plot]] = (),
    overview: Sequence[Plot] = (),
    folder: Path | None = None,
    made: Made | None = None,
) -> str:
    """Return the page as one string that needs nothing outside itself; all text from run folders is escaped.

    Args:
        folder: where the page will lie, for its links to the configurations of the runs; None makes no links.
    """
    made = made or Made()
    return render_page(
        "speedup/report.html",
        title="Speedup report",
        report=report,
        summary=list_summary(report.sections),
        summary_note=SUMMARY_NOTE,
        overview=overview,
        sections=[
            {
                "section": section,
                "plots": part,
                "facts": [
                    *list_facts(section),
                    *((name, words) for name, words in vars(made).items() if words and name != "beside"),
                ],
                "budgets": list_budgets(section.ladders),
                "rates": list_rates(section.ladders),
                "comparisons": list(map(_lay_out_comparison, section.comparisons)),
                "settings": list_settings(section),
                "runs": _list_runs(section, folder),
                "left_out": list_left_out(section),
                "parts": _lay_out_parts(section),
                "needs": list_needs(section.equal_loss) if section.equal_loss else None,
                "needs_note": _describe_needs(section),
            }
            for section, part in zip(report.sections, plots or [[] for _ in report.sections], strict=True)
        ],
        beside=_lay_out_beside(made.beside, folder),
    )


def _lay_out_comparison(comparison: Comparison) -> dict:
    return {
        "base": display_arm(comparison.baseline),
        "other": display_arm(comparison.challenger),
        "speedups": list_speedups(comparison),
        "bounds": list_bounds(comparison),
        "gaps": list_gaps(comparison) if comparison.gaps else None,
        "test": describe_test(comparison),
        "note": comparison.interval_note,
    }


def _describe_needs(section: Section) -> str:
    found = section.equal_loss
    return " ".join(filter(None, [NEEDS_NOTE.format(loss=found.loss), found.note])) if found else ""


def _lay_out_parts(section: Section) -> dict | None:
    parts = section.decomposition
    if parts is None:
        return None
    return {
        "claim": describe_parts(parts),
        "table": list_parts(parts),
        "note": PARTS_NOTE.format(loss=parts.loss),
        "checks": list_checks(parts),
        "notes": parts.notes,
    }


def _list_runs(section: Section, folder: Path | None) -> tuple[list[str], list[list[str | Link]]]:
    """Return the table of the runs compared, each name leading to its config.yaml where there is a way to it."""
    header = ["run", "arm", "tokens", "lr", "seed", "val loss", "bits/byte", "train time", "commit"]
    rows = [
        [
            _link(Path(run.path) / "config.yaml", run.name, folder),
            display_arm(section.arms[run.name]),
            format_tokens(end_of(run).tokens),
            format_rate(run.learning_rate),
            str(run.seed),
            f"{end_of(run).loss:.4f}",
            format_optional(end_of(run).bits_per_byte),
            format_seconds(end_of(run).train_seconds),
            str(run.environment.get("commit") or "-")[:10],
        ]
        for run in section.runs
    ]
    return header, rows


def _link(file: Path, text: str, folder: Path | None) -> str | Link:
    """Return text leading to a file, by its way from the page's folder; the text alone where there is none."""
    if folder is None or not file.is_file():
        return text
    try:
        return Link(text, quote(Path(os.path.relpath(file.resolve(), Path(folder).resolve())).as_posix()))
    except (ValueError, UnicodeError):  # another drive, or a name that is no text
        return text


def _lay_out_beside(places: Sequence[Path], folder: Path | None) -> list[dict]:
    """Return what the page shows of other results: a folder's pictures and documents, a file's text; one part per name."""
    parts: dict[str, dict] = {}
    for place in places:
        name = place.stem if place.is_file() else place.name
        part = parts.setdefault(name, {"name": name, "plots": [], "links": [], "texts": []})
        if place.is_file():
            lines = place.read_text(encoding="utf-8", errors="replace").splitlines()
            part["texts"].append("\n".join(map(printable, lines)))
        else:
            files = sorted(file for file in place.iterdir() if file.suffix in (".html", ".md", ".json", ".csv"))
            part["links"] += [_link(file, file.name, folder) for file in files]
            part["plots"] += read_plots(place)
    return list(parts.values())


def render_ladders(report: Report) -> str:
    """Return every section's ladders as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for number, section in enumerate(report.sections):
        header, rows = list_ladder_values(section)
        writer.writerows([["section", *header]] if number == 0 else [])
        writer.writerows([section.label, *row] for row in rows)
    return text.getvalue()


def _make_strict(value):
    """Return a value that strict JSON can hold: no NaN or infinity, only string keys and plain types."""
    if isinstance(value, dict):
        return {str(key): _make_strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_make_strict(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
