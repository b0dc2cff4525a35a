"""Take runs to numbers: leave out, refuse, build ladders, compare, and collect the warnings."""

from dataclasses import dataclass

from analysis.comparability import (
    Provenance,
    describe_provenance,
    describe_variants,
    find_differences,
    find_speed_differences,
    find_unrecorded,
    has_diverged,
    label_arm,
    reason_left_out,
)
from analysis.ladder import Endpoint, Ladder, build_ladder
from analysis.runs import Run, lookup, to_number
from analysis.speedup import Comparison, compare_ladders, list_step_seconds
from analysis.text import (
    describe_headline,
    describe_time,
    display_arm,
    format_rate,
    format_seconds,
    format_tokens,
)


class IncomparableError(Exception):
    """Say, one difference a line, why runs cannot be compared."""


@dataclass(frozen=True)
class Analysis:
    """Hold everything that the report says; `arms` maps run name to arm, `ladders` arm to ladder, baseline first."""

    runs: tuple[Run, ...]
    left_out: tuple[tuple[Run, str], ...]
    arms: dict[str, str]
    ladders: dict[str, Ladder]
    comparisons: tuple[Comparison, ...]
    provenance: Provenance
    headlines: tuple[str, ...]
    warnings: tuple[str, ...]


def analyze_runs(runs: list[Run], baseline: str | None = None, across: tuple[str, ...] = ()) -> Analysis:
    """Return the analysis of runs; raise IncomparableError where they may not be compared."""
    left_out = tuple((run, reason_left_out(run)) for run in runs if reason_left_out(run))
    kept = [run for run in runs if not reason_left_out(run)]
    if not kept:
        raise IncomparableError(
            "no finished run to compare:\n" + "\n".join(f"  {run.name}: {reason}" for run, reason in left_out)
        )
    unknown = [key for key in across if all(lookup(run.config, key) is None for run in kept)]
    if unknown:
        raise IncomparableError(f"cannot split arms by {unknown[0]!r}: no run's config.yaml has it")
    differences = find_differences(kept, across)
    if differences:
        raise IncomparableError("these runs cannot be compared:\n" + "\n".join(f"  {item}" for item in differences))
    arms = {run.name: label_arm(run, across) for run in runs}
    order = _order_arms([arms[run.name] for run in kept], baseline)
    endpoints = list_endpoints(kept, across)
    diverged = [(arms[run.name], run.budget_tokens, run.learning_rate) for run, _ in left_out if has_diverged(run)]
    ladders = {arm: build_ladder(arm, endpoints, [item[1:] for item in diverged if item[0] == arm]) for arm in order}
    comparisons = tuple(compare_ladders(ladders[order[0]], ladders[arm]) for arm in order[1:])
    slower = find_speed_differences(kept)
    headlines = tuple(
        line
        for comparison in comparisons
        for line in (describe_headline(comparison, ladders), describe_time(comparison, slower))
    )
    return Analysis(
        tuple(kept),
        left_out,
        arms,
        ladders,
        comparisons,
        describe_provenance(kept, {run.name: arms[run.name] for run in kept}),
        headlines or (_describe_single_arm(ladders[order[0]]),),
        tuple(_collect_warnings(kept, ladders, comparisons, slower)),
    )


def list_endpoints(runs: list[Run], across: tuple[str, ...] = ()) -> list[Endpoint]:
    """Return the end of each finished run as one point of its arm's ladder."""
    variants = describe_variants(runs, across)
    return [
        Endpoint(
            run.name,
            label_arm(run, across),
            run.final.tokens,
            run.max_steps,
            run.learning_rate,
            run.seed,
            run.final.loss,
            run.final.train_seconds,
            run.final.bits_per_byte,
            variants[run.name],
        )
        for run in runs
    ]


def _order_arms(arms: list[str], baseline: str | None) -> list[str]:
    """Return the distinct arms, the baseline first: the one asked for, else gpt, else the first given."""
    order = list(dict.fromkeys(arms))
    if baseline is not None and baseline not in order:
        raise IncomparableError(f"baseline {baseline!r} is no arm with a finished run; arms: {', '.join(order)}")
    first = baseline or next((arm for arm in order if arm.split()[0:1] == ["gpt"]), order[0])
    return [first] + [arm for arm in order if arm != first]


