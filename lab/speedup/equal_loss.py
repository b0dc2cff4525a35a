"""What every arm needs for one loss: all arms of a section in one table, and how many times fewer tokens than the baseline."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lab.speedup.curve import Reach
from lab.speedup.decomposition import Ratio, divide
from lab.speedup.ladder import Ladder
from lab.speedup.seeds import resample_seeds


@dataclass(frozen=True)
class Need:
    """The tokens of one arm at the common loss, and the baseline's over them; `at_most`: its smallest budget is better already."""

    arm: str
    tokens: float
    at_most: bool
    speedup: Ratio


@dataclass(frozen=True)
class EqualLoss:
    """Every arm at one loss (nats/token), the thriftiest first; `note` says why there are no intervals, if so."""

    loss: float
    baseline: str
    needs: tuple[Need, ...]
    note: str


def measure_needs(ladders: Mapping[str, Ladder]) -> EqualLoss | None:
    """Return what each arm needs for the lowest loss that all of them reach, with intervals over seeds; None for fewer than three.

    The first arm is the baseline. In every draw of seeds the loss is found anew, and so are the rates.
    """
    if len(ladders) < 3:
        return None
    loss, reached = reach_together(ladders)
    baseline = next(iter(ladders))
    ratios = {arm: divide(reached[baseline], reach) for arm, reach in reached.items()}
    resamples, note = resample_seeds(list(ladders.values()))
    if resamples:
        drawn = [reach_together(draw.ladders)[1] for draw in resamples.draws]
        for arm, ratio in ratios.items():
            if arm != baseline and ratio.relation == "=" and ratio.value:
                found = [divide(draw[baseline], draw[arm]) for draw in drawn]
                values = [(item.value, item.relation != "=") if item.value else None for item in found]
                ratios[arm] = replace(ratio, interval=resamples.interval(ratio.value, values, ratio.reading_error))
    needs = [Need(arm, reach.cost, reach.side == "below", ratios[arm]) for arm, reach in reached.items()]
    return EqualLoss(loss, baseline, tuple(sorted(needs, key=lambda need: need.tokens)), note)


def reach_together(ladders: Mapping[str, Ladder]) -> tuple[float, dict[str, Reach]]:
    """Return the lowest loss that all ladders reach, and where each does."""
    curves = {arm: curve for arm, ladder in ladders.items() if (curve := ladder.curve())}
    loss = max(curve.losses[-1] for curve in curves.values())
    return loss, {arm: curve.reach(loss) for arm, curve in curves.items()}
