"""Take runs to numbers: leave out, refuse, build ladders, compare, and collect the warnings."""

from dataclasses import dataclass

from lab.runs import Run, lookup
from lab.speedup.caveats import collect_warnings, describe_unsteady_timing
from lab.speedup.comparable import (
    IncomparableError,
    Provenance,
    describe_provenance,
    describe_variants,
    find_differences,
    find_speed_differences,
    has_diverged,
    label_arm,
    reason_left_out,
)
from lab.speedup.ladder import Endpoint, Ladder, build_ladder
from lab.speedup.sentences import describe_headline, describe_time
from lab.speedup.speedup import Comparison, compare_ladders
from lab.words import display_arm, format_tokens


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
        raise IncomparableError("no finished run to compare:\n" + "\n".join(f"  {run.name}: {reason}" for run, reason in left_out))
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
        for line in (
            describe_headline(comparison, ladders),
            describe_time(comparison, slower + describe_unsteady_timing(ladders, comparison)),
        )
    )
    return Analysis(
        tuple(kept),
        left_out,
        arms,
        ladders,
        comparisons,
        describe_provenance(kept, {run.name: arms[run.name] for run in kept}),
        headlines or (_describe_single_arm(ladders[order[0]]),),
        tuple(collect_warnings(kept, ladders, comparisons, slower)),
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
            _find_step_seconds(run),
        )
        for run in runs
    ]


def _find_step_seconds(run: Run) -> float | None:
    """Return the seconds of one step: from the logged speed, else from the training time as a whole."""
    whole = run.final.train_seconds
    return run.step_seconds or (whole / run.max_steps if whole and whole > 0 and run.max_steps else None)


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
