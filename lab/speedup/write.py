"""Write the report: speedup.json, the pictures, and one self-contained HTML page."""

import json
import math
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from lab.figures import Plot
from lab.page import Link, render_document, render_list, render_plot, render_table
from lab.runs import Run
from lab.speedup.decomposition import Decomposition
from lab.speedup.fairness import describe_fairness
from lab.speedup.groups import Report, Section
from lab.speedup.overview import PARTS_NOTE, SUMMARY_NOTE, describe_parts, list_checks, list_parts, list_published
from lab.speedup.plots import draw_plots
from lab.speedup.published import read_published
from lab.speedup.record import to_record
from lab.speedup.report import Analysis
from lab.speedup.report_plots import draw_overview, draw_parts
from lab.speedup.tables import describe_test, list_bounds, list_budgets, list_gaps, list_rates, list_speedups
from lab.words import display_arm, format_rate, format_seconds, format_tokens, shorten

LIMITS = (
    "These figures hold for the model size, context, data and budgets of these runs and for nothing larger: at small "
    "scale neither arm may be near the regime of the published results, and the speedup is known to change with "
    "budget, context and learning rate. Intervals and p-values speak of seeds (initial weights, data order) and of the "
    "choice among the learning rates that were run; with two or three seeds they are wide and rest on normal noise, with "
    "one there are none, and they say nothing of rates that were not tried. Keeping the best of several learning rates "
    "favours whichever arm tried more of them. Between two budgets the ladder is interpolated (monotone, in the logarithm "
    "of the budget), beyond them it is not continued. Only the ends of fully annealed runs are compared. Training seconds "
    "belong to one machine and one implementation."
)

LINKED = (
    "Each name leads to the run's <code>config.yaml</code>, every setting resolved; <code>environment.json</code> and "
    "<code>metrics.jsonl</code> lie beside it. The links start at the folder that this page was written to."
)
NOT_LINKED = "Every setting of a run is in <code>config.yaml</code> in the run's folder."


def write_report(report: Report, out) -> list[Path]:
    """Write speedup.json, the PNG files and report.html under a folder, and return their paths."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    several = len(report.sections) > 1
    overview = draw_overview(report, out) if several else []
    plots = []
    for number, section in enumerate(report.sections, start=1):
        folder = out / f"section-{number}" if several else out
        folder.mkdir(exist_ok=True)
        plots.append(draw_plots(section.analysis, folder) + draw_parts(section.decomposition, folder))
    every = [plot for group in [overview, *plots] for plot in group]
    mapping = to_record(report, plots, out)
    write_atomically(out / "speedup.json", json.dumps(_make_strict(mapping), indent=2, allow_nan=False, ensure_ascii=False) + "\n")
    write_atomically(out / "report.html", render_page(report, plots, overview, out))
    return [out / "report.html", out / "speedup.json", *(plot.path for plot in every)]


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the new one, never a part."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def render_page(report: Report, plots: list[list[Plot]], overview: Sequence[Plot] = (), folder: Path | None = None) -> str:
    """Return the page as one string that needs nothing outside itself; all text from run folders is escaped.

    Args:
        folder: where the page will lie, for its links to the configurations of the runs; None makes no links.
    """
    body = ["<h1>Tokens and time needed for equal loss</h1>"]
    several = len(report.sections) > 1 or bool(report.notes)
    if several:
        body += [_render_summary(report), *map(render_plot, overview)]
        body += [render_list([f"left out: {note}" for note in report.notes])] if report.notes else []
    for section, pictures in zip(report.sections, plots or [[] for _ in report.sections], strict=True):
        body += [f'<h1 class="section">{escape(section.label)}</h1>'] if several else []
        body += _render_section(section, pictures, folder)
    if not several:
        body.append("<h2>Beside the published results</h2>" + _render_summary(report))
    body.append(f"<h2>Limits</h2><p>{escape(LIMITS)}</p>")
    return render_document("Speedup report", body)


def _render_section(section: Section, plots: list[Plot], folder: Path | None) -> list[str]:
    analysis = section.analysis
    if section.decomposition:
        body = [f'<p class="headline">{escape(describe_parts(section.decomposition))}</p>']
        body += _render_parts(section.decomposition)
        body += ["<h2>Each arm by itself</h2>", render_list(analysis.headlines)]
    else:
        body = [part for line in analysis.headlines for part in _render_headline(line)]
    body += [render_plot(plot) for plot in plots[:1]]
    body += ["<h2>What was held equal, what was tuned</h2>", render_list(describe_fairness(analysis))]
    if analysis.warnings:
        body.append("<h2>Warnings</h2>" + render_list(analysis.warnings))
    body += _render_numbers(analysis)
    if plots[1:]:
        body += ["<h2>More plots</h2>", *map(render_plot, plots[1:])]
    body += _render_provenance(analysis)
    body += _render_runs(analysis, folder)
    return body


def _render_headline(line: str) -> list[str]:
    """Return the first sentence large and what qualifies it below."""
    if line.startswith("Wall-clock"):
        return [f'<p class="second">{escape(line)}</p>']
    first, stop, rest = line.partition(". ")
    return [f'<p class="headline">{escape(first + stop.strip())}</p>'] + [f"<p>{escape(rest)}</p>"] * bool(rest)


def _render_summary(report: Report) -> str:
    sources = read_published()["sources"]
    legend = "; ".join(f"{key}: {source['name']} ({source['note']})" for key, source in sources.items())
    return (
        render_table(*list_published(report), "summary")
        + f'<p class="second">{escape(SUMMARY_NOTE)} This method on published points: the token speedup that the ladders '
        f"of this report find between the losses that a source published. Sources: {escape(legend)}.</p>"
    )


def _render_parts(parts: Decomposition) -> list[str]:
    """Return the decomposition's section."""
    beside = list_checks(parts)
    return [
        "<h2>What the speedup is made of</h2>",
        render_table(*list_parts(parts), "words"),
        f'<p class="second">{escape(PARTS_NOTE.format(loss=parts.loss))}</p>',
        *(["<p>Beside the chain:</p>" + render_list(beside)] if beside else []),
        *([render_list(parts.notes)] if parts.notes else []),
    ]


