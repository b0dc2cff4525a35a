"""Collect what a careful reader should know before believing the numbers."""

from lab.runs import lookup, to_number
from lab.speedup.comparable import find_unrecorded
from lab.speedup.ladder import Ladder
from lab.speedup.speedup import Comparison
from lab.words import display_arm, format_rate, format_seconds, format_tokens

# Runs of one arm do the same work per step; where the slowest took this many times longer, something else interfered.
UNSTEADY = 1.2


def collect_warnings(runs, ladders, comparisons, slower) -> list[str]:
    """Return everything a careful reader should know before believing the numbers."""
    warnings = [f"{run.name}: {warning}" for run in runs for warning in run.warnings]
    warnings += [f"not recorded in any run, so not checked: {words}" for words in find_unrecorded(runs)]
    for run in runs:
        floor = to_number(lookup(run.config, "min_learning_rate"))
        if floor is not None and floor > 0.2 * run.learning_rate:
            warnings.append(
                f"{run.name}: its learning rate ends at {format_rate(floor)}, hardly annealed from {format_rate(run.learning_rate)}"
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
            f"{arm} at {', '.join(format_tokens(point.tokens) for point in untuned)} tokens: one learning rate tried, so not tuned"
        )
    at_edge = [
        f"the {point.edge} tried at {format_tokens(point.tokens)} tokens ({format_rate(point.best.learning_rate)})"
        for point in ladder.points
        if point.edge in ("lowest", "highest")
    ]
    if at_edge:
        warnings.append(f"{arm}: the best learning rate is {', '.join(at_edge)}; the optimum may lie beyond")
    for point in ladder.points:
        where = f"{arm} at {format_tokens(point.tokens)} tokens"
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
                f"{where}: candidates differ in more than the learning rate; best: {point.best.variant or 'the plain setting'}"
            )
        partly = sorted(set(point.diverged) & {item.learning_rate for item in point.candidates})
        if partly:
            warnings.append(
                f"{where}: {', '.join(map(format_rate, partly))} diverged with some seeds; it "
                + ("was kept for want of another" if point.best.learning_rate in partly else "was not chosen")
            )
    for point in ladder.regressions:
        warnings.append(
            f"{arm}: more tokens gave no lower loss at {format_tokens(point.tokens)} "
            f"({point.best.loss:.4f}); the running minimum is used"
        )
    return warnings


def describe_unsteady_timing(ladders: dict[str, Ladder], comparison: Comparison) -> list[str]:
    """Return, in words, which of two arms were timed so unevenly that their training times mean little."""
    reasons = []
    for arm in (comparison.baseline, comparison.challenger):
        times = list_step_seconds(ladders[arm])
        if times and max(times) >= UNSTEADY * min(times):
            reasons.append(f"the speed of {display_arm(arm)} varied {max(times) / min(times):.1f}x between runs")
    return reasons


def list_step_seconds(ladder: Ladder) -> list[float]:
    """Return the training seconds per step of every run of an arm that recorded them."""
    return [
        endpoint.step_seconds
        for point in ladder.points
        for candidate in point.candidates
        for endpoint in candidate.endpoints
        if endpoint.step_seconds
    ]


def _timing_warnings(ladder: Ladder) -> list[str]:
    """Say where runs of one arm, which do the same work per step, took visibly different times for it."""
    times = list_step_seconds(ladder)
    if not times or max(times) < UNSTEADY * min(times):
        return []
    return [
        f"{display_arm(ladder.arm)}: seconds per step vary from {format_seconds(min(times))} to "
        f"{format_seconds(max(times))} ({max(times) / min(times):.1f}x) between {len(times)} runs (a shared machine?); "
        "do not trust its training times"
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
    apart = [
        point
        for point in baseline.points
        if point.tokens in theirs and set(point.best.seeds) != set(theirs[point.tokens].best.seeds)
    ]
    if apart:
        warnings.append(
            f"{names[0]} and {names[1]} ran different seeds at {', '.join(format_tokens(p.tokens) for p in apart)} "
            "tokens: their losses are not compared seed by seed"
        )
    if not any(point.tokens in theirs for point in baseline.points):
        warnings.append(f"{names[0]} and {names[1]} have no budget in common: no gap at equal tokens")
    return warnings
