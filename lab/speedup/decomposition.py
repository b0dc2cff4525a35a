"""Split the speedup over a handicapped baseline into parts: its learning rate, its bf16 weights, QK-norm, the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lab.runs import Run, lookup
from lab.speedup.arms import RULES
from lab.speedup.comparable import IncomparableError, read_field
from lab.speedup.curve import Reach
from lab.speedup.ladder import Ladder
from lab.speedup.seeds import Interval, resample_seeds
from lab.words import format_rate, format_tokens

# The baselines in the order in which the handicaps are taken away, each with what lies between it and the next row.
CHAIN = (
    ("untuned", "GPT, bf16-stored matrices, untuned rate", "the baseline's learning rate"),
    ("gpt_bf16", "GPT, bf16-stored matrices, best rate", "bf16-stored matrices"),
    ("gpt", "GPT, fp32 weights, best rate", "QK normalization"),
    ("gpt_qknorm", "GPT + QK-norm, fp32 weights, best rate", "the rest of nGPT"),
    ("ngpt", "nGPT, fp32 weights, best rate", ""),
)
ROLES = {
    ("gpt", True): "gpt_bf16",
    ("gpt", False): "gpt",
    ("gpt_qknorm", False): "gpt_qknorm",
    ("ngpt", False): "ngpt",
    ("ngpt", True): "ngpt_bf16",
}


@dataclass(frozen=True)
class Ratio:
    """A ratio of token costs at the common loss; relation `>` or `<` marks a bound, None one that is unknown.

    `reading_error` is how far log(value) may be off because ladders were read between budgets.
    """

    value: float | None
    relation: str = "="
    interval: Interval | None = None
    reading_error: float = 0.0


@dataclass(frozen=True)
class Part:
    """One row of the chain: its tokens at the common loss, nGPT's speedup over it, and the part to the next."""

    key: str
    words: str
    tokens: float
    at_most: bool
    speedup: Ratio | None
    part_words: str
    part: Ratio | None


@dataclass(frozen=True)
class Decomposition:
    """The chain at one loss (nats/token), and what the runs say about its order."""

    loss: float
    rows: tuple[Part, ...]
    checks: tuple[tuple[str, Ratio], ...]
    notes: tuple[str, ...]


def stores_bf16(run: Run) -> bool:
    """Return whether a run keeps its matrices in bf16 between steps."""
    stored = lookup(run.config, "precision.matrices")
    return stored == "bfloat16" if stored else lookup(run.config, "precision.name") == "bf16_weights"


def find_role(run: Run) -> str | None:
    """Return the row of the chain that a run belongs to; none for another update rule or parametrization than the paper's."""
    is_plain = all(read_field(run, "config", key) == usual for key, usual in RULES.items())
    return ROLES.get((run.model, stores_bf16(run))) if is_plain else None


def find_roles(runs: Sequence[Run], arms: Mapping[str, str]) -> dict[str, str]:
    """Return {role: arm} of the arms that the decomposition knows; raise IncomparableError where two fill one role."""
    roles: dict[str, str] = {}
    for run in runs:
        role, arm = find_role(run), arms[run.name]
        if role and roles.setdefault(role, arm) != arm:
            raise IncomparableError(
                f"cannot decompose: the arms {roles[role]!r} and {arm!r} differ, and both would be the row {role!r}"
            )
    return roles


def decompose(
    runs: Sequence[Run], arms: Mapping[str, str], by_arm: Mapping[str, Ladder], untuned_rate: float | None = None
) -> Decomposition:
    """Return the decomposition of runs whose arms are split by precision; raise IncomparableError if they lack arms."""
    roles = find_roles(runs, arms)
    if "ngpt" not in roles or len(set(roles) & {"gpt_bf16", "gpt", "gpt_qknorm"}) < 2:
        raise IncomparableError(
            "cannot decompose: it takes finished runs of nGPT with fp32 weights and of at least two of GPT with "
            f"bf16-stored matrices, GPT with fp32 weights, GPT+QK-norm; found: {', '.join(sorted(roles)) or 'none'}"
        )
    ladders = {role: by_arm[arm] for role, arm in roles.items()}
    ratios, costs, loss, note = measure_parts(ladders, untuned_rate)
    keys = [key for key, _, _ in CHAIN if key in costs]
    rows = []
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        steps = [item[0] for item in CHAIN]
        between = CHAIN[steps.index(key) : steps.index(following)] if following else ()
        rows.append(
            Part(
                key,
                next(words for name, words, _ in CHAIN if name == key),
                costs[key].cost,
                costs[key].side == "below",
                ratios.get((key, "ngpt")),
                " and ".join(step for _, _, step in between),
                ratios[key, following] if following else None,
            )
        )
    notes = [*([note] if note else []), *_describe_choices(ladders, runs, untuned_rate)]
    return Decomposition(loss, tuple(rows), _list_checks(ratios), tuple(notes))


