"""Compute the speedup between two ladders: cost at equal loss, gap at equal tokens, and what the seeds allow to say.

Pure functions on the dataclasses of `lab.speedup.ladder`. Ratios are baseline cost / challenger cost: above 1 the
challenger (nGPT) needs less. Losses are nats/token, costs tokens or training seconds.
"""

from dataclasses import dataclass, replace

from lab.speedup.curve import Curve
from lab.speedup.ladder import BudgetPoint, Candidate, Ladder, share_seeds
from lab.speedup.seeds import Interval, MeanTest, Resamples, compare_means, resample_seeds


@dataclass(frozen=True)
class Speedup:
    """The cost ratio at one loss (nats/token); relation `>` or `<` marks a bound, whose reason is in `note`.

    `at_arm` is the arm whose budget has exactly this loss; a cost (tokens or seconds) is None where only a bound
    is known. `reading_error` is how far log(ratio) may be off because a ladder was read between budgets. Within one comparison
    bits/byte are proportional to nats/token, so the ratio is the same at equal bits/byte.
    """

    loss: float
    at_arm: str
    at_tokens: int
    baseline_cost: float | None
    challenger_cost: float | None
    ratio: float
    relation: str
    note: str = ""
    bits_per_byte: float | None = None
    interval: Interval | None = None
    reading_error: float = 0.0


@dataclass(frozen=True)
class Gap:
    """Challenger minus baseline at equal tokens (negative: the challenger is better).

    Where one arm ran fewer seeds, all of them the other's too, only these count. `standard_error` is over seeds, None where
    either side has a single seed; `paired` says seed by seed. `p_value` is one-sided, for "the challenger is below the
    baseline"; `better_seeds` counts the pairs in which it is.
    """

    tokens: int
    nats_per_token: float
    bits_per_byte: float | None
    standard_error: float | None
    standard_error_bits_per_byte: float | None
    paired: bool
    baseline_seeds: int
    challenger_seeds: int
    test: str = ""
    p_value: float | None = None
    better_seeds: int | None = None


@dataclass(frozen=True)
class Comparison:
    """Everything that two ladders say about each other.

    `token_headline` and `time_headline` (None without training seconds) are at the lowest loss that both arms reach, the rows
    at the loss of every budget. `told_from_one` is whether the seeds allow to say that the token speedup is not 1.
    `interval_note` says why there is no interval. `step_seconds` is each arm's, `step_time_ratio` challenger / baseline.
    """

    baseline: str
    challenger: str
    token_headline: Speedup
    token_rows: tuple[Speedup, ...]
    time_headline: Speedup | None
    time_rows: tuple[Speedup, ...]
    gaps: tuple[Gap, ...]
    told_from_one: bool
    interval_note: str
    step_seconds: dict[str, float | None]
    step_time_ratio: float | None

    @property
    def interval(self) -> Interval | None:
        """Return the interval of the token headline."""
        return self.token_headline.interval


def compute_speedup(loss: float, baseline: Curve, challenger: Curve, at_arm: str, at_tokens: int) -> Speedup | None:
    """Return the cost ratio at a loss, a bound where one curve does not span it, None where neither does."""
    ours, theirs = baseline.reach(loss), challenger.reach(loss)
    if "within" not in (ours.side, theirs.side):
        return None
    ratio = ours.cost / theirs.cost
    base = ours.cost if ours.side == "within" else None
    other = theirs.cost if theirs.side == "within" else None
    # A cost below the smallest budget makes the ratio larger (challenger) or smaller (baseline) than its bound.
    relation, note = "=", ""
    if theirs.side != "within":
        relation, note = (">", "challenger below") if theirs.side == "below" else ("<", "challenger never")
    elif ours.side != "within":
        relation, note = ("<", "baseline below") if ours.side == "below" else (">", "baseline never")
    return Speedup(loss, at_arm, at_tokens, base, other, ratio, relation, note, reading_error=ours.error + theirs.error)


def compute_rows(baseline: Ladder, challenger: Ladder, cost: str) -> tuple[Speedup, ...]:
    """Return the speedup at every budget of either arm that improved on its smaller ones, highest loss first."""
    ours, theirs = baseline.curve(cost), challenger.curve(cost)
    if ours is None or theirs is None:
        return ()
    rows = [
        replace(row, bits_per_byte=point.best.bits_per_byte)
        for ladder in (baseline, challenger)
        for point in ladder.points
        if point not in ladder.regressions and (row := compute_speedup(point.best.loss, ours, theirs, ladder.arm, point.tokens))
    ]
    return tuple(sorted(rows, key=lambda row: (-row.loss, row.at_arm)))


def compute_headline(baseline: Ladder, challenger: Ladder, cost: str) -> Speedup | None:
    """Return the speedup at the lowest loss that both arms reach, or None without the cost."""
    ours, theirs = baseline.curve(cost), challenger.curve(cost)
    if ours is None or theirs is None:
        return None
    ends = [min(ladder.points, key=lambda point: (point.best.loss, point.tokens)) for ladder in (baseline, challenger)]
    # The lowest loss both reach is the worse of the two best losses; on a tie the baseline's.
    end = max(ends, key=lambda point: point.best.loss)
    row = compute_speedup(end.best.loss, ours, theirs, end.arm, end.tokens)
    return row and replace(row, bits_per_byte=end.best.bits_per_byte)


def compute_gaps(baseline: Ladder, challenger: Ladder) -> tuple[Gap, ...]:
    """Return challenger minus baseline at every budget that both arms ran."""
    theirs = {point.tokens: point for point in challenger.points}
    return tuple(_gap(point, theirs[point.tokens]) for point in baseline.points if point.tokens in theirs)


