"""Read a ladder between its budgets: a monotone curve of the loss against tokens or seconds, and how far it may be off."""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# Losses fall with the budget as a power law, in published fits with an exponent of 0.05 to 0.5.
STEEPEST_EXPONENT = 0.5


@dataclass(frozen=True)
class Reach:
    """The cost (tokens or seconds) at which a curve reaches a loss; side is `within`, `below` (cheaper than tried) or `never`.

    For `below` the cost is an upper bound (the smallest tried), for `never` a lower bound (the largest tried). `error` is how
    far log(cost) may be off because it was read between two budgets, 0 at a budget itself.
    """

    cost: float
    side: str
    error: float = 0.0


@dataclass(frozen=True)
class Curve:
    """A non-increasing loss (nats/token) against cost (tokens or seconds), interpolated by monotone cubics in log(cost)."""

    costs: tuple[float, ...]
    losses: tuple[float, ...]

    @classmethod
    def through(cls, costs: Iterable[float], losses: Iterable[float]) -> "Curve":
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
        return self._read(index, loss)

    def _read(self, index: int, loss: float) -> Reach:
        """Return the cost of a loss between budgets index - 1 and index.

        log(cost) is interpolated as a function of the loss (both are monotone) over the budgets around it at which the loss
        falls. Its error is the distance to the farther of two extremes: a straight line between the two budgets, and the
        steepest power law through them.
        """
        first, last = index - 1, index
        while first and self.losses[first - 1] > self.losses[first]:
            first -= 1
        while last + 1 < len(self.losses) and self.losses[last + 1] < self.losses[last]:
            last += 1
        found = float(_interpolator(self.costs[first : last + 1], self.losses[first : last + 1])(-loss))
        start, width = math.log(self.costs[index - 1]), math.log(self.costs[index] / self.costs[index - 1])
        share = (self.losses[index - 1] - loss) / (self.losses[index - 1] - self.losses[index])
        straight = start + share * width
        left_over = math.exp(-STEEPEST_EXPONENT * width)
        steep = start - math.log(1 - share * (1 - left_over)) / STEEPEST_EXPONENT
        return Reach(math.exp(found), "within", max(abs(found - straight), abs(found - steep)))


@functools.lru_cache(maxsize=4096)
def _interpolator(costs: tuple[float, ...], losses: tuple[float, ...]) -> Any:
    """Return the monotone cubic (Fritsch and Butland's slopes) of log(cost) as a function of minus the loss."""
    from scipy.interpolate import PchipInterpolator  # takes a second to import: a refusal comes before

    return PchipInterpolator([-loss for loss in losses], [math.log(cost) for cost in costs])
