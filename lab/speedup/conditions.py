"""The conditions of a comparison: the settings of its runs, and in what the arms differ beside the model."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from engine.config import is_neutral
from lab.runs import Run, to_number
from lab.speedup.comparable import CONTROLLED_FIELDS, IDENTIFYING, SPEED_FIELDS, read_field, read_recipe
from lab.speedup.ladder import Ladder
from lab.words import display_arm, format_rate, format_tokens, shorten


@dataclass(frozen=True)
class Settings:
    """The same in all runs; set per arm, {key: {arm: value}}; or varied within an arm, {key: {arm: values}}."""

    same: dict[str, object]
    per_arm: dict[str, dict[str, object]]
    varied: dict[str, dict[str, list]]


def sort_settings(runs: Sequence[Run], arms: dict[str, str]) -> Settings:
    """Sort every setting by whether it is equal everywhere, set per arm, or varied within an arm."""
    facts = {}
    for run in runs:
        recorded = [(source, key) for _, source, key in CONTROLLED_FIELDS + SPEED_FIELDS if source == "environment"]
        recorded += [("environment", key) for key in ("parameters.total", "parameters.non_embedding", "commit")]
        facts[run.name] = read_recipe(run, told=True) | {
            f"{source}.{key}": read_field(run, source, key) for source, key in recorded
        }
    same: dict[str, object] = {}
    per_arm: dict[str, dict[str, object]] = {}
    varied: dict[str, dict[str, list]] = {}
    for key in sorted({key for fact in facts.values() for key in fact}):
        values: dict[str, list] = {}
        for run in runs:
            seen = values.setdefault(arms[run.name], [])
            if facts[run.name].get(key) not in seen:
                seen.append(facts[run.name].get(key))
        if len({str(value) for seen in values.values() for value in seen}) == 1:
            same[key] = next(iter(values.values()))[0]
        elif all(len(seen) == 1 for seen in values.values()):
            per_arm[key] = {arm: seen[0] for arm, seen in values.items()}
        else:
            varied[key] = {arm: sorted(seen, key=_by_size) for arm, seen in values.items()}
    return Settings(same, per_arm, varied)


def describe_conditions(ladders: dict[str, Ladder], settings: Settings) -> list[str]:
    """Return in sentences which budgets, schedule and seeds there were, and in what the arms differ beside the model."""
    warmup = _list_values(settings, "warmup_steps", ladders)
    floor = _list_values(settings, "min_learning_rate", ladders)
    different = [
        f"{key.removeprefix('model.')} {_list_values(settings, key, ladders)}" for key in find_different_settings(settings, ladders)
    ]
    fraction, decay = (_list_values(settings, key, ladders) for key in ("decay_fraction", "decay"))
    shapes = {
        "cosine": "one cosine from the peak rate",
        "wsd": f"the peak rate, then a decay over the last {fraction} of the steps ({decay})",
    }
    schedule = _list_values(settings, "schedule", ladders)
    sentences = [
        _per_arm("Budgets, in tokens: ", ladders, _list_budgets) + ". Each is a run of its own.",
        "Schedule: linear warmup" + (f" ({warmup} steps)" if warmup else "") + f", then {shapes.get(schedule, schedule)}"
        f" down to {floor or 'the minimum'} at the run's last step; runs that did not get there are left out.",
        _per_arm("Seeds (initial weights and order of the data): ", ladders, _list_seeds) + ".",
    ]
    if len(ladders) > 1:
        sentences.append(f"Beside the model the arms differ in: {'; '.join(different) or 'nothing'}.")
    return sentences


def find_different_settings(settings: Settings, arms: Iterable[str]) -> list[str]:
    """Return the settings that every arm has and that are not the same in all: what only one model has is what is compared."""
    values = {key: {arm: [value] for arm, value in found.items()} for key, found in settings.per_arm.items()} | settings.varied
    return [
        key
        for key, found in sorted(values.items())
        if not is_neutral(key)
        and not key.startswith("environment.")
        and key not in IDENTIFYING | {"model.name"}
        and len({str(seen) for seen in found.values()}) > 1
        and not any(None in found.get(arm, [None]) for arm in arms)
    ]


def _per_arm(start: str, ladders: dict[str, Ladder], say: Callable[[Ladder], str]) -> str:
    """Return what `say` says of each arm, once where it says the same of all."""
    said = {display_arm(arm): say(ladder) for arm, ladder in ladders.items()}
    if len(set(said.values())) == 1:
        return start + next(iter(said.values())) + (", for every arm" if len(said) > 1 else "")
    return start + "; ".join(f"{arm} {words}" for arm, words in said.items())


def _list_budgets(ladder: Ladder) -> str:
    return ", ".join(format_tokens(point.tokens) for point in ladder.points)


def _list_seeds(ladder: Ladder) -> str:
    sets = {point.best.seeds for point in ladder.points}
    counts = sorted({len(set(seeds)) for seeds in sets})
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{number} at each point ({shorten(', '.join(map(str, sorted(set().union(*sets)))), 60)})"


def _list_values(settings: Settings, key: str, arms: Iterable[str]) -> str:
    """Return a setting's values in words: one, or those of each arm; empty where no run has it."""
    if key in settings.same:
        return "" if settings.same[key] is None else _word(settings.same[key])
    values = {arm: [value] for arm, value in settings.per_arm.get(key, {}).items()} or settings.varied.get(key, {})
    named: dict[str, list[str]] = {}
    for arm in arms:
        if arm in values:
            named.setdefault(shorten(" or ".join(map(_word, values[arm]))), []).append(display_arm(arm))
    return ", ".join(f"{' and '.join(who) if len(who) < 4 else f'{len(who)} arms'} {words}" for words, who in named.items())


def _word(value: object) -> str:
    """Return a setting's value, a number as it is written by hand."""
    number = None if isinstance(value, bool) else to_number(value)
    return shorten(value) if number is None else format_rate(number) if 0 < number < 0.01 else f"{number:g}"


def _by_size(value: object) -> tuple:
    number = to_number(value)
    return number is None, number or 0, str(value)
