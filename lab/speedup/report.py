"""Take runs to numbers: a report of sections, each the comparison of the runs of one size, context, corpus and tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lab.runs import Run, lookup
from lab.speedup.arms import find_mixed_schedules, label_arms
from lab.speedup.caveats import Caveats, collect_caveats, describe_unsteady_timing
from lab.speedup.comparable import (
    IncomparableError,
    describe_variants,
    end_of,
    find_differences,
    find_speed_differences,
    has_diverged,
    read_field,
    reason_left_out,
)
from lab.speedup.conditions import Settings, sort_settings
from lab.speedup.decomposition import Decomposition, decompose, find_reference
from lab.speedup.equal_loss import EqualLoss, measure_needs
from lab.speedup.ladder import Endpoint, Ladder, build_ladder
from lab.speedup.published import find_claim, read_shape, read_whole
from lab.speedup.sentences import Headline, describe_alone, describe_headline, describe_time
from lab.speedup.speedup import Comparison, compare_ladders
from lab.words import format_context

Kept = list[tuple[Run, str]]


@dataclass(frozen=True)
class Section:
    """The comparison of the runs of one model size, context (tokens), corpus and tokenizer.

    `shape` is (n_layer, n_embd, n_head), `size` the name that the runs give it. `arms` maps run name to arm, `models` arm to
    model, `ladders` arm to ladder, the baseline first. `paper` is the paper's claim for this size, context and corpus.
    """

    size: str
    shape: tuple
    context: int
    data: str
    tokenizer: str
    paper: str | None
    runs: tuple[Run, ...]
    left_out: tuple[tuple[Run, str], ...]
    arms: dict[str, str]
    models: dict[str, str]
    ladders: dict[str, Ladder]
    comparisons: tuple[Comparison, ...]
    headlines: tuple[Headline, ...]
    settings: Settings
    caveats: Caveats
    equal_loss: EqualLoss | None = None
    decomposition: Decomposition | None = None

    @property
    def label(self) -> str:
        """Return the section's name: size, context, data and tokenizer."""
        tokens = "" if self.tokenizer in ("", self.data) else f", {self.tokenizer} tokens"
        return f"{self.size} at context {format_context(self.context)}, {self.data}{tokens}"

    @property
    def comparison(self) -> Comparison | None:
        """Return the comparison of nGPT with the baseline, or the first there is."""
        ours = [item for item in self.comparisons if self.models[item.challenger] == "ngpt"]
        return min(ours, key=lambda item: len(item.challenger), default=next(iter(self.comparisons), None))


@dataclass(frozen=True)
class Report:
    """Every section, and a line for what could not be one."""

    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()


def build_report(
    runs: list[Run],
    baseline: str | None = None,
    across: tuple[str, ...] = (),
    with_parts: bool = False,
    untuned_rate: float | None = None,
) -> Report:
    """Return one section per (shape, context, data, tokenizer).

    Runs of different sections are never compared. If that leaves no two arms together, the runs are refused as a whole,
    since that is hardly what was meant. `with_parts` splits arms by precision and takes the speedup apart.

    Raises:
        IncomparableError: runs that may not be compared, or none that finished.
    """
    across = tuple(dict.fromkeys((*across, "precision"))) if with_parts else across
    groups = group_runs(runs)
    finished = {key: [run for run in members if not reason_left_out(run)] for key, members in groups.items()}
    pairs = any(len(set(label_arms(members, across).values())) > 1 for members in finished.values())
    if len(groups) > 1 and not pairs and not across:
        groups = {next(iter(groups)): runs}
    sections, notes, names = [], [], name_sizes(groups)
    for key, members in sorted(groups.items(), key=lambda item: [str(part).rjust(12) for part in (*item[0][0], *item[0][1:])]):
        where = f"{names[key]} at context {format_context(key[1])}: " if len(groups) > 1 else ""
        if where and not finished[key]:
            reasons = [f"{run.name} ({reason_left_out(run)})" for run in members]
            notes.append(f"{where}no finished run: {', '.join(reasons)}")
            continue
        try:
            reference = baseline or (find_reference(finished[key], label_arms(members, across)) if with_parts else None)
            section = analyze_runs(members, reference, across)
            if with_parts:
                section = replace(section, decomposition=decompose(section.runs, section.arms, section.ladders, untuned_rate))
        except IncomparableError as error:
            raise IncomparableError(f"{where}{error}") from None
        sections.append(replace(section, size=names[key], data=key[2], tokenizer=key[3]))
    if not sections:
        raise IncomparableError("no finished run to compare:\n" + "\n".join(f"  {note}" for note in notes))
    return Report(tuple(sections), tuple(notes))


def group_runs(runs: Sequence[Run]) -> dict[tuple[tuple, int, str, str], list[Run]]:
    """Return the runs by (shape, context, data, tokenizer); data of one digest is one, whatever a run calls it."""
    named: dict[str, tuple[str, str]] = {}
    groups: dict[tuple[tuple, int, str, str], list[Run]] = {}
    for run in runs:
        names = str(lookup(run.config, "data.name") or "unnamed data"), str(lookup(run.environment, "data.tokenizer.name") or "")
        digest = lookup(run.environment, "data.digest")
        data, tokenizer = named.setdefault(digest, names) if isinstance(digest, str) else names
        key = read_shape(run), read_whole(run, "model.sequence_length") or 0, data, tokenizer
        groups.setdefault(key, []).append(run)
    return groups