def _gap(baseline: BudgetPoint, challenger: BudgetPoint) -> Gap:
    ours, theirs = share_seeds(baseline.best, challenger.best)
    paired, test = _is_paired(ours, theirs), _test_losses(ours, theirs)
    bits, bits_test = None, None
    if ours.bits_per_byte is not None and theirs.bits_per_byte is not None:
        bits = theirs.bits_per_byte - ours.bits_per_byte
        our_bits, their_bits = (
            [endpoint.bits_per_byte for endpoint in side.endpoints if endpoint.bits_per_byte is not None] for side in (ours, theirs)
        )
        bits_test = compare_means(our_bits, their_bits, paired)
    pairs = zip(ours.endpoints, theirs.endpoints, strict=True) if paired else ()
    return Gap(
        baseline.tokens,
        theirs.loss - ours.loss,
        bits,
        test.standard_error if test else None,
        bits_test.standard_error if bits_test else None,
        paired,
        len(ours.endpoints),
        len(theirs.endpoints),
        test.name if test else "",
        test.p_value if test else None,
        sum(b.loss < a.loss for a, b in pairs) if paired else None,
    )


def _is_paired(ours: Candidate, theirs: Candidate) -> bool:
    """Return whether both ran the same two or more seeds."""
    return ours.seeds == theirs.seeds and len(ours.seeds) > 1


def _test_losses(ours: Candidate, theirs: Candidate) -> MeanTest | None:
    """Return the test of "their loss is below ours", seed by seed where both ran the same seeds."""
    our_losses, their_losses = ([endpoint.loss for endpoint in side.endpoints] for side in (ours, theirs))
    return compare_means(our_losses, their_losses, _is_paired(ours, theirs))


def measure_headline(ladders: dict[str, Ladder], baseline: str, challenger: str) -> tuple[float, bool] | None:
    """Return the token headline of some ladders as (ratio, whether it is a bound)."""
    row = compute_headline(ladders[baseline], ladders[challenger], "tokens")
    return (row.ratio, row.relation != "=") if row else None


def measure_row(ladders: dict[str, Ladder], baseline: str, challenger: str, at: Speedup) -> tuple[float, bool] | None:
    """Return the token speedup at whatever loss the arm and budget of a row have in these ladders."""
    loss = min(point.best.loss for point in ladders[at.at_arm].points if point.tokens <= at.at_tokens)
    row = compute_speedup(loss, ladders[baseline].token_curve, ladders[challenger].token_curve, at.at_arm, at.at_tokens)
    return (row.ratio, row.relation != "=") if row else None


def compare_ladders(baseline: Ladder, challenger: Ladder) -> Comparison:
    """Return every number that two ladders with at least one budget each say about each other."""
    headline = compute_headline(baseline, challenger, "tokens")
    assert headline is not None, "at the worse of two best losses one arm is within its budgets"
    rows = compute_rows(baseline, challenger, "tokens")
    resamples, note = resample_seeds([baseline, challenger])
    names = baseline.arm, challenger.arm
    if headline.relation != "=":
        note = "No interval: the speedup is a bound, not a measurement"
    elif resamples:
        values = [measure_headline(draw.ladders, *names) for draw in resamples.draws]
        headline = replace(headline, interval=resamples.interval(headline.ratio, values, headline.reading_error))
    if resamples:
        rows = tuple(_add_interval(row, resamples, headline, names) for row in rows)
    ours, theirs = baseline.step_seconds, challenger.step_seconds
    time_headline = compute_headline(baseline, challenger, "seconds")
    if time_headline and headline.interval:
        # Both arms' costs in seconds are their costs in tokens times a measured constant.
        times = baseline.step_times, challenger.step_times
        time_headline = replace(time_headline, interval=headline.interval.for_time(time_headline.ratio, times))
    return Comparison(
        baseline.arm,
        challenger.arm,
        headline,
        rows,
        time_headline,
        compute_rows(baseline, challenger, "seconds"),
        compute_gaps(baseline, challenger),
        is_told_from_one(headline, baseline, challenger),
        note,
        {baseline.arm: ours, challenger.arm: theirs},
        theirs / ours if ours and theirs else None,
    )


def is_told_from_one(headline: Speedup, baseline: Ladder, challenger: Ladder) -> bool:
    """Return whether the seeds allow to say that a token speedup is not 1.

    A measured one: its interval leaves out 1. A bound: the better arm is below the other's best loss already at its smallest
    budget, and that difference is beyond what the noise of seeds explains (one-sided t-test at 2.5%).
    """
    if headline.relation == "=":
        return headline.interval is not None and not headline.interval.holds_one
    better, worse = (challenger, baseline) if headline.relation == ">" else (baseline, challenger)
    first, best = better.points[0], min(worse.points, key=lambda point: point.best.loss)
    test = _test_losses(*share_seeds(best.best, first.best))
    return first.tokens < best.tokens and test is not None and test.is_below()


def _add_interval(row: Speedup, resamples: Resamples, headline: Speedup, names: tuple[str, str]) -> Speedup:
    """Return the row with its interval; but for the headline's own, a row that some resample can only bound gets none."""
    if row.relation != "=":
        return row
    if (row.at_arm, row.at_tokens) == (headline.at_arm, headline.at_tokens):
        return replace(row, interval=headline.interval)
    values = [measure_row(draw.ladders, *names, row) for draw in resamples.draws]
    interval = resamples.interval(row.ratio, values, row.reading_error)
    return row if interval is None or interval.bounded else replace(row, interval=interval)
