"""Compute the speedup between two ladders: cost at equal loss, gap at equal tokens, and what the seeds allow to say.

Pure functions on the dataclasses of `analysis.ladder`. Ratios are baseline cost / challenger cost: above 1 the
challenger (nGPT) needs less. Losses are nats/token, costs tokens or training seconds.
"""

import math
from dataclasses import dataclass, replace
from statistics import median, stdev

import numpy as np

from analysis.ladder import BudgetPoint, Candidate, Curve, Ladder


@dataclass(frozen=True)
class Speedup:
    """Hold the cost ratio at one loss; relation `>` or `<` marks a bound, whose reason is in `note`.

    `at_arm` is the arm whose budget has exactly this loss; a cost is None where only a bound is known.
    """

    loss: float
    at_arm: str
    at_tokens: int
    baseline_cost: float | None
    challenger_cost: float | None
    ratio: float
    relation: str
    note: str = ""


@dataclass(frozen=True)
class Gap:
    """Hold challenger minus baseline at equal tokens (negative: the challenger is better).

    `standard_error` is over seeds, None where either side has a single seed; `paired` says seed by seed.
    """

    tokens: int
    nats_per_token: float
    bits_per_byte: float | None
    standard_error: float | None
    standard_error_bits_per_byte: float | None
    paired: bool
    baseline_seeds: int
    challenger_seeds: int


@dataclass(frozen=True)
class Interval:
    """Hold a percentile interval of the speedup over seeds; `bounded` is the share of resamples that gave a bound."""

    low: float
    high: float
    level: float
    resamples: int
    seeds: int
    paired: bool
    bounded: float


@dataclass(frozen=True)
class Comparison:
    """Hold everything that two ladders say about each other; `time_*` are None without training seconds."""

    baseline: str
    challenger: str
    token_headline: Speedup
    token_rows: tuple[Speedup, ...]
    time_headline: Speedup | None
    time_rows: tuple[Speedup, ...]
    gaps: tuple[Gap, ...]
    interval: Interval | None
    interval_note: str
    step_seconds: dict
    step_time_ratio: float | None


def compute_speedup(loss: float, baseline: Curve, challenger: Curve, at_arm: str, at_tokens: int) -> Speedup | None:
    """Return the cost ratio at a loss, a bound where one curve does not span it, None where neither does."""
    ours, theirs = baseline.reach(loss), challenger.reach(loss)
    if "within" not in (ours.side, theirs.side):
        return None
    ratio = ours.cost / theirs.cost
    base = ours.cost if ours.side == "within" else None
    other = theirs.cost if theirs.side == "within" else None
    # A cost below the smallest budget makes the ratio larger (challenger) or smaller (baseline) than its bound.
    relation, note = "=", ""
    if theirs.side != "within":
        relation, note = (">", "challenger below") if theirs.side == "below" else ("<", "challenger never")
    elif ours.side != "within":
        relation, note = ("<", "baseline below") if ours.side == "below" else (">", "baseline never")
    return Speedup(loss, at_arm, at_tokens, base, other, ratio, relation, note)


def compute_rows(baseline: Ladder, challenger: Ladder, cost: str) -> tuple[Speedup, ...]:
    """Return the speedup at every budget of either arm that improved on its smaller ones, highest loss first."""
    curves = baseline.curve(cost), challenger.curve(cost)
    if None in curves:
        return ()
    rows = [
        compute_speedup(point.best.loss, *curves, ladder.arm, point.tokens)
        for ladder in (baseline, challenger)
        for point in ladder.points
        if point not in ladder.regressions
    ]
    return tuple(sorted((row for row in rows if row), key=lambda row: (-row.loss, row.at_arm)))


def compute_headline(baseline: Ladder, challenger: Ladder, cost: str) -> Speedup | None:
    """Return the speedup at the lowest loss that both arms reach, or None without the cost."""
    curves = baseline.curve(cost), challenger.curve(cost)
    if None in curves:
        return None
    ends = [min(ladder.points, key=lambda point: (point.best.loss, point.tokens)) for ladder in (baseline, challenger)]
    # The lowest loss both reach is the worse of the two best losses; on a tie the baseline's.
    end = max(ends, key=lambda point: point.best.loss)
    return compute_speedup(end.best.loss, *curves, end.arm, end.tokens)


def compute_gaps(baseline: Ladder, challenger: Ladder) -> tuple[Gap, ...]:
    """Return challenger minus baseline at every budget that both arms ran."""
    theirs = {point.tokens: point for point in challenger.points}
    return tuple(_gap(point, theirs[point.tokens]) for point in baseline.points if point.tokens in theirs)