def _describe_single_arm(ladder: Ladder) -> str:
    best = min(ladder.points, key=lambda point: point.best.loss)
    return (
        f"Only {display_arm(ladder.arm)} has finished runs (best {best.best.loss:.4f} nats/token at "
        f"{format_tokens(best.tokens)} tokens): there is no speedup without a second arm."
    )


def _collect_warnings(runs, ladders, comparisons, slower) -> list[str]:
    """Return everything a careful reader should know before believing the numbers."""
    warnings = [f"{run.name}: {warning}" for run in runs for warning in run.warnings]
    warnings += [f"not recorded in any run, so not checked: {words}" for words in find_unrecorded(runs)]
    for run in runs:
        floor = to_number(lookup(run.config, "min_learning_rate"))
        if floor is not None and floor > 0.2 * run.learning_rate:
            warnings.append(
                f"{run.name}: its learning rate ends at {format_rate(floor)}, hardly annealed from "
                f"{format_rate(run.learning_rate)}"
            )
    for ladder in ladders.values():
        warnings += _ladder_warnings(ladder)
    for comparison in comparisons:
        warnings += _tuning_warnings(ladders[comparison.baseline], ladders[comparison.challenger])
    warnings += [warning for ladder in ladders.values() for warning in _timing_warnings(ladder)]
    warnings += [f"training seconds do not compare the models alone: {reason}" for reason in slower if comparisons]
    commits = sorted({str(run.environment.get("commit")) for run in runs})
    if len(commits) > 1:
        warnings.append(f"the runs come from {len(commits)} commits: {', '.join(commits)}")
    return warnings


def _ladder_warnings(ladder: Ladder) -> list[str]:
    arm, warnings = display_arm(ladder.arm), []
    untuned = [point for point in ladder.points if point.edge == "only"]
    if untuned:
        warnings.append(
            f"{arm} at {', '.join(format_tokens(point.tokens) for point in untuned)} tokens: one learning "
            "rate tried, so not tuned"
        )
    for point in ladder.points:
        where = f"{arm} at {format_tokens(point.tokens)} tokens"
        if point.edge in ("lowest", "highest"):
            warnings.append(
                f"{where}: the best learning rate, {format_rate(point.best.learning_rate)}, is the "
                f"{point.edge} tried ({', '.join(map(format_rate, point.tried))}); "
                "the optimum may lie beyond"
            )
        if len({len(candidate.endpoints) for candidate in point.candidates}) > 1:
            warnings.append(
                f"{where}: the candidates have different numbers of seeds ("
                + ", ".join(f"{format_rate(item.learning_rate)}: {len(item.endpoints)}" for item in point.candidates)
                + ")"
            )
        if any(len(set(item.seeds)) < len(item.seeds) for item in point.candidates):
            warnings.append(f"{where}: a seed occurs twice at one setting; the repeats are no independent seeds")
        if any(item.variant for item in point.candidates):
            warnings.append(
                f"{where}: candidates differ in more than the learning rate; best: "
                f"{point.best.variant or 'the plain setting'}"
            )
    for point in ladder.regressions:
        warnings.append(
            f"{arm}: more tokens gave no lower loss at {format_tokens(point.tokens)} "
            f"({point.best.loss:.4f}); the running minimum is used"
        )
    return warnings


def _timing_warnings(ladder: Ladder) -> list[str]:
    """Say where runs of one arm, which do the same work per step, took visibly different times for it."""
    times = list_step_seconds(ladder)
    if not times or max(times) < 1.3 * min(times):
        return []
    return [
        f"{display_arm(ladder.arm)}: seconds per step vary from {format_seconds(min(times))} to "
        f"{format_seconds(max(times))} between runs (a shared machine?); do not trust its training times"
    ]


def _tuning_warnings(baseline: Ladder, challenger: Ladder) -> list[str]:
    """Say where one arm had more learning rates to choose from than the other."""
    theirs = {point.tokens: point for point in challenger.points}
    names = display_arm(baseline.arm), display_arm(challenger.arm)
    warnings = [
        f"tuned unequally at {format_tokens(point.tokens)} tokens: {len(point.tried)} learning rate(s) for "
        f"{names[0]}, {len(theirs[point.tokens].tried)} for {names[1]}"
        for point in baseline.points
        if point.tokens in theirs and len(point.tried) != len(theirs[point.tokens].tried)
    ]
    if not any(point.tokens in theirs for point in baseline.points):
        warnings.append(f"{names[0]} and {names[1]} have no budget in common: no gap at equal tokens")
    return warnings
