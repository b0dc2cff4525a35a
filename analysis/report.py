"""Write the report: speedup.json, the pictures, and one self-contained HTML page."""

import base64
import json
import math
from html import escape
from pathlib import Path

from analysis.comparability import shorten
from analysis.comparison import Analysis
from analysis.plots import Plot, draw_plots
from analysis.record import to_mapping
from analysis.runs import Run, lookup
from analysis.tables import list_bounds, list_budgets, list_gaps, list_speedups
from analysis.text import display_arm, format_rate, format_seconds, format_tokens

PAGE_STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --page: #ffffff; --soft: #5c5c5c; --line: #d5d5d5; --box: #f3f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --page: #15181c; --soft: #a5abb3; --line: #3a4047; --box: #1f242a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 56rem; color: var(--text); background: var(--page);
       font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.1rem; color: var(--soft); font-weight: 600; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
.headline { font-size: 1.35rem; line-height: 1.35; font-weight: 600; margin: .5rem 0; }
.second { font-size: 1rem; color: var(--soft); margin: .3rem 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
         vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
.words td, .words th { text-align: left; white-space: normal; }
figure { margin: 1.5rem 0; break-inside: avoid; }
img { width: 100%; height: auto; max-width: 46rem; display: block; background: #ffffff; border-radius: 6px; }
figcaption { font-size: .9rem; color: var(--soft); max-width: 46rem; margin-top: .4rem; }
.notes { background: var(--box); border-radius: 6px; padding: .6rem 1rem .6rem 2rem; }
@media print { body { max-width: none; font-size: 10.5pt; padding: 0; } .scroll { overflow: visible; }
               th, td { white-space: normal; padding: .15rem .35rem; } h2 { break-after: avoid; } }
"""
LIMITS = (
    "These figures hold for the model size, context, data and budgets of these runs and for nothing larger: at small "
    "scale neither arm may be near the regime of the published results, and the speedup is known to change with "
    "budget, context and learning rate. With a handful of seeds a standard error or a bootstrap interval is a rough "
    "guide and tends to be too narrow; with one seed there is none, and a difference of the size of seed noise means "
    "nothing. Keeping the best of several learning rates favours whichever arm tried more of them. Between two budgets "
    "the ladder is interpolated (loss linear in the logarithm of the budget), beyond them it is not continued. Only "
    "the ends of fully annealed runs are compared. Training seconds belong to one machine and one implementation."
)


def write_report(analysis: Analysis, out) -> list[Path]:
    """Write speedup.json, the PNG files and report.html under a folder, and return their paths."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    plots = draw_plots(analysis, out)
    mapping = to_mapping(analysis, [plot.path.name for plot in plots])
    (out / "speedup.json").write_text(
        json.dumps(_make_strict(mapping), indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    (out / "report.html").write_text(render_page(analysis, plots), encoding="utf-8")
    return [out / "report.html", out / "speedup.json", *(plot.path for plot in plots)]


def render_page(analysis: Analysis, plots: list[Plot]) -> str:
    """Return the page as one string that refers to nothing outside itself; all text from run folders is escaped."""
    body = ["<h1>Tokens and time needed for equal loss</h1>"]
    body += [
        f'<p class="{"second" if line.startswith("Wall-clock") else "headline"}">{escape(line)}</p>'
        for line in analysis.headlines
    ]
    body += _render_numbers(analysis)
    body.append("<h2>Plots</h2>")
    body += [_render_plot(plot) for plot in plots]
    body += _render_provenance(analysis)
    body += _render_runs(analysis)
    if analysis.warnings:
        body.append("<h2>Warnings</h2>" + _render_list(analysis.warnings))
    body.append(f"<h2>Limits</h2><p>{escape(LIMITS)}</p>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Speedup report</title><style>{PAGE_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _render_numbers(analysis: Analysis) -> list[str]:
    """Return the ladder, speedup and gap tables."""
    parts = [
        "<h2>Best fully annealed run per budget</h2>",
        _render_table(*list_budgets(analysis.ladders)),
        '<p class="second">Loss in nats/token, mean over seeds; se: standard error over seeds; '
        "* the best learning rate is at the edge of those tried.</p>",
    ]
    for comparison in analysis.comparisons:
        base, other = (escape(display_arm(arm)) for arm in (comparison.baseline, comparison.challenger))
        parts += [f"<h2>Speedup of {other} over {base} at equal loss</h2>", _render_table(*list_speedups(comparison))]
        parts += [_render_list(list_bounds(comparison))] if list_bounds(comparison) else []
        if comparison.gaps:
            parts += [
                f"<h2>{other} minus {base} at equal tokens</h2>",
                _render_table(*list_gaps(comparison)),
                f'<p class="second">Negative: {other} is better. Paired: the same seeds, hence the same data '
                "order, on both sides.</p>",
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
        [key, *(shorten(", ".join(map(str, values.get(arm, [])))) for arm in arms)]
        for key, values in provenance.varied.items()
    ]
    same = [[key, shorten(value)] for key, value in provenance.same.items() if value is not None]
    header = ["setting", *map(display_arm, arms)]
    parts = ["<h2>What was held equal, what was tuned</h2>"]
    if per_arm:
        parts += ["<p>Set differently for each arm:</p>", _render_table(header, per_arm, "words")]
    if varied:
        parts += ["<p>Varied within an arm (budgets, candidates, seeds):</p>", _render_table(header, varied, "words")]
    parts += ["<p>The same in every run:</p>", _render_table(["setting", "value"], same, "words")]
    return parts


def _render_runs(analysis: Analysis) -> list[str]:
    """Return the list of runs compared, and of runs left out with the reason."""
    header = ["run", "arm", "tokens", "lr", "seed", "val loss", "bits/byte", "train time", "commit", "configuration"]
    rows = []
    for run in analysis.runs:
        bits = run.final.bits_per_byte
        rows.append(
            [
                run.name,
                display_arm(analysis.arms[run.name]),
                format_tokens(run.final.tokens),
                format_rate(run.learning_rate),
                str(run.seed),
                f"{run.final.loss:.4f}",
                "-" if bits is None else f"{bits:.4f}",
                format_seconds(run.final.train_seconds),
                str(run.environment.get("commit") or "-")[:10],
                _summarize_config(run),
            ]
        )
    parts = [f"<h2>Runs ({len(rows)})</h2>", _render_table(header, rows)]
    if analysis.left_out:
        left_out = [
            f"{run.name} ({display_arm(analysis.arms[run.name])}): {reason}" for run, reason in analysis.left_out
        ]
        parts.append("<h2>Left out</h2>" + _render_list(left_out))
    return parts


def _summarize_config(run: Run) -> str:
    """Return a run's settings in one line of key value pairs."""
    keys = (
        "size",
        "context",
        "model.n_layer",
        "model.n_head",
        "model.n_embd",
        "model.vocab_size",
        "max_steps",
        "global_batch_size",
        "warmup_steps",
        "weight_decay",
        "min_learning_rate",
        "precision.name",
    )
    values = [(key.removeprefix("model."), lookup(run.config, key)) for key in keys]
    return ", ".join(f"{key} {shorten(value)}" for key, value in values if value is not None)


def _render_plot(plot: Plot) -> str:
    data = base64.b64encode(plot.path.read_bytes()).decode("ascii")
    return (
        f'<figure><img alt="{escape(plot.title)}" src="data:image/png;base64,{data}">'
        f"<figcaption><b>{escape(plot.title)}.</b> {escape(plot.caption)}</figcaption></figure>"
    )


def _render_table(header: list[str], rows: list[list[str]], kind: str = "") -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _render_list(lines) -> str:
    return '<ul class="notes">' + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _make_strict(value):
    """Return a value that strict JSON can hold: no NaN or infinity, only string keys and plain types."""
    if isinstance(value, dict):
        return {str(key): _make_strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_make_strict(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
