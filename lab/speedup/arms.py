"""Name the arms: what is compared, a model together with the settings that set it apart."""

from collections import Counter
from collections.abc import Sequence

from lab.runs import Run, lookup
from lab.speedup.comparable import CONTROLLED_KEYS, fill_in, read_defaults
from lab.words import shorten


def label_arms(runs: Sequence[Run], across: tuple[str, ...] = ()) -> dict[str, str]:
    """Return {run name: arm}: the model, what `across` (precision, a dotted key) splits, and changes inside the model.

    Of the settings of `model.*` that vary among the runs of one model, an arm is named by those in which it leaves the usual
    value: the base of an ablation has the model's plain name.
    """
    arms = {}
    for model in dict.fromkeys(run.model for run in runs):
        members = [run for run in runs if run.model == model]
        recipes = fill_in(members)
        usual = _find_usual_values(model, recipes, {"model.name", *CONTROLLED_KEYS, *across})
        for run, recipe in zip(members, recipes, strict=True):
            parts = [model, *(_name_value(run, key) for key in across)]
            parts += [
                f"{key.removeprefix('model.')}={_short(recipe.get(key))}" for key in usual if str(recipe.get(key)) != usual[key]
            ]
            arms[run.name] = " ".join(parts)
    return {run.name: arms[run.name] for run in runs}


def _name_value(run: Run, key: str) -> str:
    """Return a run's value of a setting that arms are split by, as a part of the arm's name."""
    if key == "precision":
        return str(lookup(run.config, "precision.name") or lookup(run.config, "precision"))
    return f"{key.split('.')[-1]}={shorten(lookup(run.config, key))}"


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
