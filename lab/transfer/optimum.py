"""The best learning rate of a sweep: a parabola through the losses, in octaves of the rate, with its uncertainty."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np

REACH = 2.0  # octaves on each side of the best rate that the parabola is fitted to: further out a loss is no parabola


@dataclass(frozen=True)
class Optimum:
    """Where the loss is lowest.

    Attributes:
        octave: log2 of the best rate, the parabola's vertex; `error`: its standard error over seeds, None for one seed.
        loss: the parabola's value there, nats/token.
        is_inside: whether rates on both sides of the vertex were tried; if not, it is the grid's end or an extrapolation.
        curve: (log2 of the rate, mean loss over seeds), by rate.
        seeds: how many ran every rate.
    """

    octave: float
    error: float | None
    loss: float
    is_inside: bool
    curve: tuple[tuple[float, float], ...]
    seeds: int

    @property
    def rate(self) -> float:
        return 2**self.octave


def find_optimum(losses: Iterable[tuple[float, int, float]]) -> Optimum:
    """Return the optimum of (learning rate, seed, final loss in nats/token).

    Only seeds that ran every rate count, so that rates are compared on equal terms. The error is a jackknife over seeds.

    Raises:
        ValueError: there are fewer than three rates with a seed in common, so there is no parabola.
    """
    table: dict[int, dict[float, float]] = {}
    for rate, seed, loss in losses:
        if math.isfinite(loss):
            table.setdefault(seed, {})[math.log2(rate)] = loss
    rates = sorted({octave for row in table.values() for octave in row})
    shared = {seed: row for seed, row in table.items() if len(row) == len(rates)}
    if len(rates) < 3 or not shared:
        raise ValueError(f"{len(rates)} rates, {len(shared)} seeds with all of them; a parabola needs three rates and one seed")
    curve = [(octave, mean(row[octave] for row in shared.values())) for octave in rates]
    octave, loss, is_inside = _vertex(curve)
    error = None
    if len(shared) > 1:
        without = [
            _vertex([(o, mean(row[o] for other, row in shared.items() if other != seed)) for o in rates])[0] for seed in shared
        ]
        error = stdev(without) * (len(without) - 1) / math.sqrt(len(without))
    return Optimum(octave, error, loss, is_inside, tuple(curve), len(shared))


def _vertex(curve: list[tuple[float, float]]) -> tuple[float, float, bool]:
    """Return the vertex of the parabola around the lowest point, its loss, and whether it lies between the rates tried."""
    lowest = min(range(len(curve)), key=lambda i: curve[i][1])
    near = [point for point in curve if abs(point[0] - curve[lowest][0]) <= REACH + 1e-9]
    if len(near) < 3:
        near = sorted(curve, key=lambda point: abs(point[0] - curve[lowest][0]))[:3]
    octaves, losses = np.array(near).T
    if lowest in (0, len(curve) - 1):
        return curve[lowest][0], curve[lowest][1], False
    a, b, c = np.polyfit(octaves - curve[lowest][0], losses, 2)
    if a <= 0:  # no minimum in the fit although there is one between the points: take the point
        return curve[lowest][0], curve[lowest][1], True
    at = min(max(-b / (2 * a), octaves.min() - curve[lowest][0]), octaves.max() - curve[lowest][0])
    return curve[lowest][0] + float(at), float(a * at * at + b * at + c), True
