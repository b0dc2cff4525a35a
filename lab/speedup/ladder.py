"""Build each arm's ladder: its best fully annealed loss at every budget.

Pure functions on plain dataclasses. A point of a ladder is always the END of an annealed run: while the learning rate
is still high a run's loss says little about the model (and flatters the arm that anneals less).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, stdev
from typing import TypeVar

from lab.speedup.curve import Curve

Key = TypeVar("Key")


@dataclass(frozen=True)
class Endpoint:
    """The last validation of one finished run: loss in nats/token, seconds of training in all and per step.

    `variant` names the settings, other than the learning rate, that set it apart at its budget.
    """

    run: str
    arm: str
    tokens: int
    steps: int
    learning_rate: float
    seed: int
    loss: float
    seconds: float | None = None
    bits_per_byte: float | None = None
    variant: str = ""
    step_seconds: float | None = None


@dataclass(frozen=True)
class Candidate:
    """One learning rate (and variant) tried at a budget, with one endpoint per seed."""

    learning_rate: float
    variant: str
    endpoints: tuple[Endpoint, ...]

    @property
    def loss(self) -> float:
        """Return the loss averaged over seeds, nats/token."""
        return fmean(endpoint.loss for endpoint in self.endpoints)

    @property
    def standard_error(self) -> float | None:
        """Return the standard error of the loss over seeds, None for a single seed."""
        if len(self.endpoints) < 2:
            return None
        return stdev(endpoint.loss for endpoint in self.endpoints) / math.sqrt(len(self.endpoints))

    @property
    def seconds(self) -> float | None:
        """Return the training seconds averaged over seeds, None where a run recorded none."""
        return _mean_or_none([endpoint.seconds for endpoint in self.endpoints], positive=True)

    @property
    def bits_per_byte(self) -> float | None:
        """Return the bits/byte averaged over seeds, None where a run recorded none."""
        return _mean_or_none([endpoint.bits_per_byte for endpoint in self.endpoints])

    @property
    def seeds(self) -> tuple[int, ...]:
        """Return the seeds in order."""
        return tuple(sorted(endpoint.seed for endpoint in self.endpoints))


def share_seeds(ours: Candidate, theirs: Candidate) -> tuple[Candidate, Candidate]:
    """Return both with the seeds of the side that ran fewer, where the other ran these too; else as they are.

    A seed moves both arms alike (the same data order), so one arm's seed against another's mean would read its luck as a gap.
    """
    shared = set(ours.seeds) & set(theirs.seeds)
    if len(shared) < min(len(ours.seeds), len(theirs.seeds)):
        return ours, theirs
    ours, theirs = (
        replace(side, endpoints=tuple(endpoint for endpoint in side.endpoints if endpoint.seed in shared))
        for side in (ours, theirs)
    )
    return ours, theirs


@dataclass(frozen=True)
class BudgetPoint:
    """One budget (tokens, optimizer steps) of one arm: every candidate tried, and the best by mean loss over seeds."""

    arm: str
    tokens: int
    steps: int
    candidates: tuple[Candidate, ...]
    best: Candidate
    tried: tuple[float, ...]
    diverged: tuple[float, ...] = ()

    @property
    def edge(self) -> str | None:
        """Return where the best learning rate lies in the grid tried: lowest, highest, only, or None inside it."""
        if len(self.tried) == 1:
            return "only"
        return {self.tried[0]: "lowest", self.tried[-1]: "highest"}.get(self.best.learning_rate)


@dataclass(frozen=True)
class Ladder:
    """One arm's budgets in order of tokens, and the seconds that each run logged for one step, and their median.

    `step_seconds` is None, and `step_times` empty, where no speed was recorded.
    """

    arm: str
    points: tuple[BudgetPoint, ...]
    step_seconds: float | None = None
    step_times: tuple[float, ...] = ()

    @property
    def regressions(self) -> tuple[BudgetPoint, ...]:
        """Return the budgets whose loss is not below that of every smaller budget."""
        return tuple(
            point
            for index, point in enumerate(self.points)
            if index and point.best.loss >= min(other.best.loss for other in self.points[:index])
        )

    def curve(self, cost: str = "tokens") -> Curve | None:
        """Return loss against `tokens` or `seconds` (steps times the arm's seconds per step), None without seconds."""
        if cost == "tokens":
            costs = [float(point.tokens) for point in self.points]
        else:
            costs = [point.steps * self.step_seconds for point in self.points] if self.step_seconds else []
        return Curve.through(costs, [point.best.loss for point in self.points]) if costs else None

    @property
    def token_curve(self) -> Curve:
        """Return loss against tokens of a ladder that has a budget."""
        curve = self.curve("tokens")
        assert curve is not None, f"{self.arm} has no budget"
        return curve


def build_ladder(arm: str, endpoints: list[Endpoint], diverged: Sequence[tuple[int, float]] = ()) -> Ladder:
    """Return an arm's ladder, choosing at each budget the candidate with the lowest loss averaged over seeds.

    `diverged` lists (tokens, learning rate) of runs that diverged: they were tried, so they bound the grid, and a rate
    that lost a seed this way is not chosen while another is left.
    """
    points = []
    mine = [endpoint for endpoint in endpoints if endpoint.arm == arm]
    times = [endpoint.step_seconds for endpoint in mine if endpoint.step_seconds]
    for tokens in sorted({endpoint.tokens for endpoint in mine}):
        groups: dict = {}
        for endpoint in mine:
            if endpoint.tokens == tokens:
                groups.setdefault((endpoint.learning_rate, endpoint.variant), []).append(endpoint)
        candidates = tuple(
            Candidate(rate, variant, tuple(sorted(group, key=lambda item: item.seed)))
            for (rate, variant), group in sorted(groups.items())
        )
        lost = tuple(sorted({rate for budget, rate in diverged if budget == tokens}))
        tried = tuple(sorted({candidate.learning_rate for candidate in candidates} | set(lost)))
        best = choose_candidate(candidates, lost)
        points.append(BudgetPoint(arm, tokens, best.endpoints[0].steps, candidates, best, tried, lost))
    return Ladder(arm, tuple(points), median(times) if times else None, tuple(times))


def choose_candidate(candidates: tuple[Candidate, ...], diverged: tuple[float, ...]) -> Candidate:
    """Return the best candidate by `choose_best`; its loss is over all its seeds."""
    losses: list[dict[int, list[float]]] = []
    for candidate in candidates:
        by_seed: dict[int, list[float]] = {}
        for endpoint in candidate.endpoints:
            by_seed.setdefault(endpoint.seed, []).append(endpoint.loss)
        losses.append(by_seed)
    lost = {index for index, candidate in enumerate(candidates) if candidate.learning_rate in diverged}
    return candidates[choose_best(dict(enumerate(losses)), lost)]


def choose_best(losses: Mapping[Key, Mapping[int, Sequence[float]]], diverged: Collection[Key]) -> Key:
    """Return the key with the lowest mean loss, of those that did not diverge with any seed if there are any.

    Means are compared over seeds that both sides ran, so that a lucky seed decides nothing. First come the keys with the most
    seeds, over the seeds that all of these ran. A key with fewer is then compared with the best so far over the seeds that the
    two share: it leaves the choice among the others as it was.

    Args:
        losses: {key: {seed: final losses in nats/token}}.
        diverged: keys of which a run diverged.
    """
    usable = [key for key in losses if key not in diverged] or list(losses)
    most = max(len(losses[key]) for key in usable)
    best = _lowest([key for key in usable if len(losses[key]) == most], losses)
    for key in sorted((key for key in usable if len(losses[key]) < most), key=lambda key: -len(losses[key])):
        best = _lowest([best, key], losses)
    return best


def _lowest(keys: list[Key], losses: Mapping[Key, Mapping[int, Sequence[float]]]) -> Key:
    """Return the key with the lowest mean over the seeds that all keys have, over all of each where they share none."""
    shared = set.intersection(*(set(losses[key]) for key in keys))

    def mean(key: Key) -> float:
        return fmean(loss for seed, found in losses[key].items() if not shared or seed in shared for loss in found)

    return min(keys, key=mean)


def _mean_or_none(values: list, positive: bool = False) -> float | None:
    usable = [value for value in values if value is not None and math.isfinite(value) and (value > 0 or not positive)]
    return fmean(usable) if values and len(usable) == len(values) else None
