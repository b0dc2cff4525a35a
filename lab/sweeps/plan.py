"""A sweep's YAML file -> its points, each the overrides of one `train.py` command."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

import yaml

from cli.composition import ConfigError, nearest
from engine.config import decay_start

AXES = {"learning_rate": float, "max_steps": int, "seed": int}  # every sweep has these
SWEEP_KEYS = ["name", "overrides", "arms", *AXES, "axes", "schedule", "decay_fraction"]
ARM_KEYS = ["overrides", *AXES, "axes", "warmup_fraction"]
SET_BY_SWEEP = {*AXES, "out_dir", "run_name", "resume", "dry_run"}
SET_BY_SCHEDULE = {"schedule", "decay_fraction", "branch_from", "keep_steps"}  # where the sweep says schedule: wsd
DECAY_FRACTION = 0.2


@dataclass(frozen=True)
class Arm:
    """What is compared: its overrides, and for every axis (a dotted key) its values."""

    label: str
    overrides: tuple[str, ...]
    axes: dict[str, tuple[Any, ...]]
    warmup_fraction: float | None


@dataclass(frozen=True)
class Point:
    """One training run of a sweep; a branch takes its first `first_step` steps from the run `trunk`."""

    name: str
    run_dir: Path
    max_steps: int
    overrides: tuple[str, ...]  # what follows `train.py`
    trunk: str | None = None
    first_step: int = 0


@dataclass(frozen=True)
class Sweep:
    name: str
    points: tuple[Point, ...]

    @property
    def out_dir(self) -> Path:
        return Path("runs") / self.name


def read_sweep(path: Path) -> Sweep:
    """Read a sweep's file.

    Raises:
        ConfigError: the file cannot be read, has unknown keys or wrong types, or describes no or equal points.
    """
    try:
        node = yaml.safe_load(path.read_text(encoding="utf-8"))  # whatever the locale
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as a sweep ({' '.join(str(error).split())})") from None
    try:
        sweep = sweep_from(node)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return sweep


def sweep_from(node: Any) -> Sweep:
    check_mapping(node, "the file", SWEEP_KEYS)
    name = node.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}", name):
        raise ConfigError(f"name: {name!r}; use letters, digits and _ . + - only (it names a folder)")
    if not node.get("arms"):
        raise ConfigError("arms: there are none, so there are no points")
    check_mapping(node["arms"], "arms")
    common = overrides_of(node, "overrides")
    decay_fraction = decay_fraction_of(node)
    arms = [arm_from(str(label), arm, node) for label, arm in node["arms"].items()]
    for arm in arms:
        check_overrides((*common, *arm.overrides), arm, SET_BY_SWEEP | (SET_BY_SCHEDULE if decay_fraction else set()))
    points = tuple(make_points(name, common, arms, decay_fraction))
    seen: set[str] = set()
    for point in points:
        if point.name in seen:
            raise ConfigError(f"two points have the name {point.name}: values are given twice, or need other keys")
        seen.add(point.name)
    return Sweep(name, points)


def decay_fraction_of(node: dict[str, Any]) -> float | None:
    """Return the part of a run in which the rate decays under the sweep's schedule: wsd; None without it."""
    schedule, fraction = node.get("schedule"), node.get("decay_fraction", DECAY_FRACTION)
    if schedule not in (None, "wsd"):
        raise ConfigError(f"schedule: {schedule!r}; only wsd has trunks and branches; without the key a run has its own schedule")
    if schedule is None and "decay_fraction" in node:
        raise ConfigError("decay_fraction: needs schedule: wsd")
    if type(fraction) not in (int, float) or not 0 < fraction < 1:
        raise ConfigError(f"decay_fraction: {fraction!r} is not a number above 0 and below 1")
    return fraction if schedule else None


def arm_from(label: str, node: Any, sweep: dict[str, Any]) -> Arm:
    """Return an arm; its own values of an axis prevail over the sweep's."""
    where = f"arms.{label}"
    node = {} if node is None else node
    check_mapping(node, where, ARM_KEYS)
    axes = {}
    for key, kind in AXES.items():
        if key not in node and key not in sweep:
            raise ConfigError(f"{key}: missing for the arm {label}")
        own = key in node
        axes[key] = values_of((node if own else sweep)[key], kind, f"{where}.{key}" if own else key)
    for source, place in ((sweep.get("axes"), "axes"), (node.get("axes"), f"{where}.axes")):
        if source is not None:
            check_mapping(source, place)
            for key, values in source.items():
                if key in SET_BY_SWEEP:
                    raise ConfigError(
                        f"{place}.{key}: belongs outside of axes" if key in AXES else f"{place}.{key}: is set by the sweep"
                    )
                axes[str(key)] = values_of(values, None, f"{place}.{key}")
    fraction = node.get("warmup_fraction")
    if fraction is not None and (type(fraction) not in (int, float) or not 0 <= fraction < 1):
        raise ConfigError(f"{where}.warmup_fraction: {fraction!r} is not a number of at least 0 and below 1")
    return Arm(label, overrides_of(node, f"{where}.overrides"), axes, fraction)


