"""The tables of an inspection: what was measured, the main numbers, and the paper's beside them."""

import numpy as np

from lab.inspection.checkpoints import Inspection
from lab.inspection.measure import MATRICES, SCALES, Scales
from lab.words import display_arm, format_rate, format_tokens

Table = tuple[list[str], list[list[str]]]  # header, rows
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
            layers = [item.measured.matrices.get(name, []) for item in inspections]
            if any(layers) and (field == "conditions" or not all(matrix.is_unit_norm for found in layers for matrix in found)):
                medians = [[np.median(getattr(matrix, field)) for matrix in found] for found in layers]
                cells = [format_condition(np.median(values)) if values else "-" for values in medians]
                rows.append([f"condition number of {name}{words}", *cells])
    for name in SCALES:
        found = [item.measured.scales.get(name) for item in inspections]
        if any(scales is not None for scales in found):
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
            layers = item.measured.matrices.get(name, [])
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


def _format_scale(scales: Scales) -> str:
    start = "" if scales.init is None else f"{scales.init:g} \N{RIGHTWARDS ARROW} "
    return f"{start}{scales.mean:.3g}" + ("" if scales.is_learned else " (fixed)")