def _render_numbers(analysis: Analysis) -> list[str]:
    """Return the ladder, speedup and gap tables."""
    parts = [
        "<h2>Best fully annealed run per budget</h2>",
        render_table(*list_budgets(analysis.ladders)),
        '<p class="second">Loss in nats/token, mean over seeds; se: standard error over seeds; '
        "* the best learning rate is at the edge of those tried.</p>",
        "<h2>Learning rates tried</h2>",
        render_table(*list_rates(analysis.ladders), "rates"),
    ]
    for comparison in analysis.comparisons:
        base, other = (escape(display_arm(arm)) for arm in (comparison.baseline, comparison.challenger))
        parts += [f"<h2>Speedup of {other} over {base} at equal loss</h2>", render_table(*list_speedups(comparison))]
        parts += [render_list(list_bounds(comparison))] if list_bounds(comparison) else []
        if comparison.gaps:
            parts += [
                f"<h2>{other} minus {base} at equal tokens</h2>",
                render_table(*list_gaps(comparison)),
                f'<p class="second">Negative: {other} is better. Paired: the same seeds, hence the same data '
                f"order, on both sides. {escape(describe_test(comparison))}</p>",
            ]
        if comparison.interval_note:
            parts.append(f'<p class="second">{escape(comparison.interval_note)}</p>')
    return parts


def _render_provenance(analysis: Analysis) -> list[str]:
    """Return the section on what the runs share and where they differ, computed from their configs."""
    provenance = analysis.provenance
    arms = list(analysis.ladders)
    per_arm = [[key, *(shorten(values.get(arm)) for arm in arms)] for key, values in provenance.per_arm.items()]
    varied = [
        [key, *(shorten(", ".join(map(str, values.get(arm, [])))) for arm in arms)] for key, values in provenance.varied.items()
    ]
    same = [[key, shorten(value)] for key, value in provenance.same.items() if value is not None]
    header = ["setting", *map(display_arm, arms)]
    parts = ["<h2>Every setting</h2>"]
    if per_arm:
        parts += ["<p>Set differently for each arm:</p>", render_table(header, per_arm, "words")]
    if varied:
        parts += ["<p>Varied within an arm (budgets, candidates, seeds):</p>", render_table(header, varied, "words")]
    parts += ["<p>The same in every run:</p>", render_table(["setting", "value"], same, "words")]
    return parts


def _render_runs(analysis: Analysis, folder: Path | None) -> list[str]:
    """Return the list of runs compared, and of runs left out with the reason."""
    header = ["run", "arm", "tokens", "lr", "seed", "val loss", "bits/byte", "train time", "commit"]
    rows = []
    for run in analysis.runs:
        bits = run.final.bits_per_byte
        rows.append(
            [
                _link_config(run, folder),
                display_arm(analysis.arms[run.name]),
                format_tokens(run.final.tokens),
                format_rate(run.learning_rate),
                str(run.seed),
                f"{run.final.loss:.4f}",
                "-" if bits is None else f"{bits:.4f}",
                format_seconds(run.final.train_seconds),
                str(run.environment.get("commit") or "-")[:10],
            ]
        )
    is_linked = any(isinstance(row[0], Link) for row in rows)
    parts = [
        f"<h2>Runs ({len(rows)})</h2>",
        f"<p>{LINKED if is_linked else NOT_LINKED}</p>",
        render_table(header, rows),
    ]
    if analysis.left_out:
        left_out = [f"{run.name} ({display_arm(analysis.arms[run.name])}): {reason}" for run, reason in analysis.left_out]
        parts.append("<h2>Left out</h2>" + render_list(left_out))
    return parts


def _link_config(run: Run, folder: Path | None) -> str | Link:
    """Return a run's name, leading to its config.yaml where there is a way to it from the page's folder."""
    config = Path(run.path) / "config.yaml"
    if folder is None or not config.is_file():
        return run.name
    try:
        address = os.path.relpath(config.resolve(), Path(folder).resolve())
        return Link(run.name, quote(Path(address).as_posix()))
    except (ValueError, UnicodeError):  # another drive, or a name that is no text
        return run.name


def _make_strict(value):
    """Return a value that strict JSON can hold: no NaN or infinity, only string keys and plain types."""
    if isinstance(value, dict):
        return {str(key): _make_strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_make_strict(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
