"""What a few seeds allow to say: resampled speedups, learning rates chosen anew in every draw, and tests of equal means."""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev, variance

import numpy as np

from lab.speedup.ladder import Candidate, Ladder, choose_candidate

ENUMERATE_AT_MOST = 1000
RANDOM_DRAWS = 1000


@dataclass(frozen=True)
class Draw:
    """One resample of the seeds: the ladders it gives, and its probability among all resamples."""

    probability: float
    ladders: dict[str, Ladder]


@dataclass(frozen=True)
class Interval:
    """An interval of a ratio over seeds; `bounded` is the share of resamples that gave only a bound.

    `reading_error` is the part of its half-width, in log(ratio), that is not noise of seeds: the ladder read between budgets.
    """

    low: float
    high: float
    level: float
    seeds: int
    paired: bool
    bounded: float
    reading_error: float = 0.0

    @property
    def holds_one(self) -> bool:
        """Return whether the interval includes 1: no difference."""
        return self.low <= 1 <= self.high

    def for_time(self, ratio: float, times: tuple[Sequence[float], Sequence[float]]) -> "Interval | None":
        """Return the interval of a ratio of seconds, from this one of tokens and each run's seconds per step, by arm.

        An arm's step takes the median over its runs; the noise of both medians (standard error 1.25 times that of a mean) is
        added in squares. None for an arm with a single run: it says nothing of the noise.
        """
        if min(map(len, times)) < 2:
            return None
        errors = [1.2533 * stdev(map(math.log, part)) / math.sqrt(len(part)) for part in times]
        timing = student_quantile((1 + self.level) / 2, min(map(len, times)) - 1) * math.hypot(*errors)
        over_seeds = math.log(self.high / self.low) / 2 - self.reading_error
        reach = math.hypot(over_seeds, timing) + self.reading_error
        return replace(self, low=ratio * math.exp(-reach), high=ratio * math.exp(reach))


@dataclass(frozen=True)
class Resamples:
    """The resamples of some ladders; `paired` says that one draw of seeds serves all arms."""

    draws: tuple[Draw, ...]
    seeds: int
    paired: bool

    def interval(
        self, ratio: float, values: list[tuple[float, bool] | None], reading_error: float = 0.0, level: float = 0.95
    ) -> Interval | None:
        """Return the interval around a ratio; `values` holds what each draw gives: (ratio, is it a bound) or None.

        Student's t around the logarithm of the ratio, with the standard deviation of the resamples enlarged by
        sqrt(n / (n - 1)): with n of three to five the percentiles of the resamples themselves cover far too little
        (at most 75% of the time for n = 3, however they are taken). `reading_error` is added on both sides. None if a
        resample gives no ratio.
        """
        drawn = zip(self.draws, values, strict=True)
        measured = [(draw.probability, value) for draw, value in drawn if value is not None and value[0] > 0]
        if ratio <= 0 or len(measured) < len(values):
            return None
        logs = [math.log(value[0]) for _, value in measured]
        weights = [probability for probability, _ in measured]
        mean = sum(weight * value for weight, value in zip(weights, logs, strict=True))
        spread = sum(weight * (value - mean) ** 2 for weight, value in zip(weights, logs, strict=True))
        error = math.sqrt(spread * self.seeds / (self.seeds - 1))
        reach = min(student_quantile((1 + level) / 2, self.seeds - 1) * error + reading_error, 50.0)
        bounded = round(sum(probability for probability, value in measured if value[1]), 6)
        ends = ratio * math.exp(-reach), ratio * math.exp(reach)
        return Interval(*ends, level, self.seeds, self.paired, bounded, reading_error)


def resample_seeds(ladders: list[Ladder], random_seed: int = 0) -> tuple[Resamples | None, str]:
    """Return the resamples of the seeds behind some ladders, or None and the reason why there are none.

    Seeds are drawn with replacement and stand for all runs that used them, so what a seed shares (data order, initial
    weights) stays together across budgets and learning rates, and across arms where these ran the same seeds. In each
    draw every candidate's loss is averaged over the drawn seeds and the best candidate of each budget is chosen anew.
    A candidate without any drawn seed (it ran with fewer) is left out of the draw's choice.
    """
    single = [point for ladder in ladders for point in ladder.points if len(set(point.best.seeds)) < 2]
    if single:
        return None, f"No interval: one seed only at some budgets (first: {single[0].arm}, {single[0].tokens:,} tokens)"
    pools = [_collect_seeds(ladder) for ladder in ladders]
    paired = all(pool == pools[0] for pool in pools)
    distinct = pools[:1] if paired else pools
    draws = []
    for probability, counts in _draw_counts(distinct, np.random.default_rng(random_seed)):
        per_arm = counts * len(ladders) if paired else counts
        drawn = {ladder.arm: _redraw(ladder, count) for ladder, count in zip(ladders, per_arm, strict=True)}
        draws.append(Draw(probability, drawn))
    seeds = min(len(set(point.best.seeds)) for ladder in ladders for point in ladder.points)
    return Resamples(tuple(draws), seeds, paired), ""


