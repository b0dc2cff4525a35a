"""Student's t: the p-value of a difference over few seeds, and the quantiles that intervals need."""

import functools
import math
from dataclasses import dataclass
from statistics import fmean, stdev, variance

import numpy as np

PANELS = 20_000


@dataclass(frozen=True)
class Significance:
    """Hold a one-sided test of "the difference is below zero": its p-value, degrees of freedom and standard error."""

    name: str
    p_value: float | None
    degrees_of_freedom: float
    standard_error: float


def student_tail(t: float, degrees_of_freedom: float) -> float:
    """Return P(T > t) of Student's distribution, by quadrature over the angle atan(t / sqrt(degrees_of_freedom)).

    There the density is proportional to cos(angle) ** (degrees_of_freedom - 1) on a finite range.
    """

    def area(low: float) -> float:
        middles = low + (math.pi / 2 - low) * (np.arange(PANELS) + 0.5) / PANELS
        return float(np.mean(np.cos(middles) ** (degrees_of_freedom - 1))) * (math.pi / 2 - low)

    return area(math.atan2(t, math.sqrt(degrees_of_freedom))) / area(-math.pi / 2)


@functools.cache
def student_quantile(probability: float, degrees_of_freedom: float) -> float:
    """Return the t with P(T < t) = probability, for a probability above one half, by bisection."""
    low, high = 0.0, 1.0
    while student_tail(high, degrees_of_freedom) > 1 - probability:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, degrees_of_freedom) > 1 - probability else (low, middle)
    return high


def compare_means(ours: list[float], theirs: list[float], paired: bool) -> Significance | None:
    """Return the test of "theirs is below ours", None with fewer than two values on a side.

    Paired: Student's t on the differences, value by value (the same seed has the same data order). Else Welch's t,
    which does not assume equal variances.
    """
    if min(len(ours), len(theirs)) < 2:
        return None
    difference = fmean(theirs) - fmean(ours)
    if paired:
        freedom = len(ours) - 1.0
        error = stdev(b - a for a, b in zip(ours, theirs, strict=True)) / math.sqrt(len(ours))
    else:
        parts = [variance(values) / len(values) for values in (ours, theirs)]
        error = math.sqrt(sum(parts))
        spread = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (ours, theirs), strict=True))
        freedom = sum(parts) ** 2 / spread if spread else 1.0
    p_value = student_tail(-difference / error, freedom) if error > 0 else None
    return Significance("paired t" if paired else "Welch t", p_value, freedom, error)
