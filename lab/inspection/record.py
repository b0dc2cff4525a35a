"""Write an inspection down as plain values: what inspection.json holds."""

from collections.abc import Sequence

import numpy as np

from lab.inspection.checkpoints import Inspection, to_finite
from lab.inspection.measure import PAIR_LIMIT, PAIR_SEED, Embedding, Matrix, Scales

QUANTILES = np.linspace(0, 1, 101)
PAPER_SOURCE = "the paper (arXiv 2410.01131): models of 0.5B and 1B parameters after 100k steps on OpenWebText"
PAPER_SCALES = {  # mean |value|: figure 6 for the alphas, the base rows of table 4 for the others
    "attn_alpha": {"nGPT 0.5B": 0.25, "nGPT 1B": 0.20},
    "mlp_alpha": {"nGPT 0.5B": 0.37, "nGPT 1B": 0.32},
    "sqk": {"nGPT 0.5B": 1.51},
    "su": {"nGPT 0.5B": 1.24},
    "sv": {"nGPT 0.5B": 1.12},
    "sz": {"nGPT 0.5B": 60.8},
}
PAPER_CONDITIONS = {  # figures 11 and 12, by (matrix, layer counted from 1)
    ("q", 3): {"GPT 0.5B": 1.626e6, "GPT 1B": 1.716e5, "nGPT 0.5B": 3.76, "nGPT 1B": 13.10},
    ("k", 3): {"GPT 0.5B": 1.879e6, "GPT 1B": 1.228e5, "nGPT 0.5B": 4.50, "nGPT 1B": 9.87},
    ("q", 4): {"GPT 0.5B": 1500.0, "GPT 1B": 8.07e5, "nGPT 0.5B": 3.04, "nGPT 1B": 4.19},
    ("k", 4): {"GPT 0.5B": 1379.0, "GPT 1B": 7.23e5, "nGPT 0.5B": 2.86, "nGPT 1B": 3.89},
}
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


def to_mapping(inspections: list[Inspection], figures: Sequence[str] = ()) -> dict:
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


def _run_mapping(item: Inspection) -> dict:
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


def _embedding_mapping(embedding: Embedding) -> dict:
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


def _matrix_mapping(matrix: Matrix) -> dict:
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


def _scales_mapping(scales: Scales) -> dict:
    return {
        "is_learned": scales.is_learned,
        "init": scales.init,
        "mean_abs": scales.mean,
        "mean_abs_over_init": scales.mean / abs(scales.init) if scales.init else None,
        "mean_abs_per_layer": [float(np.abs(values).mean()) for values in scales.layers],
        "mean_per_layer": [float(values.mean()) for values in scales.layers],
        "values": _summarize(np.concatenate(scales.layers)),
    }


def _summarize(values: np.ndarray) -> dict:
    quantiles = np.quantile(values, QUANTILES).tolist()
    return {"mean": float(values.mean()), "std": float(values.std()), "quantiles": quantiles}