def _collect_seeds(ladder: Ladder) -> tuple[int, ...]:
    return tuple(sorted({seed for point in ladder.points for item in point.candidates for seed in item.seeds}))


def _draw_counts(pools: list[tuple[int, ...]], generator) -> list[tuple[float, list[Counter]]]:
    """Return (probability, how often each seed was drawn in each pool): all possible draws if few, else random ones."""
    if math.prod(math.comb(2 * len(pool) - 1, len(pool)) for pool in pools) > ENUMERATE_AT_MOST:
        return [
            (1 / RANDOM_DRAWS, [Counter(generator.choice(pool, len(pool)).tolist()) for pool in pools]) for _ in range(RANDOM_DRAWS)
        ]
    draws = []
    for chosen in itertools.product(*(itertools.combinations_with_replacement(pool, len(pool)) for pool in pools)):
        counts = [Counter(seeds) for seeds in chosen]
        # Of the n ** n ordered draws of a pool, n! / (a! b! ...) contain its seeds a, b, ... times.
        ways = [
            math.factorial(len(pool)) / math.prod(map(math.factorial, count.values())) / len(pool) ** len(pool)
            for pool, count in zip(pools, counts, strict=True)
        ]
        draws.append((math.prod(ways), counts))
    return draws


def _redraw(ladder: Ladder, counts: Counter) -> Ladder:
    """Return the ladder with every candidate averaged over the drawn seeds and the best one chosen anew."""
    points = []
    for point in ladder.points:
        drawn = tuple(candidate for item in point.candidates if (candidate := _redraw_candidate(item, counts)))
        candidates = drawn or point.candidates
        points.append(replace(point, candidates=candidates, best=choose_candidate(candidates, point.diverged)))
    return replace(ladder, points=tuple(points))


def _redraw_candidate(candidate: Candidate, counts: Counter) -> Candidate | None:
    drawn = tuple(endpoint for endpoint in candidate.endpoints for _ in range(counts[endpoint.seed]))
    return replace(candidate, endpoints=drawn) if drawn else None


@functools.cache
def student_quantile(probability: float, degrees_of_freedom: float) -> float:
    """Return the t with P(T < t) = probability, T of Student's distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, probability))


@dataclass(frozen=True)
class MeanTest:
    """A one-sided test of "the difference is below zero": the difference and its standard error in the unit of the values.

    `p_value` is None where the values do not vary.
    """

    name: str
    difference: float
    standard_error: float
    degrees_of_freedom: float
    p_value: float | None

    def is_below(self, level: float = 0.025) -> bool:
        """Return whether the difference is below zero beyond what its noise explains."""
        return self.difference < 0 if self.p_value is None else self.p_value < level


def compare_means(ours: Sequence[float], theirs: Sequence[float], paired: bool) -> MeanTest | None:
    """Return the test of "theirs is below ours", None with fewer than two values on a side.

    Paired: Student's t on the differences, value by value (the same seed has the same data order). Else Welch's t,
    which does not assume equal variances.
    """
    if min(len(ours), len(theirs)) < 2:
        return None
    from scipy import stats  # takes a second to import

    difference = fmean(theirs) - fmean(ours)
    if paired:
        error = stdev(b - a for a, b in zip(ours, theirs, strict=True)) / math.sqrt(len(ours))
        freedom = len(ours) - 1.0
    else:
        error = math.sqrt(sum(variance(values) / len(values) for values in (ours, theirs)))
        freedom = min(len(ours), len(theirs)) - 1.0
    if error == 0:
        return MeanTest("paired t" if paired else "Welch t", difference, error, freedom, None)
    if paired:
        test = stats.ttest_rel(theirs, ours, alternative="less")
    else:
        test = stats.ttest_ind(theirs, ours, equal_var=False, alternative="less")
    return MeanTest("paired t" if paired else "Welch t", difference, error, float(test.df), float(test.pvalue))