def measure_parts(
    ladders: dict[str, Ladder], untuned_rate: float | None = None
) -> tuple[dict[tuple[str, str], Ratio], dict[str, Reach], float, str]:
    """Return what measure_chain does, with intervals over seeds, and why there are none (empty if there are)."""
    ratios, costs, loss = measure_chain(ladders, untuned_rate)
    resamples, note = resample_seeds(list(ladders.values()))
    if resamples is None:
        return ratios, costs, loss, note
    roles = {ladder.arm: role for role, ladder in ladders.items()}
    drawn = [
        measure_chain({roles[arm]: ladder for arm, ladder in draw.ladders.items()}, untuned_rate)[0] for draw in resamples.draws
    ]
    for pair, ratio in ratios.items():
        if ratio.relation == "=" and ratio.value:
            values = [(value, draw[pair].relation != "=") if (value := draw[pair].value) else None for draw in drawn]
            ratios[pair] = replace(ratio, interval=resamples.interval(ratio.value, values, ratio.reading_error))
    return ratios, costs, loss, note


def measure_chain(
    ladders: dict[str, Ladder], untuned_rate: float | None
) -> tuple[dict[tuple[str, str], Ratio], dict[str, Reach], float]:
    """Return {(row, row): cost ratio}, {row: cost} and the loss: the lowest that every row of the chain reaches."""
    variants = dict(ladders)
    for role, name in (("gpt_bf16", "untuned"), ("gpt", "gpt_untuned")):
        if role in ladders:
            variants[name] = pin_rate(ladders[role], ladders["ngpt"], untuned_rate)
    curves = {name: ladder.token_curve for name, ladder in variants.items()}
    chain = [key for key, _, _ in CHAIN if key in curves]
    loss = max(curves[key].losses[-1] for key in chain)
    reached = {name: curve.reach(loss) for name, curve in curves.items()}
    ratios = {(a, b): divide(reached[a], reached[b]) for a in reached for b in reached if a != b}
    return ratios, {key: reached[key] for key in chain}, loss


def pin_rate(ladder: Ladder, tuned: Ladder, rate: float | None) -> Ladder:
    """Return the ladder of the untuned baseline: at each budget the rate given, else the one nearest to nGPT's best.

    Nearest in the ratio, among the rates that the baseline ran at this budget; IncomparableError if it lacks the given.
    """
    points = []
    for point in ladder.points:
        ours = min(tuned.points, key=lambda other: abs(other.tokens - point.tokens))
        wanted = rate or ours.best.learning_rate
        nearest = min(
            point.candidates,
            key=lambda item: (round(abs(item.learning_rate / wanted - wanted / item.learning_rate), 9), item.loss),
        )
        if rate and abs(nearest.learning_rate / rate - 1) > 1e-6:
            raise IncomparableError(
                f"untuned_rate={format_rate(rate)}: {ladder.arm} at {format_tokens(point.tokens)} tokens ran only "
                + ", ".join(format_rate(item.learning_rate) for item in point.candidates)
            )
        points.append(replace(point, best=nearest))
    return replace(ladder, points=tuple(points))


def divide(above: Reach, below: Reach) -> Ratio:
    """Return above / below; a cost known only as a bound (`below` or `never`) bounds the ratio."""
    sides = above.side, below.side
    if sides == ("within", "within"):
        return Ratio(above.cost / below.cost, reading_error=above.error + below.error)
    if "within" not in sides:
        return Ratio(None, "unknown")
    larger = above.side == "never" or below.side == "below"
    return Ratio(above.cost / below.cost, ">" if larger else "<")


def _list_checks(ratios: dict) -> tuple[tuple[str, Ratio], ...]:
    """Return the ratios that show how far the parts depend on the order of the chain."""
    checks = (
        ("the baseline's learning rate, had the storage been mended first", ("gpt_untuned", "gpt")),
        ("bf16-stored matrices, at the untuned rate", ("untuned", "gpt_untuned")),
        ("bf16-stored matrices, in nGPT itself", ("ngpt_bf16", "ngpt")),
        ("nGPT over GPT, both with bf16-stored matrices at their best rates", ("gpt_bf16", "ngpt_bf16")),
    )
    return tuple((words, ratios[pair]) for words, pair in checks if pair in ratios)


def _describe_choices(ladders: Mapping[str, Ladder], runs: Sequence[Run], untuned_rate: float | None) -> list[str]:
    """Return what a reader must know of this chain: the untuned rates, missing rows, differences besides storage."""
    notes = []
    if "gpt_bf16" in ladders:
        pinned = pin_rate(ladders["gpt_bf16"], ladders["ngpt"], untuned_rate).points
        chosen = ", ".join(f"{format_rate(p.best.learning_rate)} at {format_tokens(p.tokens)}" for p in pinned)
        notes.append(f"untuned rate ({'given' if untuned_rate else 'of those run, nearest to nGPT’s best'}): {chosen}")
    missing = [words for key, words, _ in CHAIN if key not in ladders and key != "untuned"]
    if missing:
        notes.append(f"no finished runs of: {'; '.join(missing)}")
    products = {lookup(run.config, "precision.matmul") for run in runs if find_role(run)}
    if len(products) > 1:
        notes.append("the arms differ in the dtype of matrix products too, which the storage's part then includes")
    return notes


def find_reference(runs: Sequence[Run], arms: Mapping[str, str]) -> str | None:
    """Return the arm, of finished runs, that other arms are compared with: GPT with fp32 weights, if there is one."""
    return next((arms[run.name] for run in runs if find_role(run) == "gpt"), None)
