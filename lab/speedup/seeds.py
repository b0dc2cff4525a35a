"""Resample seeds: what the speedup would have been with other seeds, learning rates chosen anew in every draw."""

import itertools
import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from lab.speedup.ladder import Candidate, Ladder, choose_best
from lab.speedup.significance import student_quantile

ENUMERATE_AT_MOST = 1000
RANDOM_DRAWS = 1000


@dataclass(frozen=True)
class Draw:
    """Hold one resample of the seeds: the ladders it gives, and its probability among all resamples."""

    probability: float
    ladders: dict[str, Ladder]


@dataclass(frozen=True)
class Interval:
    """Hold an interval of a ratio over seeds; `bounded` is the share of resamples that gave only a bound."""

    low: float
    high: float
    level: float
    seeds: int
    paired: bool
    bounded: float


@dataclass(frozen=True)
class Resamples:
    """Hold the resamples of some ladders; `paired` says that one draw of seeds serves all arms."""

    draws: tuple[Draw, ...]
    seeds: int
    paired: bool

    def interval(self, ratio: float, values: list[tuple[float, bool] | None], level: float = 0.95) -> Interval | None:
        """Return the interval around a ratio; `values` holds what each draw gives: (ratio, is it a bound) or None.

        Student's t around the logarithm of the ratio, with the standard deviation of the resamples enlarged by
        sqrt(n / (n - 1)): with n of three to five the percentiles of the resamples themselves cover far too little
        (at most 75% of the time for n = 3, however they are taken). None if a resample gives no ratio.
        """
        measured = [(draw.probability, value) for draw, value in zip(self.draws, values, strict=True)]
        if ratio <= 0 or any(value is None or value[0] <= 0 for _, value in measured):
            return None
        logs = [math.log(value[0]) for _, value in measured]
        weights = [probability for probability, _ in measured]
        mean = sum(weight * value for weight, value in zip(weights, logs, strict=True))
        variance = sum(weight * (value - mean) ** 2 for weight, value in zip(weights, logs, strict=True))
        error = math.sqrt(variance * self.seeds / (self.seeds - 1))
        reach = min(student_quantile((1 + level) / 2, self.seeds - 1) * error, 50.0)
        bounded = sum(probability for probability, value in measured if value[1])
        return Interval(ratio * math.exp(-reach), ratio * math.exp(reach), level, self.seeds, self.paired, round(bounded, 6))


def resample_seeds(ladders: list[Ladder], random_seed: int = 0) -> tuple[Resamples | None, str]:
    """Return the resamples of the seeds behind some ladders, or None and the reason why there are none.

    Seeds are drawn with replacement and stand for all runs that used them, so what a seed shares (data order, initial
    weights) stays together across budgets and learning rates, and across arms where these ran the same seeds. In each
    draw every candidate's loss is averaged over the drawn seeds and the best candidate of each budget is chosen anew.
    A candidate without any drawn seed (it ran with fewer) is left out of the draw's choice.
    """
    single = [point for ladder in ladders for point in ladder.points if len(set(point.best.seeds)) < 2]
    if single:
        return None, f"no interval: one seed only at some budgets (first: {single[0].arm}, {single[0].tokens:,} tokens)"
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
        points.append(replace(point, candidates=candidates, best=choose_best(candidates, point.diverged)))
    return replace(ladder, points=tuple(points))


def _redraw_candidate(candidate: Candidate, counts: Counter) -> Candidate | None:
    drawn = tuple(endpoint for endpoint in candidate.endpoints for _ in range(counts[endpoint.seed]))
    return replace(candidate, endpoints=drawn) if drawn else None
