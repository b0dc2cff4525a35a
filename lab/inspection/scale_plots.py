"""Draw the learned scales: by layer, their distributions, and how they moved (the paper's figures 6 and 14)."""

from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from lab.figures import PALETTE, Plot, plt, save_plot
from lab.inspection.checkpoints import Inspection
from lab.inspection.plots import (
    WIDE,
    add_run_legend,
    label_layers,
    layer_positions,
    run_handles,
    run_look,
    run_marker,
)

SYMBOLS = {
    "attn_alpha": "$|\\alpha_A|$",
    "mlp_alpha": "$|\\alpha_M|$",
    "sqk": "$|s_{qk}|$",
    "su": "$|s_u|$",
    "sv": "$|s_\\nu|$",
    "sz": "$|s_z|$",
}
MOST_BINS = 60


def draw_scales(inspections: list[Inspection], out: Path) -> list[Plot]:
    """Draw figure 6: mean |value| of the learned scales by layer, and the density of s_z over the vocabulary."""
    if not any(item.measured.scales for item in inspections):
        return []
    figure, grid = plt.subplots(2, 3, figsize=WIDE, layout="constrained")
    panels = zip(grid.flat, ("attn_alpha", "su", "sqk", "mlp_alpha", "sv", "sz"), strict=True)  # in the paper's places
    for axes, name in panels:
        for index, item in enumerate(inspections):
            if name not in item.measured.scales:
                continue
            layers = item.measured.scales[name].layers
            if name == "sz":
                _draw_density(axes, layers[0], index)
                continue
            means = [np.abs(values).mean() for values in layers]
            axes.plot(layer_positions(inspections, len(means)), means, **run_look(index), **run_marker(index, len(means)))
        axes.set_visible(any(name in item.measured.scales for item in inspections))
        if name == "sz":
            axes.set(title="$s_z$ over the vocabulary", xlabel="value", ylabel="density")
            axes.set_ylim(bottom=0)
        else:
            axes.set(title=SYMBOLS[name], ylabel="mean over channels")
            axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
            label_layers(axes, inspections)
    add_run_legend(figure, run_handles(inspections, with_scales=True))
    return [
        save_plot(
            figure,
            out / "scales.png",
            "Learned scales by layer (the paper's figure 6)",
            "Mean absolute effective value over the channels of a layer. Alpha is the share of the way that the hidden "
            "state goes towards a block's output: the paper's models went 0.20 to 0.37. Models without learned scales "
            "are not drawn.",
        )
    ]


def draw_histograms(inspections: list[Inspection], out: Path) -> list[Plot]:
    """Draw figure 14: the distribution of each kind of scale over all layers and channels."""
    names = [name for name in SYMBOLS if any(name in item.measured.scales for item in inspections)]
    if not names:
        return []
    figure, grid = plt.subplots(2, 3, figsize=WIDE, layout="constrained")
    for axes, name in zip(grid.flat, SYMBOLS, strict=True):
        for index, item in enumerate(inspections):
            if name in item.measured.scales:
                _draw_density(axes, np.abs(np.concatenate(item.measured.scales[name].layers)), index)
        axes.set(title=SYMBOLS[name], xlabel="value", ylabel="density")
        axes.set_ylim(bottom=0)
        axes.set_visible(any(name in item.measured.scales for item in inspections))
    add_run_legend(figure, run_handles(inspections, with_scales=True))
    return [
        save_plot(
            figure,
            out / "scale_histograms.png",
            "Distributions of the learned scales (the paper's figure 14)",
            "Density of the absolute effective values over all layers and channels. Give runs of other contexts, "
            "sizes, learning rates or budgets to see how they shift. A vertical line: all values are equal.",
        )
    ]


def draw_history(inspections: list[Inspection], out: Path) -> list[Plot]:
    """Draw how the mean of each kind of scale moved during training, as recorded in metrics.jsonl."""
    if not any(item.history.means for item in inspections):
        return []
    figure, grid = plt.subplots(2, 3, figsize=WIDE, layout="constrained")
    for axes, name in zip(grid.flat, SYMBOLS, strict=True):
        for index, item in enumerate(inspections):
            if name in item.history.means:
                means = [np.nan if mean is None else mean for mean in item.history.means[name]]
                axes.plot(item.history.steps, means, **run_look(index), **run_marker(index, len(means)))
        axes.set(title=SYMBOLS[name], xlabel="step", ylabel="mean over all layers")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=(1, 2, 2.5, 5, 10)))
        axes.set_visible(bool(axes.lines))
        low, high = axes.get_ylim()
        if high - low < 0.02 * abs(high):  # a scale that hardly moves shall look so
            axes.set_ylim(low - 0.01 * abs(high), high + 0.01 * abs(high))
    add_run_legend(figure, run_handles(inspections, with_scales=True))
    return [
        save_plot(
            figure,
            out / "scale_history.png",
            "How the scales moved during training",
            "Mean absolute effective value over all layers at each evaluation. The axes do not begin at zero.",
        )
    ]


def _draw_density(axes, values: np.ndarray, index: int) -> None:
    if np.ptp(values) <= 1e-6 * np.abs(values).max():
        axes.plot(values[[0, 0]], (0, 1), transform=axes.get_xaxis_transform(), **run_look(index))
        return
    density, edges = np.histogram(values, bins=int(min(max(len(values) ** 0.5, 10), MOST_BINS)), density=True)
    axes.stairs(density, edges, color=PALETTE[index], linewidth=1.6, fill=False)
    axes.stairs(density, edges, color=PALETTE[index], alpha=0.15, fill=True)
