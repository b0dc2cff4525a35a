"""The best rate of each arm at each size of a small sweep, and how far it moves when the size doubles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import stdev

import numpy as np

from engine.models import TRANSFERS
from lab.runs import Run, lookup
from lab.speedup.arms import find_mixed_schedules
from lab.speedup.comparable import IncomparableError, describe_variants, find_differences, has_diverged, read_field, reason_left_out
from lab.transfer.optimum import Optimum, find_optimum
from lab.words import format_rate

SHAPE = ("n_layer", "n_head", "n_embd")  # what a sweep of sizes varies; all else that comparisons control must agree
Loss = tuple[float, int, float]  # learning rate, seed, final validation loss in nats/token


@dataclass(frozen=True, order=True)
class Size:
    """What rates are carried across: n_embd, n_layer and max_steps."""

    width: int
    depth: int
    steps: int


@dataclass(frozen=True)
class Series:
    """One arm in one parametrization: at each size its losses, its optimum and one of its runs."""

    arm: str
    parametrization: str
    losses: dict[Size, list[Loss]]
    optima: dict[Size, Optimum]
    runs: dict[Size, Run]


@dataclass(frozen=True)
class Drift:
    """How the best rate moves along one axis (width, depth or steps), others at the smallest size's.

    octaves: of the rate per doubling of the axis; `error` is a jackknife over the seeds that all sizes share, None for one
    seed; `is_inside` whether every optimum lies inside its grid.
    """

    axis: str
    values: tuple[int, ...]
    octaves: float
    error: float | None
    is_inside: bool


def read_series(runs: Sequence[Run]) -> tuple[list[Series], list[str]]:
    """Return every arm's series, and a line for each run or rate that does not count.

    A rate that diverged with a seed is left out with all its seeds. Runs of transfer's own base, where its rules change
    nothing, are the standard ones: these count for both.

    Raises:
        IncomparableError: the runs differ in more than the size, the arm, the rate and the seed; or there is no optimum to find.
    """
    notes = [f"left out: {run.name}: {reason_left_out(run)}" for run in runs if reason_left_out(run)]
    kept = [run for run in runs if not reason_left_out(run)]
    refuse_mixtures(kept)
    groups: dict[tuple[str, str], dict[Size, list[Run]]] = {}
    for run in kept:
        groups.setdefault(key_of(run), {}).setdefault(size_of(run), []).append(run)
    for (arm, parametrization), sizes in groups.items():
        if parametrization == "transfer" and (base := base_of(next(iter(sizes.values()))[0])) not in sizes:
            standard = groups.get((arm, "standard"), {}).get(base, [])
            if standard and changes_nothing(standard[0]):
                sizes[base] = standard
    lost = {(key_of(run), size_of(run), run.learning_rate) for run in runs if has_diverged(run)}
    series = []
    for key, sizes in sorted(groups.items()):
        losses, optima = {}, {}
        for size, members in sorted(sizes.items()):
            gone = {rate for k, s, rate in lost if s == size and k == key_of(members[0])}
            notes += [f"{' '.join(key)}, {say(size)}: {format_rate(rate)} diverged" for rate in sorted(gone)]
            found = [(r.learning_rate, r.seed, r.final.loss) for r in members if r.final and r.learning_rate not in gone]
            try:
                optima[size], losses[size] = find_optimum(found), found
            except ValueError as error:
                notes.append(f"left out: {' '.join(key)}, {say(size)}: {error}")
        if optima:
            series.append(Series(*key, losses, optima, {size: sizes[size][0] for size in optima}))
    if not series:
        raise IncomparableError("no optimum to find:\n" + "\n".join(f"  {note}" for note in notes))
    return series, notes


def refuse_mixtures(runs: Sequence[Run]) -> None:
    """Raise IncomparableError if runs differ in what must agree, or two of one rate and seed in some other setting."""
    differences = [str(item) for item in find_differences(runs) if item.field not in SHAPE] if runs else []
    differences += find_mixed_schedules(runs, {run.name: " ".join(key_of(run)) for run in runs})
    variants = describe_variants(runs, {run.name: f"{key_of(run)} {size_of(run)}" for run in runs})
    differences += [f"{name} differs from others of its rate and size: {words}" for name, words in variants.items() if words]
    if differences:
        raise IncomparableError("these runs are no sweep of rates:\n" + "\n".join(f"  {item}" for item in differences))


def key_of(run: Run) -> tuple[str, str]:
    """Return (arm, parametrization) of a run."""
    update = str(read_field(run, "config", "update"))
    return run.model + ("" if update == "adamw" else f" update={update}"), str(read_field(run, "config", "parametrization"))


def size_of(run: Run) -> Size:
    return Size(int(lookup(run.config, "model.n_embd")), int(lookup(run.config, "model.n_layer")), run.max_steps)


def base_of(run: Run) -> Size:
    """Return the base that a run with parametrization=transfer names."""
    return Size(*(int(lookup(run.config, f"base.{key}") or 0) for key in ("n_embd", "n_layer", "max_steps")))


def changes_nothing(run: Run, depth: float = 1, steps: float = 1) -> bool:
    """Return whether the rules of a run's model leave every rate and weight as it is, `depth` and `steps` times the base's."""
    if run.model not in TRANSFERS:
        return False
    rules = TRANSFERS[run.model](lookup(run.config, "model"), 1, depth, steps, size_of(run).width)
    return {*rules.rate.values(), *rules.init.values()} == {1} and not rules.model


def measure_drifts(series: Series) -> list[Drift]:
    """Return the drift along every axis of which there are two sizes or more."""
    base = min(series.optima)
    drifts = []
    for axis in (field.name for field in fields(Size)):
        others = [field.name for field in fields(Size) if field.name != axis]
        sizes = [size for size in sorted(series.optima) if all(getattr(size, o) == getattr(base, o) for o in others)]
        if len(sizes) < 2:
            continue
        values = tuple(getattr(size, axis) for size in sizes)
        seeds = set.intersection(*(shared_seeds(series.losses[size]) for size in sizes))
        without = [
            slope(values, [find_optimum([item for item in series.losses[size] if item[1] in seeds - {seed}]) for size in sizes])
            for seed in (seeds if len(seeds) > 1 else ())
        ]
        error = stdev(without) * (len(without) - 1) / math.sqrt(len(without)) if without else None
        optima = [series.optima[size] for size in sizes]
        drifts.append(Drift(axis, values, slope(values, optima), error, all(item.is_inside for item in optima)))
    return drifts


def shared_seeds(losses: Sequence[Loss]) -> set[int]:
    """Return the seeds that ran every rate."""
    rates = {rate for rate, _, _ in losses}
    return {seed for _, seed, _ in losses if {rate for rate, other, _ in losses if other == seed} == rates}


def slope(values: Sequence[int], optima: Sequence[Optimum]) -> float:
    """Return the octaves of the rate per doubling of the values: a straight line by least squares."""
    return float(np.polyfit(np.log2(values), [item.octave for item in optima], 1)[0])


def say(size: Size) -> str:
    return f"width {size.width}, {size.depth} layers, {size.steps} steps"