def name_sizes(groups: dict[tuple, list[Run]]) -> dict[tuple, str]:
    """Return each group's size as its runs call it, or its shape where the name would not tell shapes apart."""
    called = {key: {str(lookup(run.config, "size") or "") for run in members} for key, members in groups.items()}
    names = {}
    for key, words in called.items():
        shapes = {other[0] for other, theirs in called.items() if theirs == words}
        layers, width, _ = key[0]
        names[key] = next(iter(words)) if len(words) == len(shapes) == 1 and words != {""} else f"{layers} layers of {width}"
    return names


def analyze_runs(runs: list[Run], baseline: str | None = None, across: tuple[str, ...] = ()) -> Section:
    """Return the section of runs of one size, context and corpus.

    Raises:
        IncomparableError: they may not be compared, none finished, or there is no such baseline.
    """
    left_out = [(run, reason) for run in runs if (reason := reason_left_out(run))]
    kept = [run for run in runs if not reason_left_out(run)]
    if not kept:
        raise IncomparableError("no finished run to compare:\n" + "\n".join(f"  {run.name}: {reason}" for run, reason in left_out))
    unknown = [key for key in across if all(read_field(run, "config", key) is None for run in kept)]
    if unknown:
        raise IncomparableError(f"cannot split arms by {unknown[0]!r}: no run's config.yaml has it")
    differences = find_differences(kept, across)
    if differences:
        raise IncomparableError("these runs cannot be compared:\n" + "\n".join(f"  {item}" for item in differences))
    arms = label_arms(runs, across)
    if mixed := find_mixed_schedules(kept, arms):
        hint = "compare one schedule at a time, or make arms of them with across=schedule"
        raise IncomparableError("\n".join(["these runs cannot be compared:", *(f"  {line}" for line in mixed), hint]))
    variants = describe_variants(kept, arms)
    kept, repeated = drop_repeats(kept, arms, variants)
    left_out += repeated
    order = _order_arms(list(dict.fromkeys(arms[run.name] for run in kept)), {arms[run.name]: run.model for run in kept}, baseline)
    diverged = [(arms[run.name], run.budget_tokens, run.learning_rate) for run, _ in left_out if has_diverged(run)]
    endpoints = [_find_endpoint(run, arms[run.name], variants[run.name]) for run in kept]
    ladders = {arm: build_ladder(arm, endpoints, [item[1:] for item in diverged if item[0] == arm]) for arm in order}
    comparisons = tuple(compare_ladders(ladders[order[0]], ladders[arm]) for arm in order[1:])
    slower = find_speed_differences(kept)
    headlines = tuple(
        replace(
            describe_headline(item, ladders),
            time=describe_time(item, slower + describe_unsteady_timing(ladders[item.baseline], ladders[item.challenger])),
        )
        for item in comparisons
    )
    settings = sort_settings(kept, arms)
    ((shape, context, data, tokenizer), _), *_ = group_runs(kept).items()
    claim = find_claim(shape, context, data)
    return Section(
        name_sizes({(shape,): kept})[(shape,)],
        shape,
        context,
        data,
        tokenizer,
        claim["paper"] if claim else None,
        tuple(kept),
        tuple(left_out),
        arms,
        {arms[run.name]: run.model for run in kept},
        ladders,
        comparisons,
        headlines or (describe_alone(ladders[order[0]]),),
        settings,
        collect_caveats(kept, ladders, comparisons, settings, slower),
        measure_needs(ladders),
    )


def drop_repeats(runs: list[Run], arms: dict[str, str], variants: dict[str, str]) -> tuple[list[Run], Kept]:
    """Return the runs without those that repeat another's setting and seed, and these with the reason.

    A repeat is no independent seed: it would make errors and p-values too small.
    """
    seen: dict[tuple, Run] = {}
    kept, repeated = [], []
    for run in runs:
        first = seen.setdefault((arms[run.name], run.budget_tokens, run.learning_rate, variants[run.name], run.seed), run)
        if first is run:
            kept.append(run)
        else:
            there, here = end_of(first).loss, end_of(run).loss
            same = "" if there == here else f" ({there:.4f} there, {here:.4f} here)"
            repeated.append((run, f"the same setting and seed as {first.name}{same}"))
    return kept, repeated


def _find_endpoint(run: Run, arm: str, variant: str) -> Endpoint:
    """Return the end of a finished run as one point of its arm's ladder."""
    end = end_of(run)
    seconds = end.train_seconds
    step_seconds = run.step_seconds or (seconds / run.max_steps if seconds and seconds > 0 and run.max_steps else None)
    tuned = run.max_steps, run.learning_rate, run.seed
    return Endpoint(run.name, arm, end.tokens, *tuned, end.loss, seconds, end.bits_per_byte, variant, step_seconds)


def _order_arms(arms: list[str], models: dict[str, str], baseline: str | None) -> list[str]:
    """Return the arms, the baseline first: the one asked for, else the first of model gpt, else the first given."""
    if baseline is not None and baseline not in arms:
        raise IncomparableError(f"baseline {baseline!r} is no arm with a finished run; arms: {', '.join(arms)}")
    first = baseline or min(arms, key=lambda arm: (models[arm] != "gpt", len(arm.split(" ")) if models[arm] == "gpt" else 0))
    return [first] + [arm for arm in arms if arm != first]
