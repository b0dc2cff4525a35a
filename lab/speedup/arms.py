"""Name the arms: what is compared, a model together with the settings that set it apart."""

from collections import Counter
from collections.abc import Sequence

from lab.runs import Run, lookup
from lab.speedup.comparable import CONTROLLED_KEYS, fill_in, read_defaults, read_field
from lab.words import shorten

# What makes arms of one model's runs beside its own settings, each with the value that an arm's name leaves out.
RULES = {"update": "adamw", "parametrization": "standard"}
SCHEDULE = ("schedule", "decay_fraction", "decay")


def label_arms(runs: Sequence[Run], across: tuple[str, ...] = ()) -> dict[str, str]:
    """Return {run name: arm}: the model, its update rule and parametrization, what `across` splits, and changes inside the model.

    `across` is precision or a dotted key. Of the settings of `model.*` that vary among the runs of one model and rule, an arm is
    named by those in which it leaves the usual value: the base of an ablation has the model's plain name.
    """
    families: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        values = {key: str(read_field(run, "config", key)) for key in RULES if key not in across}
        unusual = (f"{key}={value}" for key, value in values.items() if value != RULES[key])
        families.setdefault((run.model, *unusual), []).append(run)
    arms = {}
    for (model, *rules), members in families.items():
        recipes = fill_in(members)
        usual = _find_usual_values(model, recipes, {"model.name", *CONTROLLED_KEYS, *across})
        for run, recipe in zip(members, recipes, strict=True):
            parts = [model, *rules, *(_name_value(run, key) for key in across)]
            parts += [
                f"{key.removeprefix('model.')}={_short(recipe.get(key))}" for key in usual if str(recipe.get(key)) != usual[key]
            ]
            arms[run.name] = " ".join(parts)
    return {run.name: arms[run.name] for run in runs}


def find_mixed_schedules(runs: Sequence[Run], arms: dict[str, str]) -> list[str]:
    """Return one line per arm whose runs were annealed by different schedules: their ends are no points of one ladder."""
    lines = []
    for arm in dict.fromkeys(arms[run.name] for run in runs):
        members = [run for run in runs if arms[run.name] == arm]
        values = {key: {str(read_field(run, "config", key)): run.name for run in members} for key in SCHEDULE}
        if len(values["schedule"]) == 1 and "wsd" not in values["schedule"]:
            continue  # the other keys shape the decay of wsd alone
        key = next((key for key in SCHEDULE if len(values[key]) > 1), None)
        if key:
            lines.append(f"{arm} mixes schedules: " + ", ".join(f"{key}={value} in {name}" for value, name in values[key].items()))
    return lines


def _name_value(run: Run, key: str) -> str:
    """Return a run's value of a setting that arms are split by, as a part of the arm's name."""
    if key == "precision":
        return str(lookup(run.config, "precision.name") or lookup(run.config, "precision"))
    return f"{key.split('.')[-1]}={shorten(read_field(run, 'config', key))}"


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else shorten(value, 40)


def _find_usual_values(model: str, recipes: Sequence[dict], skipped: set[str]) -> dict[str, str]:
    """Return {key: usual value} of the settings of `model.*` that vary: the most common one, of equally common the default."""
    usual = {}
    for key in sorted({key for recipe in recipes for key in recipe if key.startswith("model.")} - skipped):
        counts = Counter(str(recipe.get(key)) for recipe in recipes).most_common()
        if len(counts) > 1:
            common = [value for value, count in counts if count == counts[0][1]]
            default = str(read_defaults(model).get(key)) if len(common) > 1 else ""
            usual[key] = default if default in common else common[0]
    return usual
