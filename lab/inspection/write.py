"""Write the inspection report: inspection.json, the pictures, and one self-contained HTML page."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lab.figures import STYLE, Plot, plt
from lab.inspection import plots, scale_plots
from lab.inspection.checkpoints import Inspection, to_finite
from lab.inspection.measure import PAIR_LIMIT, PAIR_SEED, Embedding, Matrix, Scales
from lab.inspection.tables import (
    PAPER_CONDITIONS,
    PAPER_SCALES,
    PAPER_SOURCE,
    list_numbers,
    list_paper_conditions,
    list_paper_scales,
    list_runs,
)
from lab.page import render_page
from runfolder.files import write_json_atomically

QUANTILES = np.linspace(0, 1, 101)
DEFINITIONS = {
    "condition": "largest / smallest singular value; q, k, v: of each head, and the median over heads; null: infinite",
    "normalized_condition": "the same with the vectors along n_embd (rows of q, k, v, up, gate; columns of down) "
    "brought to unit norm first",
    "eigenvalues": "of the covariance of the embedding's rows about their mean, descending",
    "cosines": f"dot products of rows at unit norm: all pairs, or {PAIR_LIMIT} random ones (seed {PAIR_SEED})",
    "dots": "dot products of the same pairs, not normalized",
    "quantiles": "at 0%, 1%, ..., 100%",
    "scales": "effective values, stored * init / scale",
    "layer": "counted from 1",
}
# In the paper's order.
PICTURES = (
    plots.draw_embeddings,
    plots.draw_conditions,
    scale_plots.draw_scales,
    plots.draw_attention_spectra,
    scale_plots.draw_histograms,
    scale_plots.draw_history,
)


def write_inspection(inspections: list[Inspection], out: str | Path) -> list[Path]:
    """Write inspection.json, each picture as PNG and SVG, and inspection.html under a folder; return their paths."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".writing-") as folder:
        drawn = draw_inspection(inspections, Path(folder))
        page = Path(folder) / "inspection.html"
        page.write_text(render_inspection(inspections, drawn), encoding="utf-8", errors="backslashreplace")
        pictures = [plot.path.with_suffix(suffix) for suffix in (".png", ".svg") for plot in drawn]
        written = [out / path.name for path in (page, *pictures)]
        write_json_atomically(out / "inspection.json", to_mapping(inspections, [plot.path.name for plot in drawn]))
        for path in written:
            os.replace(Path(folder) / path.name, path)
    return [written[0], out / "inspection.json", *written[1:]]


def draw_inspection(inspections: list[Inspection], out: Path) -> list[Plot]:
    """Write every picture that the models have something for, and return them in the paper's order."""
    with plt.rc_context(STYLE | {"savefig.dpi": 110}):
        return [plot for draw in PICTURES for plot in draw(inspections, out)]


def render_inspection(inspections: list[Inspection], drawn: list[Plot]) -> str:
    """Return the page as one string that refers to nothing outside itself."""
    return render_page(
        "inspection/inspection.html",
        title="Inspection",
        runs=list_runs(inspections),
        numbers=list_numbers(inspections),
        plots=drawn,
        paper_source=PAPER_SOURCE,
        paper_conditions=list_paper_conditions(inspections),
        paper_scales=list_paper_scales(inspections),
        notes=[f"{item.label}: {note}" for item in inspections for note in list_notes(item)],
        definitions=[f"{key}: {text}" for key, text in DEFINITIONS.items()],
    )


def to_mapping(inspections: list[Inspection], figures: Sequence[str] = ()) -> dict[str, Any]:
    """Return every number of the report as plain values; what is infinite is None, and a note says so."""
    return {
        "format": 1,
        "definitions": DEFINITIONS,
        "runs": [_run_mapping(item) for item in inspections],
        "paper": {
            "source": PAPER_SOURCE,
            "scale_mean_abs": PAPER_SCALES,
            "condition": {f"layer {layer} {name}": values for (name, layer), values in PAPER_CONDITIONS.items()},
        },
        "figures": list(figures),
    }


def list_notes(item: Inspection) -> list[str]:
    """Say what could not be shown of a run, and why."""
    notes = list(item.measured.notes)
    for side, embedding in item.measured.embeddings.items():
        if embedding.relative_eigenvalues is None:
            notes.append(
                f"{side} embedding: more than half of the covariance's eigenvalues are zero, so they are "
                "not divided by their median"
            )
    if not item.measured.scales:
        notes.append("this model has no learned scales")
    elif not item.history.means:
        notes.append(
            "metrics.jsonl records no scale means (scale/*): how the scales moved is known from their "
            "initial and present values alone"
        )
    return notes


def _run_mapping(item: Inspection) -> dict[str, Any]:
    measured, history = item.measured, item.history
    return {
        "label": item.label,
        "run": item.run,
        "model": item.arm,
        "step": item.step,
        "tokens": item.tokens,
        "learning_rate": item.learning_rate,
        "commit": item.commit,
        **item.size,
        "embeddings": {side: _embedding_mapping(embedding) for side, embedding in measured.embeddings.items()},
        "matrices": {
            name: [{"layer": index} | _matrix_mapping(matrix) for index, matrix in enumerate(layers, start=1)]
            for name, layers in measured.matrices.items()
        },
        "scales": {name: _scales_mapping(scales) for name, scales in measured.scales.items()},
        "history": {
            "steps": history.steps,
            "scale_mean_abs": history.means,
            "max_norm_deviation": history.norm_deviations,
            "val_loss": history.losses,
        },
        "notes": list_notes(item),
    }


def _embedding_mapping(embedding: Embedding) -> dict[str, Any]:
    largest, smallest = embedding.eigenvalues[0], embedding.eigenvalues[-1]
    return {
        "norms": _summarize(embedding.norms),
        "eigenvalues": embedding.eigenvalues.tolist(),
        "eigenvalue_condition": float(largest / smallest) if smallest > 0 else None,
        "pairs": len(embedding.dots),
        "all_pairs": embedding.all_pairs,
        "cosines": _summarize(embedding.cosines),
        "dots": _summarize(embedding.dots),
    }


def _matrix_mapping(matrix: Matrix) -> dict[str, Any]:
    return {
        "condition": to_finite(float(np.median(matrix.conditions))),
        "normalized_condition": to_finite(float(np.median(matrix.normalized_conditions))),
        "condition_per_head": [to_finite(value) for value in matrix.conditions.tolist()],
        "normalized_condition_per_head": [to_finite(value) for value in matrix.normalized_conditions.tolist()],
        "largest_singular_value": float(matrix.singular_values.max()),
        "smallest_singular_value": float(matrix.singular_values.min()),
        "is_unit_norm": matrix.is_unit_norm,
        "norms": {"min": float(matrix.norms[0]), "mean": float(matrix.norms.mean()), "max": float(matrix.norms[-1])},
    }


def _scales_mapping(scales: Scales) -> dict[str, Any]:
    return {
        "is_learned": scales.is_learned,
        "init": scales.init,
        "mean_abs": scales.mean,
        "mean_abs_over_init": scales.mean / abs(scales.init) if scales.init else None,
        "mean_abs_per_layer": [float(np.abs(values).mean()) for values in scales.layers],
        "mean_per_layer": [float(values.mean()) for values in scales.layers],
        "values": _summarize(np.concatenate(scales.layers)),
    }


def _summarize(values: np.ndarray) -> dict[str, Any]:
    quantiles = np.quantile(values, QUANTILES).tolist()
    return {"mean": float(values.mean()), "std": float(values.std()), "quantiles": quantiles}
