"""Build each arm's ladder: its best fully annealed loss at every budget, and the budget needed for a loss.

Pure functions on plain dataclasses. A point of a ladder is always the END of an annealed run: while the learning rate
is still high a run's loss says little about the model (and flatters the arm that anneals less).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev


@dataclass(frozen=True)
class Endpoint:
    """Hold the last validation of one finished run; `variant` names settings that differ besides the learning rate."""

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
    """Hold one learning rate (and variant) tried at a budget, with one endpoint per seed."""

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


@dataclass(frozen=True)
class BudgetPoint:
    """Hold one budget of one arm: every candidate tried, and the best by mean loss over seeds."""

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
    """Hold one arm's budgets in order of tokens, and the seconds that one of its steps takes (None: not recorded)."""

    arm: str
    points: tuple[BudgetPoint, ...]
    step_seconds: float | None = None

    @property
    def regressions(self) -> tuple[BudgetPoint, ...]:
        """Return the budgets whose loss is not below that of every smaller budget."""
        return tuple(
            point
            for index, point in enumerate(self.points)
            if index and point.best.loss >= min(other.best.loss for other in self.points[:index])
        )

    def curve(self, cost: str = "tokens") -> "Curve | None":
        """Return loss against `tokens` or `seconds` (steps times the arm's seconds per step), None without seconds."""
        if not self.points or (cost == "seconds" and not self.step_seconds):
            return None
        costs = [point.tokens if cost == "tokens" else point.steps * self.step_seconds for point in self.points]
        return Curve.through(costs, [point.best.loss for point in self.points])


@dataclass(frozen=True)
class Reach:
    """Hold the cost at which a curve reaches a loss; side is `within`, `below` (cheaper than tried) or `never`.

    For `below` the cost is an upper bound (the smallest tried), for `never` a lower bound (the largest tried).
    """

    cost: float
    side: str


@dataclass(frozen=True)
class Curve:
    """Hold a non-increasing loss against cost, interpolated by monotone cubics in log(cost)."""

    costs: tuple[float, ...]
    losses: tuple[float, ...]

    @classmethod
    def through(cls, costs, losses) -> "Curve":
        """Return the running minimum through the points: a larger budget is never credited with a higher loss."""
        ordered = sorted(zip(costs, losses, strict=True))
        envelope, lowest = [], math.inf
        for _, loss in ordered:
            lowest = min(lowest, loss)
            envelope.append(lowest)
        return cls(tuple(float(cost) for cost, _ in ordered), tuple(envelope))

    def reach(self, loss: float) -> Reach:
        """Return the smallest cost at which the curve is at or below a loss; never extrapolate."""
        if loss > self.losses[0]:
            return Reach(self.costs[0], "below")
        index = next((i for i, value in enumerate(self.losses) if value <= loss), None)
        if index is None:
            return Reach(self.costs[-1], "never")
        if index == 0 or self.losses[index] == loss:
            return Reach(self.costs[index], "within")
        return Reach(math.exp(self._interpolate(index, loss)), "within")

    def _interpolate(self, index: int, loss: float) -> float:
        """Return log(cost) at a loss between budgets index - 1 and index.

        The cost is interpolated as a function of the loss (both are monotone), by piecewise cubic Hermite polynomials
        with the slopes of Fritsch and Butland (1984): a chord would overestimate the cost on a convex curve.
        """
        before, here, after = (self._segment(number) for number in (index - 1, index, index + 1))
        width = here[0]
        left, right = _node_slope(here, before, after), _node_slope(here, after, before)
        low, high = math.log(self.costs[index - 1]), math.log(self.costs[index])
        share = (loss - self.losses[index - 1]) / width
        return (
            low * (1 + 2 * share) * (1 - share) ** 2
            + high * share**2 * (3 - 2 * share)
            + width * share * (1 - share) * (left * (1 - share) - right * share)
        )

    def _segment(self, index: int) -> tuple[float, float] | None:
        """Return (change of loss, slope of log(cost)) between two budgets, None outside the curve or where it is flat."""
        if not 1 <= index < len(self.losses) or self.losses[index] == self.losses[index - 1]:
            return None
        width = self.losses[index] - self.losses[index - 1]
        return width, math.log(self.costs[index] / self.costs[index - 1]) / width


def _node_slope(here: tuple, neighbour: tuple | None, opposite: tuple | None) -> float:
    """Return the slope at the node between two segments (width, slope), or at an end, where there is no neighbour."""
    (width, slope), other = here, neighbour or opposite
    if other is None:
        return slope
    if neighbour:
        own_weight, other_weight = width + 2 * other[0], 2 * width + other[0]
        return (own_weight + other_weight) / (own_weight / slope + other_weight / other[1])
    end = slope + (slope - other[1]) * width / (width + other[0])
    return end if end * slope > 0 else 0.0


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
        best = choose_best(candidates, lost)
        points.append(BudgetPoint(arm, tokens, best.endpoints[0].steps, candidates, best, tried, lost))
    return Ladder(arm, tuple(points), median(times) if times else None)


def choose_best(candidates: tuple[Candidate, ...], diverged: tuple[float, ...]) -> Candidate:
    """Return the candidate with the lowest mean loss, of those whose rate did not diverge with any seed if there are.

    The means compared are over the seeds that all candidates ran, if there are such: a rate that ran with a lucky seed
    only must not beat one that ran with more. The loss of the chosen one is over all its seeds.
    """
    shared = set.intersection(*(set(candidate.seeds) for candidate in candidates))

    def compared(candidate: Candidate) -> float:
        return fmean(item.loss for item in candidate.endpoints if not shared or item.seed in shared)

    return min(candidates, key=lambda candidate: (candidate.learning_rate in diverged, compared(candidate)))


def _mean_or_none(values: list, positive: bool = False) -> float | None:
    usable = [value for value in values if value is not None and math.isfinite(value) and (value > 0 or not positive)]
    return fmean(usable) if values and len(usable) == len(values) else None
