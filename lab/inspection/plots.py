"""Draw an inspection as PNG files: the paper's figures 4, 5 and 10 to 12; and what these share with scale_plots.py."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterMathtext, LogLocator, MaxNLocator, NullLocator

from lab.figures import MARKERS, PALETTE, Plot, plt, save_plot, tick_log_axis
from lab.inspection.checkpoints import Inspection
from lab.inspection.measure import MATRICES, PAIR_LIMIT, Matrix

WIDE = (13.0, 7.4)  # inches, for two rows of three panels
LINE_WIDTHS = (3.0, 1.8, 1.5, 1.3, 1.1, 1.0)
TITLES = {"q": "Q", "k": "K", "v": "V", "up": "MLP up ($u$)", "gate": "MLP gate ($\\nu$)", "down": "MLP down"}
SHOWN_LAYERS = (3, 4)  # those of figures 11 and 12


def draw_embeddings(inspections: list[Inspection], out: Path) -> list[Plot]:
    """Draw figure 4: norms, covariance eigenvalues and dot products of the two embeddings, each sorted."""
    figure, grid = plt.subplots(2, 3, figsize=WIDE, layout="constrained")
    for row, side in zip(grid, ("input", "output"), strict=True):
        for index, item in enumerate(inspections):
            embedding = item.measured.embeddings[side]
            spectrum = embedding.relative_eigenvalues
            for axes, values in zip(row, (embedding.norms, spectrum, embedding.cosines), strict=True):
                if values is not None:
                    axes.plot(np.linspace(0, 1, len(values)), values, **run_look(index))
        row[0].set(title=f"Norms of {side} embeddings", ylabel="norm")
        row[1].set(title=f"Eigenvalues, {side} embeddings", ylabel="eigenvalue / median")
        row[2].set(title=f"Dot products, {side} embeddings", ylabel="dot product of unit vectors")
        row[0].set_ylim(0, 1.08 * row[0].get_ylim()[1])
        if row[1].lines:
            row[1].set_yscale("log")
            tick_decades(row[1])
    for axes in grid.flat:
        axes.set_xlabel("normalized rank")
    add_run_legend(figure, run_handles(inspections))
    return [
        save_plot(
            figure,
            out / "embeddings.png",
            "Embeddings (the paper's figure 4)",
            "Above the input, below the output embedding. Left: norms of the rows, in order; nGPT keeps them at 1. "
            "Middle: eigenvalues of the covariance of the rows divided by their median; the flatter, the better "
            "conditioned. Right: dot products of pairs of rows brought to unit norm "
            f"(all pairs, or {PAIR_LIMIT:,} random ones); 0 would be rows without a common direction. Every row of "
            "the table counts, ids that never occur in the text included.",
        )
    ]


def draw_conditions(inspections: list[Inspection], out: Path) -> list[Plot]:
    """Draw figures 5 and 10: condition numbers by layer, dotted after bringing the vectors to unit norm."""
    figure, grid = plt.subplots(2, 3, figsize=WIDE, layout="constrained", sharey=True)
    medians: dict[tuple, np.ndarray] = {}
    for index, item in enumerate(inspections):
        for name, layers in item.measured.matrices.items():
            medians[index, name] = np.array([np.median(layer.conditions) for layer in layers])
            if not all(layer.is_unit_norm for layer in layers):
                medians[index, name, "normalized"] = np.array([np.median(layer.normalized_conditions) for layer in layers])
    if not medians:
        plt.close(figure)
        return []
    finite = np.concatenate([values[np.isfinite(values)] for values in medians.values()])
    top = max(10.0, 2 * finite.max(initial=1.0))
    for key, values in medians.items():
        axes = grid.flat[list(MATRICES).index(key[1])]
        look = run_look(key[0]) | ({"linestyle": ":", "markerfacecolor": "white"} if key[2:] else {})
        positions = layer_positions(inspections, len(values))
        axes.plot(positions, np.where(np.isfinite(values), values, np.nan), **look, **run_marker(key[0], len(values)))
        for position in positions[np.isinf(values)]:
            axes.plot(position, 0.96, "^", color=look["color"], markersize=9, transform=axes.get_xaxis_transform())
    for axes, name in zip(grid.flat, MATRICES, strict=True):
        heads = ", median over heads" if MATRICES[name][2] else ""
        axes.set(title=TITLES[name] + heads, yscale="log", ylim=(1, top))
        tick_decades(axes)
        label_layers(axes, inspections)
        axes.set_visible(bool(axes.lines))
    for axes in grid[:, 0]:
        axes.set_ylabel("condition number")
    handles = run_handles(inspections)
    if any(key[2:] for key in medians):
        handles.append(Line2D([], [], color="grey", linestyle=":", linewidth=2, label="normalized"))
    if any(np.isinf(values).any() for values in medians.values()):
        handles.append(Line2D([], [], color="grey", linestyle="none", marker="^", label="infinite"))
    add_run_legend(figure, handles)
    return [
        save_plot(
            figure,
            out / "condition_numbers.png",
            "Condition numbers (the paper's figures 5 and 10)",
            "Largest over smallest singular value of each matrix by layer; of Q, K and V for each head, and the median "
            "over heads. Dotted: after bringing the vectors along n_embd to unit norm, for matrices that are not "
            "kept there. A random matrix of independent entries has, for comparison, a condition number near "
            "(1 + sqrt(r)) / (1 - sqrt(r)), r being its shorter over its longer side: 3 for an MLP matrix.",
        )
    ]


def draw_attention_spectra(inspections: list[Inspection], out: Path) -> list[Plot]:
    """Draw figures 11 and 12: norms and singular values of Q and K in layers 3 and 4, or the last two of fewer."""
    inspections = [item for item in inspections if {"q", "k"} <= item.measured.matrices.keys()]
    if not inspections:
        return []
    depth = min(item.size["n_layer"] for item in inspections)
    layers = SHOWN_LAYERS if depth >= max(SHOWN_LAYERS) else range(max(1, depth - 1), depth + 1)
    return [_draw_attention_spectrum(inspections, layer, out) for layer in layers]


def _draw_attention_spectrum(inspections: list[Inspection], layer: int, out: Path) -> Plot:
    figure, grid = plt.subplots(2, 2, figsize=(11.0, 7.4), layout="constrained")
    for row, name in zip(grid, ("q", "k"), strict=True):
        for index, item in enumerate(inspections):
            matrix = item.measured.matrices[name][layer - 1]
            row[0].plot(np.linspace(0, 1, len(matrix.norms)), matrix.norms, **run_look(index))
            _draw_heads(row[1], matrix, index)
        row[0].set(title=f"Norms of the vectors of {TITLES[name]}, layer {layer}", ylabel="norm")
        row[0].set_ylim(0, 1.08 * row[0].get_ylim()[1])
        row[1].set(title=f"Singular values of the heads of {TITLES[name]}, layer {layer}", ylabel="singular value")
        row[1].set_yscale("log")
        tick_decades(row[1])
        # Inside the axes, for each panel has numbers of its own; the spectra fall to the right, so they end there.
        row[1].legend(
            loc="lower left",
            fontsize=10,
            frameon=True,
            framealpha=0.8,
            title="condition number (median)",
            alignment="left",
        )
        for axes in row:
            axes.set_xlabel("normalized rank")
    add_run_legend(figure, run_handles(inspections))
    return save_plot(
        figure,
        out / f"attention_layer{layer}.png",
        f"Q and K of layer {layer} (the paper's figures 11 and 12)",
        "Left: norms of the vectors of the complete matrix, in order. Right: singular values of each head; the line is "
        "the median over heads, the band reaches from the lowest to the highest head.",
    )


def _draw_heads(axes, matrix: Matrix, index: int) -> None:
    """Draw the singular values (heads, k): the median over heads, and the range."""
    values = np.maximum(matrix.singular_values, 1e-12)  # a zero has no place on a log axis
    ranks = np.linspace(0, 1, values.shape[1])
    label = f"{np.median(matrix.conditions):.4g}"
    axes.plot(ranks, np.median(values, axis=0), **run_look(index), label=label)
    axes.fill_between(ranks, values.min(0), values.max(0), color=PALETTE[index], alpha=0.15, linewidth=0)


def run_look(index: int) -> dict[str, Any]:
    """Return a line's colour and width; later runs are thinner, so that equal lines are all seen."""
    return {"color": PALETTE[index], "linewidth": LINE_WIDTHS[index]}


