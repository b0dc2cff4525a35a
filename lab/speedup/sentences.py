"""Every sentence of the report: what a comparison found, in tokens and in time, and how sure it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lab.speedup.decomposition import Decomposition, Ratio
from lab.speedup.ladder import Ladder
from lab.speedup.seeds import Interval
from lab.speedup.speedup import Comparison, Speedup
from lab.words import display_arm, format_seconds, format_tokens

CANNOT_BE_TOLD = "cannot be told from 1 at this size"
SUMMARY_NOTE = (
    "paper: its claim for this size and context; this run: how many times fewer tokens (time: less training time) nGPT "
    "needs for the lowest loss that both arms reach."
)
NEEDS_NOTE = (
    "Tokens each arm needs for {loss:.4f} nats/token, the lowest loss that all of them reach. Every draw of seeds finds that loss "
    "anew, among all arms: an interval differs a little from that of two arms alone."
)
PARTS_NOTE = (
    "Tokens each baseline needs for {loss:.4f} nats/token, the lowest loss that all these arms reach; a part is the "
    "ratio of two successive rows, and the parts multiply to the whole. The order is a choice: in another order the "
    "parts may differ."
)


@dataclass(frozen=True)
class Headline:
    """What a comparison found: the claim that the seeds allow, what it rests on, and the same in training time."""

    claim: str
    basis: str
    time: str = ""


def format_ratio(row: Speedup | Ratio | None) -> str:
    """Return a speedup or its bound: 1.63x, >2.00x."""
    value = None if row is None else row.ratio if isinstance(row, Speedup) else row.value
    return "-" if row is None or value is None else f"{'' if row.relation == '=' else row.relation}{value:.2f}x"


def format_interval(interval: Interval | None) -> str:
    """Return an interval of a speedup: 1.21-1.63x."""
    if interval is None:
        return "-"
    low, high = (f"{end:.2f}" if end < 9.995 else f"{end:.0f}" if end < 999.5 else ">999" for end in (interval.low, interval.high))
    return f"{low}-{high}x"


def describe_bound(note: str, comparison: Comparison) -> str:
    """Return the reason for a bound in words, empty for a measured speedup."""
    if not note:
        return ""
    side, reason = note.split()
    arm = display_arm(comparison.baseline if side == "baseline" else comparison.challenger)
    return f"{arm}'s smallest budget is already better" if reason == "below" else f"{arm} never reached it in the budgets run"


def describe_counts(ladders: Sequence[Ladder]) -> str:
    """Return how many budgets and seeds a headline rests on."""
    budgets = [len(ladder.points) for ladder in ladders]
    low, high = _count_seeds(ladders)
    if len(set(budgets)) == 1:
        words = f"{budgets[0]} budget{'s' * (budgets[0] > 1)}"
    else:
        words = ", ".join(
            f"{count} {display_arm(ladder.arm)} budget{'s' * (count > 1)}" for count, ladder in zip(budgets, ladders, strict=True)
        )
    return f"{words}, {low if low == high else f'{low} to {high}'} seed{'s' * (high > 1)} each"


def _count_seeds(ladders: Sequence[Ladder]) -> tuple[int, int]:
    seeds = [len(point.best.endpoints) for ladder in ladders for point in ladder.points]
    return min(seeds), max(seeds)


def describe_headline(comparison: Comparison, ladders: Mapping[str, Ladder]) -> Headline:
    """Return the token speedup at the lowest loss that both arms reach.

    Where the seeds do not tell it from 1 the claim says so in its first words, and the measured number is in what it rests on.
    Where an arm had one learning rate only, the first words are that it was not tuned.
    """
    pair = [ladders[comparison.baseline], ladders[comparison.challenger]]
    sentence = _describe_speedup(comparison, ladders, describe_counts(pair))
    untuned, noise = _describe_tuning(pair), _describe_interval(comparison.interval, pair)
    if comparison.told_from_one:
        found, basis = untuned + sentence, noise
        if comparison.interval:
            found = f"{found.removesuffix('.')}; 95% interval {format_interval(comparison.interval)}."
        return Headline(found, basis)
    if _count_seeds(pair)[0] < 2:
        why = "one seed says nothing of the noise"
    elif comparison.interval:
        why = f"the 95% interval over seeds is {format_interval(comparison.interval)}"
    else:
        why = "the seeds give no interval that leaves it out"
    base, other = display_arm(comparison.baseline), display_arm(comparison.challenger)
    claim = f"{untuned}{other}'s token speedup over {base} {CANNOT_BE_TOLD}: {why}."
    return Headline(claim, " ".join(filter(None, (f"Measured: {sentence}", noise))))


def _describe_tuning(pair: Sequence[Ladder]) -> str:
    """Return the first words of a headline where arms had one learning rate to choose from, else nothing."""
    untuned = {display_arm(ladder.arm): [len(point.tried) < 2 for point in ladder.points] for ladder in pair}
    untuned = {arm: budgets for arm, budgets in untuned.items() if any(budgets)}
    if not untuned:
        return ""
    where = "" if all(map(all, untuned.values())) else " at some budgets"
    return f"Not tuned (one learning rate for {' and '.join(untuned)}{where}): "


def _describe_speedup(comparison: Comparison, ladders: Mapping[str, Ladder], counts: str) -> str:
    """Return what was measured as one sentence."""
    row = comparison.token_headline
    base, other = display_arm(comparison.baseline), display_arm(comparison.challenger)
    final = "final" if row.at_tokens == ladders[row.at_arm].points[-1].tokens else "best"
    whose = f"{base}'s {final} loss" if row.at_arm == comparison.baseline else f"its own {final} loss"
    loss = f"{row.loss:.4g} nats/token at {format_tokens(row.at_tokens)} tokens"
    if row.relation != "=":
        winner, loser = (other, base) if row.relation == ">" else (base, other)
        smallest = ladders[comparison.challenger if row.relation == ">" else comparison.baseline].points[0].tokens
        return (
            f"{winner} is already below {loser}'s {final} loss ({loss}) at its smallest budget "
            f"({format_tokens(smallest)} tokens): token speedup of {other} {row.relation}{row.ratio:.2f}x, "
            f"a bound; smaller {winner} budgets would measure it ({counts})."
        )
    if abs(row.ratio - 1) < 0.005:
        return f"{other} reached {whose} ({loss}) with as many tokens as {base} (ratio 1.00; {counts})."
    if row.ratio > 1:
        than = "" if row.at_arm == comparison.baseline else f" than {base}"
        return f"{other} reached {whose} ({loss}) with {row.ratio:.2f} times fewer tokens{than} ({counts})."
    return f"{other} needed {1 / row.ratio:.2f} times MORE tokens than {base} to reach {whose} ({loss}; {counts})."


def _describe_interval(interval: Interval | None, ladders: Sequence[Ladder]) -> str:
    """Return how an interval was made, empty without one."""
    if interval is None:
        return ""
    words = f"Interval: bootstrap over {interval.seeds} seeds"
    if any(len(point.candidates) > 1 for ladder in ladders for point in ladder.points):
        words += ", learning rates chosen anew in every draw"
    if interval.reading_error:
        words += f"; {100 * interval.reading_error:.1f}% on either side for reading between budgets"
    if interval.bounded:
        words += f"; {interval.bounded:.0%} of the resamples gave only a bound"
    return words + "."


def describe_time(comparison: Comparison, reasons: Sequence[str]) -> str:
    """Return the wall-clock counterpart of the headline, in training seconds, as one sentence."""
    row = comparison.time_headline
    base, other = display_arm(comparison.baseline), display_arm(comparison.challenger)
    if row is None:
        return "Wall-clock: not compared, some runs record no training seconds."
    if row.relation != "=":
        reason = describe_bound(row.note, comparison)
        words = f"the same loss at a speedup {format_ratio(row)} in training time ({reason})"
    elif abs(row.ratio - 1) < 0.005:
        words = "the same loss in the same training time"
    elif row.ratio > 1:
        words = f"the same loss in {row.ratio:.2f} times less training time"
    else:
        words = f"the same loss in {1 / row.ratio:.2f} times MORE training time"
    step = ""
    if comparison.step_time_ratio:
        ours, theirs = (comparison.step_seconds[arm] for arm in (comparison.baseline, comparison.challenger))
        step = (
            f"; a step of {other} takes {comparison.step_time_ratio:.2f} times as long as one of {base} "
            f"({format_seconds(theirs)} against {format_seconds(ours)})"
        )
    if row.interval:
        step += f"; {row.interval.level:.0%} interval of the time speedup over seeds and timings: {format_interval(row.interval)}"
    caution = f" Not a comparison of the models alone: {'; '.join(reasons)}." if reasons else ""
    return f"Wall-clock: {other} reached {words}{step}.{caution}"


def describe_alone(ladder: Ladder) -> Headline:
    """Return what there is to say of runs of one arm."""
    best = min(ladder.points, key=lambda point: point.best.loss)
    return Headline(
        f"Only {display_arm(ladder.arm)} has finished runs (best {best.best.loss:.4f} nats/token at "
        f"{format_tokens(best.tokens)} tokens): there is no speedup without a second arm.",
        "",
    )


def describe_parts(parts: Decomposition) -> str:
    """Return the decomposition as one sentence, or that the whole cannot be told from 1."""
    first = parts.rows[0]
    named = ", ".join(f"{format_ratio(row.part)} {row.part_words}" for row in parts.rows[:-1])
    sentence = f"nGPT's speedup over {first.words}: {format_ratio(first.speedup)}. Of it: {named}."
    interval = first.speedup.interval if first.speedup else None
    if interval and not interval.holds_one:
        return sentence
    why = f"95% interval {format_interval(interval)}" if interval else "no interval over seeds"
    return f"nGPT's speedup over {first.words} {CANNOT_BE_TOLD} ({why}). Measured: {sentence}"


def list_checks(parts: Decomposition) -> list[str]:
    """Return the ratios beside the chain, which show how far the order matters, one line each."""
    return [
        f"{words}: {format_ratio(ratio)}" + (f" ({format_interval(ratio.interval)})" if ratio.interval else "")
        for words, ratio in parts.checks
    ]


def list_bounds(comparison: Comparison) -> list[str]:
    """Return one line per speedup that is only a bound, with the reason."""
    return [
        f"{format_ratio(row)} at {row.loss:.4f}: {describe_bound(row.note, comparison)}"
        for row in comparison.token_rows
        if row.note
    ]


def describe_test(comparison: Comparison) -> str:
    """Return what the p-values of the gap table are, empty without any."""
    tests = sorted({gap.test for gap in comparison.gaps if gap.test})
    words = {"paired t": "on differences seed by seed (paired)", "Welch t": "Welch's where seeds differ"}
    named = " and ".join(words[test] for test in tests)
    note = "with few seeds it leans on normal noise, and budgets are not corrected for one another."
    return f"p: one-sided t-test that the challenger is below the baseline at this budget, {named}; {note}" if tests else ""
