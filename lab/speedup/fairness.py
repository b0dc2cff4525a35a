"""Say in sentences what makes a comparison fair: what was equal, what was tuned, how many seeds, which schedule."""

from lab.runs import lookup, to_number
from lab.speedup.comparable import CONTROLLED_FIELDS, Provenance, find_unrecorded, read_field
from lab.speedup.ladder import Ladder
from lab.speedup.report import Analysis
from lab.words import display_arm, format_rate, format_tokens, shorten

WORDS = {
    "data.digest": "training text",
    "data.tokenizer.digest": "tokenizer",
    "evaluation.digest": "validation windows",
    "model.sequence_length": "context {}",
    "global_batch_size": "batch of {} sequences",
    "model.n_layer": "{} layers",
    "model.n_head": "{} heads",
    "model.n_embd": "width {}",
    "model.vocab_size": "vocabulary of {}",
    "precision": "precision {}",
}


def describe_fairness(analysis: Analysis) -> list[str]:
    """Return one sentence or two for each condition of the comparison, all of them computed from the run folders."""
    ladders = list(analysis.ladders.values())
    return [
        _describe_equal(analysis),
        _per_arm("Budgets, in tokens: ", ladders, _list_budgets) + ". Each is a run of its own.",
        _describe_schedule(analysis),
        _describe_tuning(ladders),
        _per_arm("Seeds (initial weights and order of the data): ", ladders, _list_seeds)
        + ". The same seed is the same order of the data for every arm.",
        *_describe_recipes(analysis),
    ]


def _per_arm(start: str, ladders: list[Ladder], say) -> str:
    """Return what `say` says of each arm, once where it says the same of all."""
    said = {display_arm(ladder.arm): say(ladder) for ladder in ladders}
    if len(set(said.values())) == 1:
        return start + next(iter(said.values())) + (", for every arm" if len(said) > 1 else "")
    return start + "; ".join(f"{arm} {words}" for arm, words in said.items())


def _describe_equal(analysis: Analysis) -> str:
    """Return what was checked to be equal in all runs, with the values that a reader understands."""
    unrecorded, named = find_unrecorded(analysis.runs), []
    for words, source, key in CONTROLLED_FIELDS:
        values = {str(read_field(run, source, key)) for run in analysis.runs}
        if words not in unrecorded and len(values) == 1:
            value = lookup(analysis.runs[0].config, f"{key}.name") or next(iter(values))
            named.append(WORDS.get(key, f"{words} {{}}").format(shorten(value, 60)))
    sentence = f"Equal in all {len(analysis.runs)} runs, and checked: {', '.join(named)}."
    return sentence + (f" Not recorded, so not checked: {', '.join(unrecorded)}." if unrecorded else "")


def _list_budgets(ladder: Ladder) -> str:
    return ", ".join(format_tokens(point.tokens) for point in ladder.points)


def _describe_schedule(analysis: Analysis) -> str:
    warmup = _list_values(analysis.provenance, "warmup_steps", analysis)
    floor = _list_values(analysis.provenance, "min_learning_rate", analysis)
    return (
        "Schedule: linear warmup" + (f" ({warmup} steps)" if warmup else "") + ", then one cosine from the peak rate"
        f" down to {floor or 'the minimum'} at the run's last step; runs that did not get there are left out."
    )


def _describe_tuning(ladders: list[Ladder]) -> str:
    """Return which learning rates each arm chose from, and what was not tuned."""
    points = [point for ladder in ladders for point in ladder.points]
    if all(len(point.tried) == 1 for point in points):
        return _per_arm("Tuned: nothing. One learning rate: ", ladders, _list_rates) + "."
    inside = sum(point.edge is None for point in points)
    return (
        _per_arm(
            "Tuned: the peak learning rate alone, for each arm and budget by itself, by the final validation loss "
            "(mean over seeds). Tried: ",
            ladders,
            _list_rates,
        )
        + f". The best lies inside its grid at {inside} of {len(points)} points."
    )


def _list_rates(ladder: Ladder) -> str:
    counts = sorted({len(point.tried) for point in ladder.points})
    rates = sorted({rate for point in ladder.points for rate in point.tried})
    per_budget = f" ({counts[0]} to {counts[-1]} a budget)" if len(counts) > 1 else ""
    return ", ".join(map(format_rate, rates)) + per_budget


def _list_seeds(ladder: Ladder) -> str:
    sets = {point.best.seeds for point in ladder.points}
    counts = sorted({len(set(seeds)) for seeds in sets})
    every = sorted({seed for seeds in sets for seed in seeds})
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{number} at each point ({shorten(', '.join(map(str, every)), 60)})"


def _describe_recipes(analysis: Analysis) -> list[str]:
    """Return the settings, other than the schedule, that every arm has and that were given by arm."""
    # What only one arm has (nGPT's scales) is what is compared, not a condition of the comparison.
    shared = [
        key
        for key, values in analysis.provenance.per_arm.items()
        if not key.startswith("environment.")
        and key not in ("model.name", "warmup_steps", "min_learning_rate")
        and None not in values.values()
    ]
    if not shared:
        return []
    named = [f"{key.removeprefix('model.')} {_list_values(analysis.provenance, key, analysis)}" for key in shared]
    return [f"Given by each arm's recipe, not tuned here: {'; '.join(named)}. All settings are listed below."]


def _word(value) -> str:
    """Return a setting's value, a number as it is written by hand."""
    number = None if isinstance(value, bool) else to_number(value)
    return shorten(value) if number is None else format_rate(number) if 0 < number < 0.01 else f"{number:g}"


def _list_values(provenance: Provenance, key: str, analysis: Analysis) -> str:
    """Return a setting's values in words: one, or those of each arm; empty where no run has it."""
    if key in provenance.same:
        value = provenance.same[key]
        return "" if value is None else _word(value)
    values = {arm: [value] for arm, value in provenance.per_arm.get(key, {}).items()} or provenance.varied.get(key, {})
    words = {arm: shorten(" or ".join(map(_word, seen))) for arm, seen in values.items()}
    return ", ".join(f"{display_arm(arm)} {words[arm]}" for arm in analysis.ladders if arm in words)
