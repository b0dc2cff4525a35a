"""What a careful reader should know before believing the numbers: cautions and warnings beside the conditions."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, stdev

from lab.runs import Run, lookup, to_number
from lab.speedup.comparable import find_unrecorded
from lab.speedup.conditions import Settings, describe_conditions
from lab.speedup.ladder import Candidate, Ladder, share_seeds
from lab.speedup.speedup import Comparison
from lab.words import display_arm, format_rate, format_seconds, format_tokens

# Runs of one arm do the same work per step; where the slowest took this many times longer, something else interfered.
UNSTEADY = 1.2
COARSE = 0.04  # log(cost): a reading between budgets that may be off by more than this is worth a caution
FAR = (8, 0.03)  # a seed is far from its siblings: so many usual standard deviations, and this share of the loss


@dataclass(frozen=True)
class Caveats:
    """Sentences: what belongs beside the headline, the conditions of the comparison, and what else to know."""

    cautions: tuple[str, ...]
    conditions: tuple[str, ...]
    warnings: tuple[str, ...]


def collect_caveats(
    runs: Sequence[Run],
    ladders: dict[str, Ladder],
    comparisons: Sequence[Comparison],
    settings: Settings,
    slower: Sequence[str],
) -> Caveats:
    """Return everything a careful reader should know; `slower` says why seconds do not compare the models alone."""
    warnings = [f"{run.name}: {warning}" for run in runs for warning in run.warnings]
    warnings += [f"not recorded in any run, so not checked: {words}" for words in find_unrecorded(runs)]
    for run in runs:
        floor = to_number(lookup(run.config, "min_learning_rate"))
        if floor is not None and floor > 0.2 * run.learning_rate:
            warnings.append(
                f"{run.name}: its learning rate ends at {format_rate(floor)}, hardly annealed from {format_rate(run.learning_rate)}"
            )
    for ladder in ladders.values():
        warnings += _warn_of_ladder(ladder)
    for comparison in comparisons:
        warnings += _warn_of_tuning(ladders[comparison.baseline], ladders[comparison.challenger])
    warnings += [warning for ladder in ladders.values() for warning in _warn_of_timing(ladder)]
    warnings += [f"training seconds do not compare the models alone: {reason}" for reason in slower if comparisons]
    commits = sorted({str(run.environment.get("commit")) for run in runs})
    if len(commits) > 1:
        warnings.append(f"the runs come from {len(commits)} commits: {', '.join(commits)}")
    return Caveats(
        (*_find_far_seeds(ladders), *_find_coarse_ladders(ladders, comparisons)),
        tuple(describe_conditions(ladders, settings)),
        tuple(warnings),
    )


def _find_far_seeds(ladders: dict[str, Ladder]) -> list[str]:
    """Say which seed ended far above its siblings where that decides a point: its mean, or that another rate was chosen."""
    candidates = [(arm, point, item) for arm, ladder in ladders.items() for point in ladder.points for item in point.candidates]
    cautions = []
    for arm, point, candidate in candidates:
        others = [stdev(_losses(item)) for _, _, item in candidates if item is not candidate and len(item.endpoints) > 1]
        usual = median(others) if others else 0.0
        for index, endpoint in enumerate(candidate.endpoints):
            siblings = _losses(candidate)[:index] + _losses(candidate)[index + 1 :]
            is_far = siblings and endpoint.loss - median(siblings) > max(FAR[0] * usual, FAR[1] * median(siblings))
            if is_far and (candidate is point.best or median(siblings) < point.best.loss):  # else it decides nothing
                where = (
                    f"{display_arm(arm)} at {format_tokens(point.tokens)} tokens and rate {format_rate(candidate.learning_rate)}"
                )
                cautions.append(
                    f"{where}: seed {endpoint.seed} ended at {endpoint.loss:.4f}, far above its siblings ({min(siblings):.4f} to "
                    f"{max(siblings):.4f}); such a run decides the mean: look at it before believing the numbers"
                )
    return cautions


def _losses(candidate: Candidate) -> list[float]:
    return [endpoint.loss for endpoint in candidate.endpoints]


def _find_coarse_ladders(ladders: dict[str, Ladder], comparisons: Sequence[Comparison]) -> list[str]:
    """Say where a headline is read between budgets that lie far apart."""
    cautions = []
    for comparison in comparisons:
        row = comparison.token_headline
        read = comparison.challenger if row.at_arm == comparison.baseline else comparison.baseline
        cost = row.challenger_cost if row.at_arm == comparison.baseline else row.baseline_cost
        if row.reading_error > COARSE and cost:
            budgets = [point.tokens for point in ladders[read].points]
            low, high = max(b for b in budgets if b <= cost), min(b for b in budgets if b >= cost)
            cautions.append(
                f"{display_arm(read)}'s budgets around the headline's loss are {high / low:.3g}x apart "
                f"({format_tokens(low)} and {format_tokens(high)} tokens): what it needs is read between them and may be off by "
                f"{100 * row.reading_error:.0f}%"
                + (" (which the interval includes)" if row.interval else "")
                + "; budgets 2x apart leave 1 to 2%"
            )
    return cautions


def _warn_of_ladder(ladder: Ladder) -> list[str]:
    arm, warnings = display_arm(ladder.arm), []
    untuned = [format_tokens(point.tokens) for point in ladder.points if point.edge == "only"]
    if untuned:
        warnings.append(f"{arm} at {', '.join(untuned)} tokens: one learning rate tried, so not tuned")
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
            counts = ", ".join(f"{format_rate(item.learning_rate)}: {len(item.endpoints)}" for item in point.candidates)
            warnings.append(f"{where}: the candidates have different numbers of seeds ({counts})")
        if any(item.variant for item in point.candidates):
            best = point.best.variant or "the plain setting"
            warnings.append(f"{where}: candidates differ in more than the learning rate; best: {best}")
        partly = sorted(set(point.diverged) & {item.learning_rate for item in point.candidates})
        if partly:
            fate = "was kept because every rate did" if point.best.learning_rate in partly else "was not chosen"
            warnings.append(f"{where}: {', '.join(map(format_rate, partly))} diverged with some seeds; it {fate}")
    for point in ladder.regressions:
        warnings.append(
            f"{arm}: more tokens gave no lower loss at {format_tokens(point.tokens)} "
            f"({point.best.loss:.4f}); the running minimum is used"
        )
    return warnings


def describe_unsteady_timing(*ladders: Ladder) -> list[str]:
    """Return, in words, which arms were timed so unevenly that their training times mean little."""
    return [
        f"the speed of {display_arm(ladder.arm)} varied {max(ladder.step_times) / min(ladder.step_times):.1f}x between runs"
        for ladder in ladders
        if _is_unsteady(ladder)
    ]


def _is_unsteady(ladder: Ladder) -> bool:
    times = ladder.step_times
    return bool(times) and max(times) >= UNSTEADY * min(times)


def _warn_of_timing(ladder: Ladder) -> list[str]:
    if not _is_unsteady(ladder):
        return []
    low, high = min(ladder.step_times), max(ladder.step_times)
    return [
        f"{display_arm(ladder.arm)}: seconds per step vary from {format_seconds(low)} to {format_seconds(high)} "
        f"({high / low:.1f}x) between {len(ladder.step_times)} runs (a shared machine?); do not trust its training times"
    ]


def _warn_of_tuning(baseline: Ladder, challenger: Ladder) -> list[str]:
    """Say where one arm had more learning rates to choose from than the other, or other seeds."""
    theirs = {point.tokens: point for point in challenger.points}
    names = display_arm(baseline.arm), display_arm(challenger.arm)
    common = [(point, theirs[point.tokens]) for point in baseline.points if point.tokens in theirs]
    warnings = [
        f"tuned unequally at {format_tokens(a.tokens)} tokens: {len(a.tried)} learning rate(s) for "
        f"{names[0]}, {len(b.tried)} for {names[1]}"
        for a, b in common
        if len(a.tried) != len(b.tried)
    ]
    apart = {point.tokens: share_seeds(point.best, other.best) for point, other in common if point.best.seeds != other.best.seeds}
    for words, is_shared in (("only the seeds of both count in the gaps there", True), ("no comparison seed by seed", False)):
        found = [format_tokens(tokens) for tokens, (a, b) in apart.items() if (a.seeds == b.seeds) == is_shared]
        if found:
            warnings.append(f"{names[0]} and {names[1]} ran different seeds at {', '.join(found)} tokens: {words}")
    if not common:
        warnings.append(f"{names[0]} and {names[1]} have no budget in common: no gap at equal tokens")
    return warnings
