"""Read run folders into plain dataclasses, trusting nothing that the files hold."""

import json
import math
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from runfolder import layout
from runfolder.layout import CONFIG, is_replaced, is_run_folder
from runfolder.metrics import find_damaged_lines, read_records, select_validations
from runfolder.plain_yaml import load_plain_yaml

LARGEST_NUMBER = 2**53  # beyond it a float no longer tells whole numbers apart
REQUIRED_FILES = (layout.CONFIG, layout.ENVIRONMENT, layout.METRICS, layout.STATUS)


class RunFolderError(Exception):
    """Say in one line why a folder cannot be read as a run."""


@dataclass(frozen=True)
class Validation:
    """One validation: loss in nats/token, train_seconds cumulative over training steps only."""

    step: int
    tokens: int
    train_seconds: float | None
    loss: float
    bits_per_byte: float | None


@dataclass(frozen=True)
class Step:
    """One training step that was logged: loss in nats/token, the gradient's norm before clipping; None where not recorded."""

    step: int
    tokens: int
    loss: float | None
    grad_norm: float | None
    learning_rate: float | None


@dataclass(frozen=True)
class Run:
    """What one run folder says.

    `budget_tokens` is what the run was asked to train on; `step_seconds` the median over what it logged, which a slow
    start (compilation) or a pause does not move, None where no speed was logged. `was_nonfinite` is told by events.jsonl.
    """

    name: str
    path: str
    model: str
    config: dict
    environment: dict
    state: str
    message: str
    max_steps: int
    learning_rate: float
    seed: int
    budget_tokens: int
    last_step: int
    curve: tuple[Validation, ...]
    step_seconds: float | None = None
    warnings: tuple[str, ...] = field(default=())
    steps: tuple[Step, ...] = ()
    was_nonfinite: bool = False

    @property
    def final(self) -> Validation | None:
        """Return the validation at the last step of the schedule, or None if the run never got there."""
        return next((point for point in self.curve if point.step == self.max_steps), None)


def lookup(mapping, dotted: str):
    """Return the value at a dotted key of nested dicts, or None where any part is absent."""
    for part in dotted.split("."):
        mapping = mapping.get(part) if isinstance(mapping, dict) else None
    return mapping


