"""Decide which runs may be compared, and say what they share and where they differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.config import NEUTRAL
from lab.runs import Run, lookup, to_number
from lab.words import shorten
from runfolder.layout import is_replaced

# What must be equal for a comparison to mean anything: (words, where it is read, dotted key).
CONTROLLED_FIELDS = (
    ("data digest", "environment", "data.digest"),
    ("tokenizer digest", "environment", "data.tokenizer.digest"),
    ("evaluation digest (validation windows)", "environment", "evaluation.digest"),
    ("context (sequence_length)", "config", "model.sequence_length"),
    ("global_batch_size", "config", "global_batch_size"),
    ("n_layer", "config", "model.n_layer"),
    ("n_head", "config", "model.n_head"),
    ("n_embd", "config", "model.n_embd"),
    ("vocab_size", "config", "model.vocab_size"),
    ("precision", "config", "precision"),
)
# Fields that change the speed of a step but not what is learned: seconds are comparable only where these agree.
SPEED_FIELDS = (
    ("device", "environment", "device"),
    ("world_size", "environment", "world_size"),
    ("compile", "config", "compile"),
    ("micro_batch_size", "config", "micro_batch_size"),
    ("parallel", "config", "parallel"),
)
# Neutral keys that a reader of the report wants to see all the same: labels, and what shapes the speed.
TOLD = {"size", "context", "data", "eval_interval", "micro_batch_size", "compile", "parallel", "recompute_layers", "on_nonfinite"}
# Keys that name, place or watch a run.
BOOKKEEPING = (*sorted(NEUTRAL - TOLD), "data.dir", "data.files")
# Keys that identify a run inside its arm, or that leave the result as it is (eval_windows: the evaluation's digest is compared).
NOT_A_VARIANT = (*sorted(NEUTRAL), "seed", "learning_rate", "max_steps", "eval_windows")


class IncomparableError(Exception):
    """Say, one difference a line, why runs cannot be compared."""


@dataclass(frozen=True)
class Difference:
    """Name one field that two runs disagree on."""

    field: str
    run_a: str
    value_a: object
    run_b: str
    value_b: object

    def __str__(self) -> str:
        return f"{self.field} differs: {shorten(self.value_a)} in {self.run_a}, {shorten(self.value_b)} in {self.run_b}"


@dataclass(frozen=True)
class Provenance:
    """List config fields: the same in all runs, set per arm, or varied within an arm ({key: {arm: values}})."""

    same: dict
    per_arm: dict
    varied: dict


def read_field(run: Run, source: str, key: str):
    """Return a field of a run; a group (precision, device) is compared as a whole."""
    value = lookup(getattr(run, source), key)
    if isinstance(value, dict):
        value = ", ".join(f"{name}={item}" for name, item in sorted(flatten(value).items()))
    return value


def find_differences(runs: list[Run], across: tuple[str, ...] = ()) -> list[Difference]:
    """Return one difference per controlled field that is not the same in all runs (precision may be what arms are)."""
    differences = []
    for words, source, key in CONTROLLED_FIELDS:
        if key == "precision" and key in across:
            continue
        values = [read_field(run, source, key) for run in runs]
        other = next((index for index, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            differences.append(Difference(words, runs[0].name, values[0], runs[other].name, values[other]))
    return differences


def find_unrecorded(runs: Sequence[Run]) -> list[str]:
    """Return the controlled fields that no run recorded, and that were therefore not checked."""
    return [words for words, source, key in CONTROLLED_FIELDS if all(read_field(run, source, key) is None for run in runs)]


def find_speed_differences(runs: list[Run]) -> list[str]:
    """Return, in words, why the training seconds of these runs are not a comparison of the models."""
    reasons = []
    for words, source, key in SPEED_FIELDS:
        values = sorted({shorten(read_field(run, source, key)) for run in runs})
        if len(values) > 1:
            reasons.append(f"{words} differs ({' / '.join(values)})")
    return reasons


def reason_left_out(run: Run) -> str | None:
    """Return why a run is no point of a ladder (replaced, diverged, or not annealed to its last step), else None."""
    if is_replaced(run.path):
        return "set aside by resume=never"
    where = f"at step {run.last_step} of {run.max_steps}"
    if run.state == "diverged":
        return f"diverged {where}" + (f": {run.message}" if run.message else "")
    if run.state != "done":
        return f"unfinished: {run.state} {where}, so its learning rate was not annealed"
    if run.last_step < run.max_steps:
        return f"unfinished: last record {where}, so its learning rate was not annealed"
    if run.final is None:
        return f"unfinished: no validation at its last step, {run.max_steps}"
    if not math.isfinite(run.final.loss):
        return f"diverged: the final validation loss is {run.final.loss}"
    if run.final.tokens <= 0:
        return "its final validation records no tokens"
    return None


def has_diverged(run: Run) -> bool:
    """Return whether a run diverged: its learning rate was tried all the same."""
    return (reason_left_out(run) or "").startswith("diverged")


def label_arm(run: Run, across: tuple[str, ...] = ()) -> str:
    """Return the arm a run belongs to: its model, and the settings (precision, a dotted key) that split arms."""
    parts = [run.model]
    for key in across:
        if key == "precision":
            parts.append(str(lookup(run.config, "precision.name") or lookup(run.config, "precision")))
        else:
            parts.append(f"{key.split('.')[-1]}={shorten(lookup(run.config, key))}")
    return " ".join(parts)


def flatten(mapping: dict, prefix: str = "") -> dict:
    """Return nested dicts as one dict of dotted keys."""
    flat = {}
    for key, value in mapping.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def describe_variants(runs: list[Run], across: tuple[str, ...] = ()) -> dict[str, str]:
    """Return {run name: the settings that set it apart from runs of equal arm, budget and learning rate}.

    Two such runs that differ in more than the seed (say, in weight_decay) are two candidates, not two seeds. A
    difference inside the model (an ablation) counts across the whole arm.
    """
    arms: dict[str, list[Run]] = {}
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        arm = label_arm(run, across)
        arms.setdefault(arm, []).append(run)
        groups.setdefault((arm, run.budget_tokens, run.learning_rate), []).append(run)
    variants = {}
    for (arm, _, _), members in groups.items():
        keys = _find_varying(members) | {key for key in _find_varying(arms[arm]) if key.startswith("model.")}
        for run in members:
            flat = flatten(run.config)
            variants[run.name] = ", ".join(f"{key}={shorten(flat.get(key))}" for key in sorted(keys))
    return variants


def _find_varying(runs: list[Run]) -> set[str]:
    """Return the settings, other than those that identify a run inside its arm, on which runs differ."""
    flats = [_recipe(run, NOT_A_VARIANT) for run in runs]
    return {key for flat in flats for key in flat if len({str(other.get(key)) for other in flats}) > 1}


def _recipe(run: Run, excluded: tuple = ()) -> dict:
    """Return the flat config without the fields that do not shape the result."""
    skip = (*BOOKKEEPING, *excluded)
    return {
        key: value
        for key, value in flatten(run.config).items()
        if key not in skip and not key.startswith(tuple(f"{name}." for name in skip))
    }


def describe_provenance(runs: list[Run], arms: dict[str, str]) -> Provenance:
    """Sort every config field by whether it is equal everywhere, set per arm, or varied within an arm."""
    facts = {}
    for run in runs:
        measured = {
            f"environment.{key}": read_field(run, source, key)
            for _, source, key in CONTROLLED_FIELDS + SPEED_FIELDS
            if source == "environment"
        }
        commit = {"environment.commit": run.environment.get("commit")}
        counts = {
            f"environment.parameters.{key}": lookup(run.environment, f"parameters.{key}") for key in ("total", "non_embedding")
        }
        facts[run.name] = {**_recipe(run), **measured, **counts, **commit}
    same, per_arm, varied = {}, {}, {}
    for key in sorted({key for fact in facts.values() for key in fact}):
        values: dict = {}
        for run in runs:
            seen = values.setdefault(arms[run.name], [])
            value = facts[run.name].get(key)
            if value not in seen:
                seen.append(value)
        distinct = {str(value) for seen in values.values() for value in seen}
        if len(distinct) == 1:
            same[key] = next(iter(values.values()))[0]
        elif all(len(seen) == 1 for seen in values.values()):
            per_arm[key] = {arm: seen[0] for arm, seen in values.items()}
        else:
            varied[key] = {
                arm: sorted(seen, key=lambda value: (to_number(value) is None, to_number(value) or 0, str(value)))
                for arm, seen in values.items()
            }
    return Provenance(same, per_arm, varied)
