"""Tell what each change to nGPT costs: its loss against the base's over paired seeds, beside the paper's figure.

A run belongs to a row by its configuration alone, never by its name.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from lab.ablations.settings import (
    PAPER,
    PLAIN,
    VARIANT,
    PaperRow,
    Setting,
    differing_keys,
    equal,
    find_paper_row,
    freeze,
    paper_position,
    plain_setting,
    read_setting,
    word,
)
from lab.runs import Run, to_number
from lab.speedup.comparable import find_differences, reason_left_out
from lab.speedup.ladder import choose_best
from runfolder.metrics import read_records


class AblationError(Exception):
    """Say in one line why there is no table."""


@dataclass(frozen=True)
class Row:
    """One change: loss in nats/token, averaged over seeds, at the learning rate that is best for it.

    delta_percent: mean over the seeds it shares with the base of (loss / base's loss - 1) * 100; None without such seeds.
    standard_error: of delta_percent, None for fewer than two seeds.
    """

    changes: dict[str, str]  # key -> "base's value -> value", empty for the base itself
    learning_rate: float | None
    rates_tried: tuple[float, ...]
    loss: float | None  # None: every run diverged
    losses: dict[int, float]  # by seed
    delta_percent: float | None
    standard_error: float | None
    paired_seeds: tuple[int, ...]
    diverged: int
    scales: dict[str, float]  # mean |value| at the end, over layers and seeds
    paper: PaperRow | None
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """The rows of one budget, the base first; notes say where its base is not the paper's nGPT."""

    max_steps: int
    tokens: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Ablations:
    """A table per budget, and the runs that are in none, with the reason."""

    source: str
    tables: tuple[Table, ...]
    left_out: dict[str, str]


@dataclass
class Group:
    """Collect the runs of one setting at one budget."""

    setting: Setting
    runs: list[Run] = field(default_factory=list)
    diverged: list[Run] = field(default_factory=list)

    def best(self) -> tuple[float | None, dict[int, Run]]:
        """Return the best learning rate, as a ladder chooses it (over shared seeds), and its runs by seed."""
        by_rate: dict[float, dict[int, Run]] = {}
        for run in self.runs:
            by_rate.setdefault(run.learning_rate, {})[run.seed] = run
        if not by_rate:
            return None, {}
        losses = {rate: {seed: [final_loss(run)] for seed, run in runs.items()} for rate, runs in by_rate.items()}
        rate = choose_best(losses, {run.learning_rate for run in self.diverged})
        return rate, by_rate[rate]


def analyze_ablations(runs: list[Run], base: str | None = None) -> Ablations:
    """Return the tables of these runs.

    Args:
        base: name of a run of the base; None takes the setting that differs least from all the others.

    Raises:
        AblationError: no run is left, or they differ in what must be equal (data, model size, precision, ...).
        RunFolderError: a run's configuration states no usable n_embd.
    """
    left_out: dict[str, str] = {}
    kept: list[Run] = []
    diverged: list[Run] = []
    seen: dict[tuple, str] = {}
    for run in runs:
        reason = reason_left_out(run)
        identity = (run.max_steps, run.learning_rate, run.seed, freeze(read_setting(run)))
        if run.model not in (PLAIN, VARIANT):
            left_out[run.name] = f"its model is {run.model}, not nGPT or a variant of it"
        elif reason and not reason.startswith("diverged"):
            left_out[run.name] = reason
        elif identity in seen:
            left_out[run.name] = f"the same setting and seed as {seen[identity]}"
        else:
            seen[identity] = run.name
            (diverged if reason else kept).append(run)
    if not kept:
        raise AblationError("no finished run of nGPT" + "".join(f"; {name}: {why}" for name, why in left_out.items()))
    differences = find_differences(kept)
    if differences:
        raise AblationError(f"these runs cannot be compared: {differences[0]}")
    tables = []
    for steps in sorted({run.max_steps for run in kept}):
        done, lost = ([run for run in part if run.max_steps == steps] for part in (kept, diverged))
        tables.append(build_table(done, lost, base))
    return Ablations(PAPER["source"], tuple(tables), left_out)


def build_table(runs: list[Run], diverged: list[Run], base_run: str | None) -> Table:
    """Return the table of runs that share one budget."""
    groups: dict[tuple, Group] = {}
    for run in (*runs, *diverged):
        setting = read_setting(run)
        group = groups.setdefault(freeze(setting), Group(setting))
        (group.runs if run in runs else group.diverged).append(run)
    base = find_base(list(groups.values()), base_run)
    rows = [make_row(group, base) for group in groups.values()]

    def position(row: Row) -> tuple:
        return bool(row.changes), row.paper is None, paper_position(row.paper) if row.paper else 0, sorted(row.changes)

    notes = [
        f"the base has {key.removeprefix('model.')}={word(base.setting.get(key))}, the paper's nGPT {word(value)}"
        for key, value in plain_setting(base.setting["model.n_embd"]).items()
        if not equal(base.setting.get(key), value)
    ]
    if notes:
        notes.append("where the paper has a row for what the base has, its percentages are restated relative to that row")
    return Table(runs[0].max_steps, runs[0].budget_tokens, tuple(sorted(rows, key=position)), tuple(notes))


def final_loss(run: Run) -> float:
    """Return the loss at the last step of the schedule, nats/token; infinite for a run that has none."""
    return run.final.loss if run.final else math.inf


def make_row(group: Group, base: Group) -> Row:
    """Return a group's row."""
    rate, runs = group.best()
    _, base_runs = base.best()
    seeds = () if group is base else tuple(sorted(runs.keys() & base_runs.keys()))
    deltas = [100 * (final_loss(runs[seed]) / final_loss(base_runs[seed]) - 1) for seed in seeds]
    changes = {
        key.removeprefix("model."): f"{word(base.setting.get(key))} -> {word(group.setting.get(key))}"
        for key in differing_keys(base.setting, group.setting)
    }
    return Row(
        changes=changes,
        learning_rate=rate,
        rates_tried=tuple(sorted({run.learning_rate for run in (*group.runs, *group.diverged)})),
        loss=fmean(map(final_loss, runs.values())) if runs else None,
        losses={seed: final_loss(runs[seed]) for seed in sorted(runs)},
        delta_percent=fmean(deltas) if deltas else None,
        standard_error=stdev(deltas) / math.sqrt(len(deltas)) if len(deltas) > 1 else None,
        paired_seeds=seeds,
        diverged=len(group.diverged),
        scales=mean_scales(list(runs.values())),
        paper=find_paper_row(group.setting, base.setting),
        runs=tuple(runs[seed].name for seed in sorted(runs)),
    )


def find_base(groups: list[Group], base_run: str | None) -> Group:
    """Return the group of base_run; else the one that differs least from all others, and then from the paper's nGPT."""
    finished = [group for group in groups if group.runs]
    if base_run is not None:
        # The setting is what counts: at another budget it is the run of that setting.
        chosen = [group for group in finished if base_run in [run.name for run in group.runs]]
        if not chosen:
            raise AblationError(f"base {base_run}: no finished run of that name at each budget; give one budget's runs")
        return chosen[0]

    def distance(group: Group) -> tuple[int, int]:
        plain = plain_setting(group.setting["model.n_embd"])
        from_paper = sum(not equal(group.setting.get(key), value) for key, value in plain.items())
        return sum(len(differing_keys(group.setting, other.setting)) for other in groups), from_paper

    return min(finished, key=distance)


def mean_scales(runs: list[Run]) -> dict[str, float]:
    """Return the mean over runs of each learned scale's mean |value| at the last step, where it was logged."""
    values: dict[str, list[float]] = {}
    for run in runs:
        for name, value in _read_scales(Path(run.path), run.max_steps).items():
            values.setdefault(name, []).append(value)
    return {name: fmean(numbers) for name, numbers in sorted(values.items())}


def _read_scales(run: Path, step: int) -> dict[str, float]:
    """Return the scales' means that a run recorded at a step, by the scales' names."""
    found: dict[str, float] = {}
    for record in read_records(run):
        for key, value in record.items() if record["step"] == step else ():
            number = to_number(value)
            if key.startswith("scale/") and number is not None and math.isfinite(number):
                found[key.removeprefix("scale/")] = number
    return found
