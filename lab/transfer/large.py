"""The command of a large run whose rate and initial scales were tuned small."""

from dataclasses import dataclass

from hydra.errors import HydraException

from cli.composition import compose_words, explain_composition, to_dataclass
from engine.checks import check_config
from engine.config import Config
from engine.models import TRANSFERS
from lab.runs import lookup
from lab.speedup.comparable import read_field
from lab.transfer.series import Series, Size, base_of, changes_nothing, say
from lab.words import format_rate

# Beside the rate: settings of the small run that the large one takes over; warmup keeps its share of the steps.
KEPT = ("weight_decay", "update", "schedule", "decay_fraction", "decay")


@dataclass(frozen=True)
class Large:
    """The command, and what its reader must know."""

    arm: str
    command: str
    notes: tuple[str, ...]


def describe_large(series: list[Series], size: str, context: str, max_steps: int | None) -> list[Large]:
    """Return the large run of each arm that has rules: from the base where transfer was tuned, else from the smallest standard.

    Raises:
        ConfigError: the large run could not start.
    """
    found = []
    for arm in dict.fromkeys(item.arm for item in series):
        transferred = [item for item in series if item.arm == arm and item.parametrization == "transfer"]
        standard = [item for item in series if item.arm == arm and item.parametrization == "standard"]
        bases = [(item, base_of(next(reversed(item.runs.values())))) for item in transferred]
        chosen = [(item, base) for item, base in bases if base in item.optima] or [(item, min(item.optima)) for item in standard]
        if chosen and chosen[0][0].runs[chosen[0][1]].model in TRANSFERS:
            found.append(describe_one(*chosen[0], size, context, max_steps))
    return found


def describe_one(series: Series, base: Size, size: str, context: str, max_steps: int | None) -> Large:
    run, optimum = series.runs[base], series.optima[base]
    words = [f"model={run.model}", f"size={size}", f"context={context}"]
    words += [f"max_steps={max_steps}"] if max_steps else []
    large = compose_run(words)
    words += ["parametrization=transfer", f"base.n_embd={base.width}", f"base.n_layer={base.depth}", f"base.max_steps={base.steps}"]
    words.append(f"learning_rate={format_rate(float(f'{optimum.rate:.2g}'))}")
    words += [f"model.{key}={value:g}" for key, value in lookup(run.config, "model").items() if key.endswith(("_init", "_std"))]
    warmup = round(float(read_field(run, "config", "warmup_steps") or 0) / base.steps * large.max_steps)
    words += [f"warmup_steps={warmup}"] if warmup != large.warmup_steps else []
    for key in KEPT:
        value = read_field(run, "config", key)
        words += [f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"] if value != getattr(large, key) else []
    compose_run(words)
    return Large(series.arm, " ".join(["python train.py", *words]), tuple(list_notes(series, base, large)))


def list_notes(series: Series, base: Size, large: Config) -> list[str]:
    optimum, run = series.optima[base], series.runs[base]
    depth, steps = large.model["n_layer"] / base.depth, large.max_steps / base.steps
    notes = [f"tuned at {say(base)}, parametrization={series.parametrization}"]
    if not optimum.is_inside:
        notes.append("the best rate is the end of the grid: try rates beyond it before you spend anything on the large run")
    here = base.width // int(lookup(run.config, "model.n_head"))
    there = large.model["n_embd"] // large.model["n_head"]
    if here != there:
        notes.append(f"heads of {here} in the small run, of {there} in the large one: the rules suppose one head size")
    if (depth, steps) != (1, 1) and changes_nothing(run, depth, steps):
        notes.append("the rules of this arm say nothing of depth and steps: the rate is the base's; longer runs want a lower one")
    width = large.model["n_embd"] / base.width
    notes.append(f"a step of {width:.3g} times in width, {depth:.3g} in depth and {steps:.3g} in steps: a prediction")
    return notes


def compose_run(words: list[str]) -> Config:
    """Return the configuration that train.py would run with these arguments, checked."""
    try:
        config = to_dataclass(compose_words("train", words), Config)
    except HydraException as error:
        raise explain_composition(error, Config, "train") from None
    check_config(config)
    return config
