"""Decide which runs may be compared with which, and tell candidates and seeds apart (arms: arms.py).

A *section* holds the runs of one model size, context, corpus and tokenizer. Inside it an *arm* is what is compared: a model with
the settings of `model.*` that set it apart. A *budget* is a number of tokens. At one budget of an arm a *candidate* is a learning
rate, together with its *variant* where other settings differ as well. Runs of a candidate that differ in the seed alone are its
seeds. Keys that leave the result alone (`engine.config.NEUTRAL`) tell nothing apart.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass

from engine.config import RETIRED, Config, is_neutral
from lab.runs import Run, Validation, lookup, to_number
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
    ("recompute_layers", "config", "recompute_layers"),
    ("torch", "environment", "versions.torch"),
)
# Neutral keys that a reader of the report wants to see all the same: labels, and what shapes the speed.
TOLD = {"size", "context", "data", "eval_interval", "micro_batch_size", "compile", "parallel", "recompute_layers", "on_nonfinite"}
# Keys that identify a run inside its arm, and one whose effect is compared by the digest of the evaluation.
IDENTIFYING = {"seed", "learning_rate", "max_steps", "eval_windows"}
# Neutral unless something was not finite: then they decide what became of the run.
ON_NONFINITE = {"on_nonfinite", "max_nonfinite"}
CONTROLLED_KEYS = {key for _, source, key in CONTROLLED_FIELDS if source == "config"}


class IncomparableError(Exception):
    """Say, one difference a line, why runs cannot be compared."""


@dataclass(frozen=True)
class Difference:
    """One field that two runs disagree on."""

    field: str
    run_a: str
    value_a: object
    run_b: str
    value_b: object

    def __str__(self) -> str:
        return f"{self.field} differs: {shorten(self.value_a)} in {self.run_a}, {shorten(self.value_b)} in {self.run_b}"


def read_field(run: Run, source: str, key: str):
    """Return a field of a run, a newer key's default; a group (precision, device) is compared as a whole."""
    value = lookup(getattr(run, source), key)
    if value is None and source == "config":
        value = DEFAULTS.get(key)
    if isinstance(value, dict):
        value = ", ".join(f"{name}={item}" for name, item in sorted(flatten(value).items()))
    return value


def find_differences(runs: Sequence[Run], across: tuple[str, ...] = ()) -> list[Difference]:
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


def find_speed_differences(runs: Sequence[Run]) -> list[str]:
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
    return _describe_blow_up(run)


def end_of(run: Run) -> Validation:
    """Return the last validation of a run that is known to have finished."""
    assert run.final is not None, run.name
    return run.final


def _describe_blow_up(run: Run) -> str | None:
    """Return how a run diverged whose loss stayed finite, None if it did not.

    It did if its final loss is as high as that of guessing (log of the vocabulary, or the loss before the first step), or
    if it lost more than half of what it had learned.
    """
    guesses = [math.log(size) for size in [to_number(lookup(run.config, "model.vocab_size"))] if size and size > 1]
    guesses += [point.loss for point in run.curve if point.step == 0 and math.isfinite(point.loss)]
    if not guesses:
        return None
    guess, final = min(guesses), end_of(run).loss
    lowest = min((point for point in run.curve if math.isfinite(point.loss)), key=lambda point: point.loss)
    if final >= 0.99 * guess:
        return f"diverged: its final loss, {final:.3f}, is that of guessing ({guess:.3f})"
    if final - lowest.loss > 0.5 * (guess - lowest.loss):
        return f"diverged: its loss was {lowest.loss:.3f} at step {lowest.step} and ended at {final:.3f}"
    return None


def has_diverged(run: Run) -> bool:
    """Return whether a run diverged: its learning rate was tried all the same."""
    return (reason_left_out(run) or "").startswith("diverged")


def flatten(mapping: dict, prefix: str = "") -> dict:
    """Return nested dicts as one dict of dotted keys."""
    flat = {}
    for key, value in mapping.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def describe_variants(runs: Sequence[Run], arms: dict[str, str]) -> dict[str, str]:
    """Return {run name: the settings that set it apart from runs of equal arm, budget and learning rate}.

    Two such runs that differ in more than the seed (say, in weight_decay) are two candidates, not two seeds.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault((arms[run.name], run.budget_tokens, run.learning_rate), []).append(run)
    variants = {}
    for members in groups.values():
        skip = IDENTIFYING if any(run.was_nonfinite for run in members) else IDENTIFYING | ON_NONFINITE
        recipes = fill_in(members)
        keys = sorted({key for recipe in recipes for key in recipe} - skip)
        varying = [key for key in keys if len({str(recipe.get(key)) for recipe in recipes}) > 1]
        for run, recipe in zip(members, recipes, strict=True):
            variants[run.name] = ", ".join(f"{key}={shorten(recipe.get(key))}" for key in varying)
    return variants


def read_recipe(run: Run, told: bool = False) -> dict:
    """Return the flat settings that shape a run's result; with `told` also the neutral ones that a reader wants to see.

    A key that is newer than the run's folder has its default, and one that was given up since is left out.
    """
    flat = DEFAULTS | flatten(run.config)
    for key, value in RETIRED.items():
        if flat.get(f"model.{key}") is value:
            del flat[f"model.{key}"]
    kept = ON_NONFINITE | (TOLD if told else set())
    return {
        key: number if (number := to_number(value)) is not None else value
        for key, value in flat.items()
        if key.partition(".")[0] in kept or not is_neutral(key)
    }


def _list_defaults() -> dict:
    defaults: dict = {}
    for item in fields(Config):
        value = item.default if item.default_factory is MISSING else item.default_factory()
        if value is not MISSING:
            defaults |= flatten({item.name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value})
    return defaults


DEFAULTS = _list_defaults()


def fill_in(runs: Sequence[Run]) -> list[dict]:
    """Return the runs' recipes, a setting of the model that only some folders have filled in with its default."""
    recipes = [read_recipe(run) for run in runs]
    keys = {key for recipe in recipes for key in recipe if key.startswith("model.")}
    for run, recipe in zip(runs, recipes, strict=True):
        for key in keys - recipe.keys():
            recipe[key] = read_defaults(run.model).get(key)
    return recipes


@functools.cache
def read_defaults(model: str) -> dict:
    """Return the defaults of a model's settings by dotted key, empty for a model that is not ours."""
    from engine.models import MODELS  # with it comes torch, which takes seconds

    values = asdict(MODELS[model].Config()) if model in MODELS else {}
    return {f"model.{key}": value if (number := to_number(value)) is None else number for key, value in values.items()}
