"""From run folders to measurements: which checkpoint, what it is called, and how its scales moved during training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.composition import ConfigError
from engine.checkpoint import CheckpointError
from engine.config import Config
from engine.config_file import load_config
from engine.trained import load_trained_model
from lab.inspection.measure import InspectionError, Measurement, measure_model
from lab.words import display_arm
from runfolder.layout import newest_step
from runfolder.metrics import read_records, select_validations
from runfolder.status import read_json

MAX_RUNS = 6  # the colours and markers that can be told apart
SIZE_KEYS = ("n_layer", "n_head", "n_embd", "vocab_size", "sequence_length")


@dataclass(frozen=True)
class History:
    """What the evaluation records of metrics.jsonl say about the scales, up to the checkpoint's step."""

    steps: list[int]
    means: dict[str, list[float | None]]  # by the scale's name, one a step: mean |value| over all layers
    norm_deviations: list[float | None]  # largest |norm - 1| over the matrices kept at unit norm
    losses: list[float | None]  # validation loss, nats/token


@dataclass(frozen=True)
class Inspection:
    """One checkpoint's measurement and where it comes from."""

    label: str
    run: str
    arm: str
    step: int
    tokens: int
    learning_rate: float
    size: dict[str, int]
    commit: str | None
    history: History
    measured: Measurement


def inspect_runs(folders: Sequence[str], steps: Sequence[int | None]) -> list[Inspection]:
    """Measure one checkpoint of each run; a step of None is the newest.

    Raises:
        ConfigError, CheckpointError: what engine.trained.load_trained_model refuses; all runs are looked up first.
        InspectionError: weights that are not finite.
    """
    if not 1 <= len(folders) <= MAX_RUNS:
        raise ConfigError(f"run= names {len(folders)} runs; one picture shows 1 to {MAX_RUNS}")
    found = [find_step(Path(folder), step) for folder, step in zip(folders, steps, strict=True)]
    names = [
        (display_arm(config.model["name"]), Path(folder).resolve().name, str(folder), step)
        for folder, (config, step) in zip(folders, found, strict=True)
    ]
    labels = choose_labels(names)
    return [inspect_run(Path(folder), step, label) for folder, (_, step), label in zip(folders, found, labels, strict=True)]


def find_step(folder: Path, step: int | None) -> tuple[Config, int]:
    """Return a run's configuration and the step of its newest checkpoint, unless one is given.

    Raises:
        ConfigError: no such run.
        CheckpointError: it has no checkpoint.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such run folder")
    config = load_config(folder / "config.yaml")
    step = newest_step(folder) if step is None else step
    if step is None:
        raise CheckpointError(f"{folder}: there is no checkpoint yet")
    return config, step


def inspect_run(folder: Path, step: int, label: str) -> Inspection:
    """Measure the checkpoint of a step; the label is what the report calls it."""
    config, model = load_trained_model(folder, step)
    try:
        measured = measure_model(model)
    except InspectionError as error:
        raise InspectionError(f"{folder}, step {step}: {error}") from None
    return Inspection(
        label=label,
        run=folder.resolve().name,
        arm=config.model["name"],
        step=step,
        tokens=step * config.tokens_per_step,
        learning_rate=config.learning_rate,
        size={name: config.model[name] for name in SIZE_KEYS},
        commit=read_json(folder / "environment.json").get("commit"),
        history=read_history(folder, step),
        measured=measured,
    )


def choose_labels(names: Sequence[tuple[str, str, str, int | None]]) -> list[str]:
    """Return the shortest labels that tell (arm, run, path, step) apart: arm, run or path, with the step if need be."""
    for parts in ((0,), (1,), (0, 3), (1, 3), (2,), (2, 3)):
        labels = [" step ".join(str(name[part]) for part in parts) for name in names]
        if len(set(labels)) == len(labels):
            return labels
    raise ConfigError("run= names the same checkpoint twice")


def read_history(run: Path, last_step: int) -> History:
    """Read the validations of a run's metrics up to a step."""
    records = [record for step, record in select_validations(read_records(run)).items() if step <= last_step]
    names = dict.fromkeys(key for record in records for key in record if key.startswith("scale/"))
    return History(
        steps=[record["step"] for record in records],
        means={name.removeprefix("scale/"): [to_finite(record.get(name)) for record in records] for name in names},
        norm_deviations=[to_finite(record.get("train/max_norm_deviation")) for record in records],
        losses=[to_finite(record.get("val/loss")) for record in records],
    )


def to_finite(value) -> float | None:
    """Return a finite number as float, None for anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