def run_marker(index: int, count: int) -> dict[str, Any]:
    """Return markers for a line of count points, at no more than about a dozen of them."""
    return {"marker": MARKERS[index], "markersize": 4 + LINE_WIDTHS[index], "markevery": max(1, count // 12)}


def run_handles(inspections: list[Inspection], with_scales: bool = False) -> list[Line2D]:
    return [
        Line2D([], [], **run_look(index), marker=MARKERS[index], label=literal_label(item.label))
        for index, item in enumerate(inspections)
        if item.measured.scales or not with_scales
    ]


def literal_label(label: str) -> str:
    """Return a label as literal text, its end kept where it is long: matplotlib reads $...$ as mathematics."""
    return (label if len(label) <= 48 else "..." + label[-45:]).replace("$", r"\$")


def layer_positions(inspections: list[Inspection], count: int) -> np.ndarray:
    """Return layers from 1, or from 0 to 1 where models of different depth share the picture."""
    if len({item.size["n_layer"] for item in inspections}) == 1:
        return np.arange(1, count + 1)
    return np.linspace(0, 1, count)


def label_layers(axes, inspections: list[Inspection]) -> None:
    if len({item.size["n_layer"] for item in inspections}) == 1:
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    else:
        axes.set_xlabel("normalized layer index")


def tick_decades(axes) -> None:
    """Label a log axis by decades where it spans several, else finely."""
    low, high = axes.get_ylim()
    if high / low < 1000:
        tick_log_axis(axes.yaxis, lambda value: f"{value:g}")
    else:
        axes.yaxis.set_major_locator(LogLocator(base=10, numticks=10))
        axes.yaxis.set_major_formatter(LogFormatterMathtext())
        axes.yaxis.set_minor_locator(NullLocator())


def add_run_legend(figure, handles: list[Line2D]) -> None:
    """Put the legend above the panels, where it can hide no data."""
    longest = max(len(handle.get_label()) for handle in handles)
    columns = 4 if longest <= 26 else 3 if longest <= 36 else 2
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, fontsize=11)
