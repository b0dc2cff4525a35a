"""Draw the loss against the rate, a panel for each arm and parametrization, a curve for each size."""

from pathlib import Path

from lab.figures import MARKERS, PALETTE, STYLE, Plot, add_legend, literal, plt, save_plot, tick_log_axis
from lab.transfer.series import Series, Size
from lab.words import format_rate


def draw_rates(series: list[Series], out: Path) -> list[Plot]:
    """Write rates.png and rates.svg."""
    arms = list(dict.fromkeys(item.arm for item in series))
    columns = list(dict.fromkeys(item.parametrization for item in sorted(series, key=lambda item: item.parametrization)))
    sizes = sorted({size for item in series for size in item.optima})
    shape = len(arms), len(columns)
    with plt.rc_context(STYLE | {"figure.figsize": (1.4 + 3.4 * shape[1], 1.2 + 2.8 * shape[0])}):
        figure, grid = plt.subplots(*shape, squeeze=False, sharex="row", sharey="row", layout="constrained")
        for axes in grid.flat:
            axes.set_visible(False)
        handles = {}
        for item in series:
            axes = grid[arms.index(item.arm)][columns.index(item.parametrization)]
            axes.set_visible(True)
            axes.set_title(f"{literal(item.arm)}, {item.parametrization}", fontsize=12)
            axes.set_xscale("log", base=2)
            axes.set_xlabel("learning rate")
            for size in item.optima:
                handles[size] = draw_size(axes, item, size, sizes)
            axes.set_ylabel("validation loss, nats/token")
            tick_log_axis(axes.xaxis, format_rate)
        add_legend(figure, grid[0][0], [handles[size] for size in sizes])
        caption = (
            "Final validation loss of annealed runs, mean over seeds. Stars: the vertex of a parabola in log(rate) through the "
            "points within two octaves of the best; bars: its standard error over seeds. Hollow: the best rate is the grid's end."
        )
        return [save_plot(figure, out / "rates.png", "Loss against learning rate by size", caption)]


def draw_size(axes, series: Series, size: Size, sizes: list[Size]):
    """Draw one size's curve and its optimum; return the line for the legend."""
    optimum, index = series.optima[size], sizes.index(size)
    colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
    rates = [2**octave for octave, _ in optimum.curve]
    (line,) = axes.plot(rates, [loss for _, loss in optimum.curve], color=colour, marker=marker, markersize=5)
    line.set_label(name_size(size, sizes))
    error = optimum.error or 0.0
    bars = [[optimum.rate - 2 ** (optimum.octave - error)], [2 ** (optimum.octave + error) - optimum.rate]]
    face = colour if optimum.is_inside else "none"
    axes.errorbar(
        optimum.rate,
        optimum.loss,
        xerr=bars,
        color=colour,
        marker="*",
        markersize=15,
        markerfacecolor=face,
        markeredgecolor="black",
    )
    return line


def name_size(size: Size, sizes: list[Size]) -> str:
    """Return what sets a size apart from the others."""
    parts = [("width", size.width, {s.width for s in sizes}), ("layers", size.depth, {s.depth for s in sizes})]
    parts.append(("steps", size.steps, {s.steps for s in sizes}))
    return ", ".join(f"{name} {value}" for name, value, seen in parts if len(seen) > 1) or f"width {size.width}"