def _gap(baseline: BudgetPoint, challenger: BudgetPoint) -> Gap:
    ours, theirs = baseline.best, challenger.best
    bits = None
    if ours.bits_per_byte is not None and theirs.bits_per_byte is not None:
        bits = theirs.bits_per_byte - ours.bits_per_byte
    paired = ours.seeds == theirs.seeds and len(set(ours.seeds)) == len(ours.seeds) > 1
    return Gap(
        baseline.tokens,
        theirs.loss - ours.loss,
        bits,
        _standard_error(ours, theirs, paired, "loss"),
        None if bits is None else _standard_error(ours, theirs, paired, "bits_per_byte"),
        paired,
        len(ours.endpoints),
        len(theirs.endpoints),
    )


def _standard_error(ours: Candidate, theirs: Candidate, paired: bool, name: str) -> float | None:
    """Return the standard error of a difference of means: of seed-wise differences where the seeds are the same."""
    a = [getattr(endpoint, name) for endpoint in ours.endpoints]
    b = [getattr(endpoint, name) for endpoint in theirs.endpoints]
    if len(a) < 2 or len(b) < 2:
        return None
    if paired:
        return stdev(y - x for x, y in zip(a, b, strict=True)) / math.sqrt(len(a))
    return math.sqrt(stdev(a) ** 2 / len(a) + stdev(b) ** 2 / len(b))


def bootstrap_headline(
    baseline: Ladder, challenger: Ladder, resamples: int = 2000, level: float = 0.95, random_seed: int = 0
) -> tuple[Interval | None, str]:
    """Return a bootstrap interval of the token headline over seeds, or None and the reason why there is none.

    Learning rates stay as chosen. Where all budgets of both arms share one set of seeds they are resampled
    together, which keeps what a seed shares (data order, initialization) across arms and budgets.
    """
    points = baseline.points + challenger.points
    if compute_headline(baseline, challenger, "tokens").relation != "=":
        return None, "no interval: the speedup is a bound, not a measurement"
    single = [point for point in points if len(point.best.endpoints) < 2]
    if single:
        return None, f"no interval: one seed only at some budgets (first: {single[0].arm}, {single[0].tokens:,} tokens)"
    seed_sets = {point.best.seeds for point in points}
    paired = len(seed_sets) == 1 and len(set(points[0].best.seeds)) == len(points[0].best.seeds)
    generator = np.random.default_rng(random_seed)
    shared_count = len(points[0].best.endpoints)
    ratios, bounded = [], 0
    for _ in range(resamples):
        shared = generator.integers(0, shared_count, shared_count) if paired else None
        headline = compute_headline(
            _resample(baseline, generator, shared), _resample(challenger, generator, shared), "tokens"
        )
        ratios.append(headline.ratio)
        bounded += headline.relation != "="
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    seeds = min(len(point.best.endpoints) for point in points)
    return Interval(float(low), float(high), level, resamples, seeds, paired, bounded / resamples), ""


def _resample(ladder: Ladder, generator, shared) -> Ladder:
    points = []
    for point in ladder.points:
        endpoints = point.best.endpoints
        chosen = shared if shared is not None else generator.integers(0, len(endpoints), len(endpoints))
        best = replace(point.best, endpoints=tuple(endpoints[index] for index in chosen))
        points.append(replace(point, best=best))
    return Ladder(ladder.arm, tuple(points))


def list_step_seconds(ladder: Ladder) -> list[float]:
    """Return the training seconds per step of every run of an arm that recorded them."""
    return [
        endpoint.seconds / endpoint.steps
        for point in ladder.points
        for candidate in point.candidates
        for endpoint in candidate.endpoints
        if endpoint.seconds and endpoint.steps
    ]


def compare_ladders(baseline: Ladder, challenger: Ladder) -> Comparison:
    """Return every number that two ladders with at least one budget each say about each other."""
    interval, note = bootstrap_headline(baseline, challenger)
    times = {ladder.arm: list_step_seconds(ladder) for ladder in (baseline, challenger)}
    step_seconds = {arm: median(values) if values else None for arm, values in times.items()}
    ours, theirs = step_seconds[baseline.arm], step_seconds[challenger.arm]
    return Comparison(
        baseline.arm,
        challenger.arm,
        compute_headline(baseline, challenger, "tokens"),
        compute_rows(baseline, challenger, "tokens"),
        compute_headline(baseline, challenger, "seconds"),
        compute_rows(baseline, challenger, "seconds"),
        compute_gaps(baseline, challenger),
        interval,
        note,
        step_seconds,
        theirs / ours if ours and theirs else None,
    )
