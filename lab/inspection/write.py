"""Write the inspection report: inspection.json, the pictures, and one self-contained HTML page."""

import os
import tempfile
from html import escape
from pathlib import Path

import numpy as np

from lab.figures import Plot
from lab.inspection.checkpoints import Inspection
from lab.inspection.measure import MATRICES, SCALES
from lab.inspection.plots import draw_inspection
from lab.inspection.record import DEFINITIONS, PAPER_CONDITIONS, PAPER_SCALES, PAPER_SOURCE, list_notes, to_mapping
from lab.page import render_document, render_list, render_plot, render_table
from lab.words import display_arm, format_rate, format_tokens
from runfolder.files import write_json_atomically

WIDER = "body { max-width: 76rem; } img { max-width: 74rem; } th, td { overflow-wrap: normal; }\n"  # six panels
Table = tuple[list[str], list[list[str]]]
HEALTH = (
    "Signs of a healthy nGPT: norms at 1 (in fp32 the largest deviation is some 1e-7), scale means that move smoothly and "
    "settle as the learning rate falls, and alphas, the share of the way towards a block's output, well below 1 (0.20 "
    "to 0.37 in the paper)."
)


def write_inspection(inspections: list[Inspection], out: str | Path) -> list[Path]:
    """Write inspection.json, the PNG files and inspection.html under a folder, each replaced whole; return their paths."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".writing-") as folder:
        plots = draw_inspection(inspections, Path(folder))
        page = Path(folder) / "inspection.html"
        page.write_text(render_page(inspections, plots), encoding="utf-8", errors="backslashreplace")
        written = [out / path.name for path in (page, *(plot.path for plot in plots))]
        for path in written:
            os.replace(Path(folder) / path.name, path)
    figures = [plot.path.name for plot in plots]
    write_json_atomically(out / "inspection.json", to_mapping(inspections, figures))
    return [written[0], out / "inspection.json", *written[1:]]


def render_page(inspections: list[Inspection], plots: list[Plot]) -> str:
    """Return the page as one string that refers to nothing outside itself; all text from run folders is escaped."""
    body = [
        "<h1>Inspection of trained weights</h1>",
        render_table(*list_runs(inspections), "words"),
        "<h2>Numbers</h2>",
        render_table(*list_numbers(inspections)),
        f'<p class="second">Median over layers of the condition numbers; of Q, K and V first over heads. Scales: mean '
        f"absolute effective value over all layers, initial value &rarr; now. {escape(HEALTH)}</p>",
        "<h2>Figures</h2>",
        *(render_plot(plot) for plot in plots),
        "<h2>The paper's numbers, for context</h2>",
        f'<p class="second">From {escape(PAPER_SOURCE)}; none of them is ours, and smaller or shorter runs need not '
        "come near them.</p>",
        render_table(*list_paper_conditions(inspections)),
        render_table(*list_paper_scales(inspections)),
    ]
    notes = [f"{item.label}: {note}" for item in inspections for note in list_notes(item)]
    if notes:
        body.append("<h2>Notes</h2>" + render_list(notes))
    body.append("<h2>Definitions</h2>" + render_list([f"{key}: {text}" for key, text in DEFINITIONS.items()]))
    return render_document("Inspection", body, WIDER)


def list_runs(inspections: list[Inspection]) -> Table:
    """Return which checkpoints were measured."""
    header = ["label", "run", "model", "step", "tokens", "peak learning rate", "validation loss", "size", "commit"]
    rows = []
    for item in inspections:
        history = item.history
        loss = history.losses[-1] if history.steps and history.steps[-1] == item.step else None
        size = ", ".join(f"{name} {value}" for name, value in item.size.items())
        rows.append(
            [
                item.label,
                item.run,
                display_arm(item.arm),
                f"{item.step:,}",
                format_tokens(item.tokens),
                format_rate(item.learning_rate),
                "-" if loss is None else f"{loss:.4f}",
                size,
                str(item.commit or "-")[:10],
            ]
        )
    return header, rows


def list_numbers(inspections: list[Inspection]) -> Table:
    """Return the main numbers, one column a run."""
    rows = []
    for side in ("input", "output"):
        embeddings = [item.measured.embeddings[side] for item in inspections]
        rows += [
            [f"{side} embedding: norms, smallest / median / largest"]
            + [" / ".join(f"{np.quantile(e.norms, q):.3g}" for q in (0, 0.5, 1)) for e in embeddings],
            [f"{side} embedding: largest eigenvalue / median"]
            + ["-" if e.relative_eigenvalues is None else f"{e.relative_eigenvalues[0]:.3g}" for e in embeddings],
            [f"{side} embedding: mean dot product of unit vectors"] + [f"{e.cosines.mean():.3f}" for e in embeddings],
        ]
    for name in MATRICES:
        for words, field in (("", "conditions"), (", after normalization", "normalized_conditions")):
            layers = [item.measured.matrices[name] for item in inspections]
            if field == "conditions" or not all(matrix.is_unit_norm for found in layers for matrix in found):
                medians = [np.median([np.median(getattr(matrix, field)) for matrix in found]) for found in layers]
                rows.append([f"condition number of {name}{words}"] + [format_condition(median) for median in medians])
    for name in SCALES:
        found = [item.measured.scales.get(name) for item in inspections]
        if any(found):
            rows.append([f"scale {name}"] + ["-" if scales is None else _format_scale(scales) for scales in found])
    deviations = [max((d for d in item.history.norm_deviations if d is not None), default=None) for item in inspections]
    if any(deviation is not None for deviation in deviations):
        rows.append(
            ["largest |norm - 1| recorded during training"]
            + ["-" if deviation is None else f"{deviation:.1e}" for deviation in deviations]
        )
    return ["", *(item.label for item in inspections)], rows


def list_paper_conditions(inspections: list[Inspection]) -> Table:
    """Return the condition numbers of the paper's figures 11 and 12 beside those of these runs."""
    columns = list(next(iter(PAPER_CONDITIONS.values())))
    header = ["condition number, median over heads"]
    header += [f"{item.label}, {item.size['n_layer']} layers x {item.size['n_embd']}" for item in inspections]
    header += [f"paper's {column}" for column in columns]
    rows = []
    for (name, layer), values in PAPER_CONDITIONS.items():
        row = [f"{name}, layer {layer}"]
        for item in inspections:
            layers = item.measured.matrices[name]
            row.append(format_condition(np.median(layers[layer - 1].conditions)) if layer <= len(layers) else "-")
        rows.append(row + [format_condition(values[column]) for column in columns])
    return header, rows


def list_paper_scales(inspections: list[Inspection]) -> Table:
    """Return the mean scales that the paper states beside those of these runs."""
    measured = [item for item in inspections if item.measured.scales]
    columns = list(PAPER_SCALES["attn_alpha"])
    header = ["mean |scale|"]
    header += [f"{item.label}, {item.size['n_layer']} layers x {item.size['n_embd']}" for item in measured]
    header += [f"paper's {column}" for column in columns]
    rows = []
    for name, values in PAPER_SCALES.items():
        found = [item.measured.scales.get(name) for item in measured]
        rows.append(
            [name]
            + ["-" if scales is None else f"{scales.mean:.3g}" for scales in found]
            + [f"{values[column]:g}" if column in values else "-" for column in columns]
        )
    return header, rows


def format_condition(value: float) -> str:
    """Return a condition number in about three digits."""
    if not np.isfinite(value):
        return "infinite"
    return f"{value:.3g}" if value < 1000 else f"{value:.2e}"


def _format_scale(scales) -> str:
    start = "" if scales.init is None else f"{scales.init:g} \N{RIGHTWARDS ARROW} "
    return f"{start}{scales.mean:.3g}" + ("" if scales.is_learned else " (fixed)")