def make_points(sweep: str, common: tuple[str, ...], arms: list[Arm], decay_fraction: float | None) -> Iterator[Point]:
    """Yield the points: by seed, then by max_steps, and there the arms in turns.

    So a sweep that is stopped early has compared something: whole seeds, small budgets first, both arms alike. Only with
    decay_fraction, of schedule: wsd, do large budgets come first: they are the trunks of the others.
    """
    seeds = dict.fromkeys(seed for arm in arms for seed in arm.axes["seed"])
    budgets = sorted({steps for arm in arms for steps in arm.axes["max_steps"]}, reverse=decay_fraction is not None)
    for seed, steps in product(seeds, budgets):
        columns = []
        for arm in arms:
            if seed in arm.axes["seed"] and steps in arm.axes["max_steps"]:
                inner = {key: values for key, values in arm.axes.items() if key not in ("seed", "max_steps")}
                columns.append([(arm, dict(zip(inner, values, strict=True))) for values in product(*inner.values())])
        for row in zip_longest(*columns):
            for arm, values in filter(None, row):
                yield make_point(sweep, common, arm, {"max_steps": steps, "seed": seed, **values}, decay_fraction)


def make_point(sweep: str, common: tuple[str, ...], arm: Arm, values: dict[str, Any], decay_fraction: float | None = None) -> Point:
    name, steps, out_dir = name_point(arm, values), values["max_steps"], Path("runs") / sweep
    text = {key: as_text(value) for key, value in values.items()}
    settings = [f"{key}={text[key]}" for key in ("max_steps", "learning_rate", "seed", *(key for key in values if key not in AXES))]
    shared = steps if decay_fraction is None else min(arm.axes["max_steps"])  # what a branch shares with its trunk is equally warm
    if arm.warmup_fraction is not None:
        settings.append(f"warmup_steps={round(arm.warmup_fraction * shared)}")
    trunk, first_step = None, 0
    if decay_fraction is not None:
        settings += ["schedule=wsd", f"decay_fraction={as_text(decay_fraction)}"]
        *shorter, longest = sorted(set(arm.axes["max_steps"]))
        if steps < longest:
            trunk, first_step = name_point(arm, values | {"max_steps": longest}), decay_start(steps, decay_fraction)
            settings.append(f"branch_from={out_dir / trunk}")
        elif shorter:
            settings.append(f"keep_steps=[{','.join(str(decay_start(other, decay_fraction)) for other in shorter)}]")
    overrides = (*common, *arm.overrides, *settings, f"out_dir={out_dir}", f"run_name={name}")
    return Point(name, out_dir / name, steps, overrides, trunk, first_step)


def name_point(arm: Arm, values: dict[str, Any]) -> str:
    text = {key: as_text(value) for key, value in values.items()}
    name = f"{arm.label}-{text['max_steps']}steps-lr{text['learning_rate']}-seed{text['seed']}"
    return name + "".join(f"-{re.split('[./]', key)[-1]}{text[key]}" for key in values if key not in AXES)


def as_text(value: Any) -> str:
    """Return a value as it stands in a command and in a name."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


def values_of(node: Any, kind: type | None, where: str) -> tuple[Any, ...]:
    """Return one value or a list of them as a tuple of kind (float, int; None: any scalar)."""
    values = node if isinstance(node, list) else [node]
    if not values:
        raise ConfigError(f"{where}: an empty list, so there are no points")
    if kind is None:
        for value in values:
            if isinstance(value, (list, dict)):
                raise ConfigError(f"{where}: {value!r} is not a single value")
        return tuple(values)
    return tuple(number_from(value, kind, where) for value in values)


def number_from(value: Any, kind: type, where: str) -> int | float:
    try:  # YAML reads 3e-3, without a point, as a string
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or kind is int and number != int(number):
        raise ConfigError(f"{where}: {value!r} is not {'a whole number' if kind is int else 'a number'}")
    return int(value) if kind is int and isinstance(value, int) else kind(number)


def overrides_of(node: dict[str, Any], where: str) -> tuple[str, ...]:
    overrides = node.get("overrides")
    if overrides is None:
        return ()
    if not isinstance(overrides, list) or not all(isinstance(item, str) for item in overrides):
        raise ConfigError(f"{where}: must be a list of key=value")
    return tuple(overrides)


def check_overrides(overrides: tuple[str, ...], arm: Arm, set_by_sweep: set[str]) -> None:
    """Refuse an override of what the sweep itself sets: which of the two values holds would be a guess."""
    taken = set_by_sweep | set(arm.axes) | ({"warmup_steps"} if arm.warmup_fraction is not None else set())
    for override in overrides:
        key = override.split("=")[0].lstrip("+~")
        if key in taken:
            raise ConfigError(f"arms.{arm.label}: the override {override!r} sets a key that the sweep sets itself")
    for key in set_by_sweep & set(arm.axes) - AXES.keys():
        raise ConfigError(f"arms.{arm.label}: the axis {key} is set by the sweep's schedule")
    if arm.warmup_fraction is not None and "warmup_steps" in arm.axes:
        raise ConfigError(f"arms.{arm.label}: warmup_fraction and the axis warmup_steps exclude each other")


def check_mapping(node: Any, where: str, allowed: list[str] | None = None) -> None:
    if not isinstance(node, dict):
        raise ConfigError(f"{where}: must be a mapping of keys to values")
    for key in node:
        if allowed is not None and key not in allowed:
            prefix = "" if where == "the file" else f"{where}."
            raise ConfigError(f"unknown key '{prefix}{key}'{nearest(str(key), allowed)}")
