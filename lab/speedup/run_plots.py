"""Draw single runs: the pair behind the headline, and how the largest budget was trained."""

import math
from pathlib import Path

from matplotlib.ticker import FuncFormatter, MaxNLocator

from lab.figures import Plot, add_legend, find_looks, literal, plt, save_plot, tick_log_axis
from lab.runs import Run
from lab.speedup.ladder import BudgetPoint
from lab.speedup.loss_plots import choose_loss_range
from lab.speedup.report import Section
from lab.words import format_rate, format_tokens

FEWEST_VALIDATIONS = 4  # fewer are no curve


def _find_runs(section: Section, point: BudgetPoint) -> list[Run]:
    """Return the runs of a point's best candidate, one per seed."""
    names = {endpoint.run for endpoint in point.best.endpoints}
    return [run for run in section.runs if run.name in names]


def draw_headline_pair(section: Section, out: Path) -> list[Plot]:
    """Draw whole validation curves of the two runs behind the headline: equal final loss, different tokens.

    Nothing where a run was validated too seldom to have a curve.
    """
    comparison = next((item for item in section.comparisons if item.token_headline.relation == "="), None)
    if comparison is None:
        return []
    row, looks = comparison.token_headline, find_looks(section.ladders)
    ours, theirs = row.baseline_cost, row.challenger_cost
    assert ours and theirs, "a ratio that is no bound has both costs"
    pair = [
        (arm, cost, min(section.ladders[arm].points, key=lambda item: abs(math.log(item.tokens / cost))))
        for arm, cost in ((comparison.baseline, ours), (comparison.challenger, theirs))
    ]
    if any(len(run.curve) < FEWEST_VALIDATIONS for _, _, point in pair for run in _find_runs(section, point)):
        return []
    figure, axes = plt.subplots(layout="constrained")
    longest, highest = 0.0, row.loss
    for arm, cost, point in pair:
        longest = max(longest, cost, point.tokens)
        label: str | None = f"{literal(arm)}, budget {format_tokens(point.tokens)}"
        for run in _find_runs(section, point):
            curve = [(item.tokens, item.loss) for item in run.curve if item.tokens]
            axes.plot(*zip(*curve, strict=True), color=looks[arm].colour, linewidth=1.6, alpha=0.8, label=label)
            axes.plot(*curve[-1], color=looks[arm].colour, marker=looks[arm].marker, markersize=6)
            label = None
            highest = max(highest, *(loss for _, loss in curve if math.isfinite(loss)))
        axes.axvline(cost, color=looks[arm].colour, linestyle=":", linewidth=1.2)
    axes.axhline(row.loss, color="grey", linestyle="--", linewidth=1)
    high = max(min(highest, choose_loss_range(section)[1] + 0.5), row.loss + 0.02)
    axes.set_ylim(row.loss - 0.25 * (high - row.loss), high + 0.05 * (high - row.loss))
    height = row.loss - 0.14 * (high - row.loss)
    axes.annotate("", (theirs, height), (ours, height), arrowprops={"arrowstyle": "->"})
    nearest = min(ours, theirs)
    axes.annotate(f"token speedup {row.ratio:.2f}x ", (nearest, height), ha="right", va="center")
    axes.set_xlim(0, 1.05 * longest)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tokens(value)))
    axes.set_xlabel("training tokens")
    axes.set_ylabel("validation loss (nats/token)")
    add_legend(figure, axes)
    return [
        save_plot(
            figure,
            out / "headline_pair.png",
            "The pair of runs at equal loss",
            f"The budgets nearest to the headline (every seed): dashed, the loss of {row.loss:.4g} nats/token that both "
            "arms reach; dotted, the tokens each needs for it, read between its budgets. A curve of a larger budget "
            "lies higher for most of its way and falls at its end, when the learning rate does.",
        )
    ]


def draw_training(section: Section, out: Path) -> list[Plot]:
    """Draw training loss, gradient norm and learning rate of each arm's largest budget, if the runs logged them."""
    panels = (("loss", "training loss (nats/token)"), ("grad_norm", "gradient norm"), ("learning_rate", "learning rate"))
    looks = find_looks(section.ladders)
    figure, grid = plt.subplots(3, 1, figsize=(6.4, 7.2), sharex=True, layout="constrained")
    drawn = 0
    for axes, (attribute, words) in zip(grid, panels, strict=True):
        values: list[float] = []
        for arm, ladder in section.ladders.items():
            point = ladder.points[-1]
            label: str | None = f"{literal(arm)}, {format_tokens(point.tokens)}, rate {format_rate(point.best.learning_rate)}"
            for run in _find_runs(section, point):
                curve = [(step.tokens, value) for step in run.steps if math.isfinite(value := getattr(step, attribute) or math.nan)]
                if len(curve) > 1:
                    axes.plot(*zip(*curve, strict=True), color=looks[arm].colour, linewidth=1.2, alpha=0.8, label=label)
                    label, drawn = None, drawn + 1
                    values += [value for _, value in curve]
        axes.set_ylabel(words)
        if attribute == "grad_norm" and values and min(values) > 0 and max(values) > 10 * min(values):
            axes.set_yscale("log")
            tick_log_axis(axes.yaxis, lambda value: f"{value:g}")
        elif attribute == "learning_rate":
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_rate(value)))
    if not drawn:
        plt.close(figure)
        return []
    grid[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tokens(value)))
    grid[-1].set_xlabel("training tokens")
    add_legend(figure, grid[0])
    return [
        save_plot(
            figure,
            out / "training.png",
            "How the largest budgets were trained",
            "Training loss, norm of the gradient before clipping and learning rate of each arm's largest budget at its best "
            "learning rate, one line per seed, as logged. Gradient norms of different arms are not on one scale.",
        )
    ]
