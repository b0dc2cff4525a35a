"""Build each arm's ladder: its best fully annealed loss at every budget, and the budget needed for a loss.

Pure functions on plain dataclasses. A point of a ladder is always the END of an annealed run: while the learning rate
is still high a run's loss says little about the model (and flatters the arm that anneals less).
"""

import math
from dataclasses import dataclass
from statistics import fmean, stdev


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
    """Hold one arm's budgets in order of tokens."""

    arm: str
    points: tuple[BudgetPoint, ...]

    @property
    def regressions(self) -> tuple[BudgetPoint, ...]:
        """Return the budgets whose loss is not below that of every smaller budget."""
        return tuple(
            point
            for index, point in enumerate(self.points)
            if index and point.best.loss >= min(other.best.loss for other in self.points[:index])
        )

    def curve(self, cost: str = "tokens") -> "Curve | None":
        """Return loss against `tokens` or `seconds`, None where a budget has no seconds."""
        costs = [point.tokens if cost == "tokens" else point.best.seconds for point in self.points]
        if not costs or any(value is None for value in costs):
            return None
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
    """Hold a non-increasing loss against cost, piecewise linear in log(cost)."""

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
        """Return the smallest cost at which the curve is at or below a loss; never extrapolate.

        A chord lies above a convex curve, so between two budgets the cost is slightly overestimated.
        """
        if loss > self.losses[0]:
            return Reach(self.costs[0], "below")
        index = next((i for i, value in enumerate(self.losses) if value <= loss), None)
        if index is None:
            return Reach(self.costs[-1], "never")
        if index == 0 or self.losses[index] == loss:
            return Reach(self.costs[index], "within")
        share = (self.losses[index - 1] - loss) / (self.losses[index - 1] - self.losses[index])
        low, high = math.log(self.costs[index - 1]), math.log(self.costs[index])
        return Reach(math.exp(low + share * (high - low)), "within")


def build_ladder(arm: str, endpoints: list[Endpoint], diverged: list[tuple[int, float]] = ()) -> Ladder:
    """Return an arm's ladder, choosing at each budget the candidate with the lowest loss averaged over seeds.

    `diverged` lists (tokens, learning rate) of runs that diverged: they were tried, so they bound the grid.
    """
    points = []
    mine = [endpoint for endpoint in endpoints if endpoint.arm == arm]
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
        best = min(candidates, key=lambda candidate: candidate.loss)
        points.append(BudgetPoint(arm, tokens, best.endpoints[0].steps, candidates, best, tried, lost))
    return Ladder(arm, tuple(points))


def _mean_or_none(values: list, positive: bool = False) -> float | None:
    usable = [value for value in values if value is not None and math.isfinite(value) and (value > 0 or not positive)]
    return fmean(usable) if values and len(usable) == len(values) else None