def to_number(value) -> float | None:
    """Return a float for a number or a numeric string (PyYAML reads `1e-3` as a string), else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _to_finite(value) -> float | None:
    """Return a number that can be counted with, else None."""
    number = to_number(value)
    return number if number is not None and abs(number) <= LARGEST_NUMBER else None


def read_run(folder) -> Run:
    """Read one run folder; raise RunFolderError, in one line, when it is not one."""
    path = Path(folder)
    if not path.is_dir():
        raise RunFolderError(f"{path}: no such run folder")
    status = _read_mapping(path / "status.json") if (path / "status.json").is_file() else {}
    missing = [name for name in REQUIRED_FILES if not (path / name).is_file()]
    # A run that is still starting has a status before it has metrics: it is unfinished, not broken.
    starting = status.get("state") not in (None, "done") and "config.yaml" not in missing
    if missing and not starting:
        raise RunFolderError(f"{path}: not a complete run folder, missing {', '.join(missing)}")
    config = _read_mapping(path / "config.yaml")
    environment = {} if "environment.json" in missing else _read_mapping(path / "environment.json")
    records = read_records(path)
    warnings = [f"metrics.jsonl line {n} is not a record and was skipped" for n in find_damaged_lines(path)]

    model = lookup(config, "model.name")
    if not isinstance(model, str):
        raise RunFolderError(f"{path}/config.yaml: model.name is missing")
    max_steps = int(_require_number(path, config, "max_steps"))
    tokens_per_step = _to_finite(environment.get("tokens_per_step")) or (
        _require_number(path, config, "global_batch_size") * _require_number(path, config, "model.sequence_length")
    )
    return Run(
        name=path.resolve().name,
        path=str(path),
        model=model,
        config=config,
        environment=environment,
        state=str(status.get("state", "unknown")),
        message=str(status.get("message") or ""),
        max_steps=max_steps,
        learning_rate=_require_number(path, config, "learning_rate"),
        seed=int(_require_number(path, config, "seed")),
        budget_tokens=int(max_steps * tokens_per_step),
        last_step=max((record["step"] for record in records), default=0),
        curve=_validation_curve(records),
        step_seconds=_median_step_seconds(records, tokens_per_step),
        warnings=tuple(warnings),
        steps=_training_steps(records),
        was_nonfinite=_was_nonfinite(path / "events.jsonl"),
    )


def find_runs(paths: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """Return the run folders among paths and one level below them, and a note for each path that holds none.

    Raises:
        RunFolderError: a path does not exist, or none of them is or holds a run.
    """
    found, notes = [], []
    for path in map(Path, paths):
        if not path.exists():
            raise RunFolderError(f"{path}: no such run folder")
        below = sorted(child for child in path.iterdir() if is_run_folder(child)) if path.is_dir() else []
        if path.is_dir() and (is_run_folder(path) or is_replaced(path)):
            found.append(path)
        elif below:
            found += below
            notes += [f"{child}: not a run folder (no config.yaml)" for child in _list_unstarted(path)]
        else:
            notes.append(f"{path}: not a run folder" + (" (no config.yaml)" if path.is_dir() else ""))
    if not found:
        raise RunFolderError(f"no run to compare: {'; '.join(notes) or 'no folder was given'}")
    return found, notes


def _list_unstarted(folder: Path) -> list[Path]:
    """Return the folders in a folder of runs that a run began to use and that hold none."""
    return sorted(child.parent for child in folder.glob("*/run.lock") if not (child.parent / CONFIG).is_file())


def read_readable(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs of several folders as read_runs does, and a note for each that cannot be read; raise if none can."""
    runs, notes = [], []
    for folder in _list_once(folders):
        try:
            runs.append(read_run(folder))
        except RunFolderError as error:
            notes.append(str(error))
    if not runs:
        raise RunFolderError("; ".join(notes))
    return tell_names_apart(runs), notes


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read several run folders, each once; raise RunFolderError for the first that cannot be read."""
    return tell_names_apart([read_run(folder) for folder in _list_once(folders)])


def _list_once(folders: Sequence[str | Path]) -> list[str | Path]:
    """Return the folders in their order, each once, however it was written."""
    given: dict[Path, str | Path] = {}
    for folder in folders:
        given.setdefault(Path(folder).resolve(), folder)
    return list(given.values())


def tell_names_apart(runs: list[Run]) -> list[Run]:
    """Return the runs, with the path for a name where folder names collide."""
    names = [run.name for run in runs]
    return [run if names.count(run.name) == 1 else replace(run, name=run.path) for run in runs]


def _require_number(path: Path, config: dict, key: str) -> float:
    number = _to_finite(lookup(config, key))
    if number is None:
        raise RunFolderError(f"{path}/config.yaml: {key} is {reprlib.repr(lookup(config, key))}, not a number")
    return number


def _read_mapping(path: Path) -> dict:
    """Read a YAML or JSON file that must hold a mapping."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        value = json.loads(text) if path.suffix == ".json" else load_plain_yaml(text)
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path}: cannot be parsed ({str(error).splitlines()[0]})") from None
    if not isinstance(value, dict):
        raise RunFolderError(f"{path}: holds no mapping")
    return value


def _was_nonfinite(path: Path) -> bool:
    """Return whether the events of a run tell of a loss or a gradient that was not finite."""
    return path.is_file() and re.search(r'"event": *"nonfinite"', path.read_text(encoding="utf-8", errors="replace")) is not None


def _training_steps(records: list[dict]) -> tuple[Step, ...]:
    """Return the logged steps in order; after a resume a step may occur twice, and the later line holds."""
    by_step = {
        record["step"]: Step(
            record["step"],
            int(_to_finite(record.get("tokens")) or 0),
            *(to_number(record.get(f"train/{name}")) for name in ("loss", "grad_norm", "learning_rate")),
        )
        for record in records
        if "train/loss" in record
    }
    return tuple(by_step[step] for step in sorted(by_step))


def _median_step_seconds(records: list[dict], tokens_per_step: float) -> float | None:
    speeds = [s for record in records if (s := to_number(record.get("train/tokens_per_second"))) and 0 < s < math.inf]
    return tokens_per_step / median(speeds) if speeds else None


def _validation_curve(records: list[dict]) -> tuple[Validation, ...]:
    return tuple(
        Validation(
            step,
            int(_to_finite(record.get("tokens")) or 0),
            to_number(record.get("train_seconds")),
            loss,
            to_number(record.get("val/bits_per_byte")),
        )
        for step, record in select_validations(records).items()
        if (loss := to_number(record["val/loss"])) is not None
    )
