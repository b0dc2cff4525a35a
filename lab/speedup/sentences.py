"""Word the numbers: units and sentences."""

from lab.speedup.ladder import Ladder
from lab.speedup.seeds import Interval
from lab.speedup.speedup import Comparison, Speedup
from lab.words import display_arm, format_seconds, format_tokens


def format_ratio(row: Speedup | None) -> str:
    """Return a speedup or its bound: 1.63x, >2.00x."""
    return "-" if row is None else f"{'' if row.relation == '=' else row.relation}{row.ratio:.2f}x"


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
    arm = display_arm(getattr(comparison, side))
    return f"{arm}'s smallest budget is already better" if reason == "below" else (f"{arm} never reached it in the budgets run")


def describe_counts(ladders: list[Ladder]) -> str:
    """Return how many budgets and seeds a headline rests on."""
    budgets = [len(ladder.points) for ladder in ladders]
    seeds = [len(point.best.endpoints) for ladder in ladders for point in ladder.points]
    if len(set(budgets)) == 1:
        words = f"{budgets[0]} budget{'s' * (budgets[0] > 1)}"
    else:
        words = ", ".join(
            f"{count} {display_arm(ladder.arm)} budget{'s' * (count > 1)}" for count, ladder in zip(budgets, ladders, strict=True)
        )
    low, high = min(seeds), max(seeds)
    return f"{words}, {low if low == high else f'{low} to {high}'} seed{'s' * (high > 1)} each"


def describe_headline(comparison: Comparison, ladders: dict[str, Ladder]) -> str:
    """Return the token speedup at the lowest loss that both arms reach, as one sentence (and its interval)."""
    row = comparison.token_headline
    base, other = display_arm(comparison.baseline), display_arm(comparison.challenger)
    owner = ladders[row.at_arm]
    final = "final" if row.at_tokens == owner.points[-1].tokens else "best"
    whose = f"{base}'s {final} loss" if row.at_arm == comparison.baseline else f"its own {final} loss"
    loss = f"{row.loss:.4g} nats/token at {format_tokens(row.at_tokens)} tokens"
    counts = describe_counts([ladders[comparison.baseline], ladders[comparison.challenger]])
    if row.relation != "=":
        winner, loser = (other, base) if row.relation == ">" else (base, other)
        smallest = ladders[comparison.challenger if row.relation == ">" else comparison.baseline].points[0].tokens
        sentence = (
            f"{winner} is already below {loser}'s {final} loss ({loss}) at its smallest budget "
            f"({format_tokens(smallest)} tokens): token speedup of {other} {row.relation}{row.ratio:.2f}x, "
            f"a bound; smaller {winner} budgets would measure it ({counts})."
        )
    elif abs(row.ratio - 1) < 0.005:
        sentence = f"{other} reached {whose} ({loss}) with as many tokens as {base} (ratio 1.00; {counts})."
    elif row.ratio > 1:
        than = "" if row.at_arm == comparison.baseline else f" than {base}"
        sentence = f"{other} reached {whose} ({loss}) with {row.ratio:.2f} times fewer tokens{than} ({counts})."
    else:
        sentence = f"{other} needed {1 / row.ratio:.2f} times MORE tokens than {base} to reach {whose} ({loss}; {counts})."
    return sentence + _describe_interval(comparison)


def _describe_interval(comparison: Comparison) -> str:
    interval = comparison.interval
    if interval is None:
        return ""
    words = (
        f" {interval.level:.0%} interval over seeds: {format_interval(interval)} ({interval.seeds} seeds, bootstrap, "
        "learning rates chosen anew in every draw)"
    )
    if interval.bounded:
        words += f"; {interval.bounded:.0%} of the resamples gave only a bound"
    if interval.low <= 1 <= interval.high:
        words += "; it includes 1, so the seeds do not tell the arms apart"
    return words + "."


def describe_time(comparison: Comparison, reasons: list[str]) -> str:
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
        step += f"; {row.interval.level:.0%} interval of the time speedup over seeds: {format_interval(row.interval)}"
    caution = f" Not a comparison of the models alone: {'; '.join(reasons)}." if reasons else ""
    return f"Wall-clock: {other} reached {words}{step}.{caution}"
