"""A report as plain values: what speedup.json holds; docs/method.md describes it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.runs import Run, lookup
from lab.speedup.comparable import end_of, flatten
from lab.speedup.ladder import BudgetPoint
from lab.speedup.report import Report, Section
from lab.speedup.sentences import describe_bound
from lab.speedup.speedup import Comparison

FORMAT = 2


@dataclass(frozen=True)
class Made:
    """How and when a report was made; `beside` are folders and text files of other results that its page shows."""

    command: str = ""
    date: str = ""
    beside: tuple[Path, ...] = ()


def to_mapping(report: Report, made: Made | None = None, plots: Sequence[Sequence[str]] = ()) -> dict:
    """Return a report as plain values for speedup.json; every number of the page is in it."""
    parts = plots or [[] for _ in report.sections]
    return {
        "format": FORMAT,
        "made": {"command": made.command, "date": made.date} if made else None,
        "left_out_sections": list(report.notes),
        "sections": [_section_mapping(section, names) for section, names in zip(report.sections, parts, strict=True)],
    }


def _section_mapping(section: Section, plots: Sequence[str]) -> dict:
    first = section.runs[0].environment
    keys = {"data": "data.digest", "tokenizer": "data.tokenizer.digest", "evaluation": "evaluation.digest"}
    return {
        "label": section.label,
        "size": section.size,
        "shape": dict(zip(("n_layer", "n_embd", "n_head"), section.shape, strict=True)),
        "context": section.context,
        "data": section.data,
        "tokenizer": section.tokenizer,
        "paper": section.paper,
        "headlines": [asdict(line) for line in section.headlines],
        "comparisons": [_comparison_mapping(comparison) for comparison in section.comparisons],
        "equal_loss": asdict(section.equal_loss) if section.equal_loss else None,
        "decomposition": asdict(section.decomposition) if section.decomposition else None,
        "arms": {
            arm: {"model": section.models[arm], "points": [_point_mapping(point) for point in ladder.points]}
            for arm, ladder in section.ladders.items()
        },
        "runs": [_run_mapping(run, section.arms[run.name]) for run in section.runs],
        "left_out": [{"run": run.name, "arm": section.arms[run.name], "reason": reason} for run, reason in section.left_out],
        "digests": {name: lookup(first, key) for name, key in keys.items()},
        "settings": asdict(section.settings),
        **asdict(section.caveats),
        "plots": list(plots),
    }


def _comparison_mapping(comparison: Comparison) -> dict:
    mapping = asdict(comparison)
    rows = [mapping["token_headline"], *mapping["token_rows"], *mapping["time_rows"], mapping["time_headline"]]
    for row in filter(None, rows):
        row["note"] = describe_bound(row["note"], comparison)
    return mapping


def _point_mapping(point: BudgetPoint) -> dict:
    candidates = [
        {
            "learning_rate": item.learning_rate,
            "variant": item.variant,
            "loss": item.loss,
            "standard_error": item.standard_error,
            "bits_per_byte": item.bits_per_byte,
            "seconds": item.seconds,
            "seeds": list(item.seeds),
            "runs": [endpoint.run for endpoint in item.endpoints],
        }
        for item in point.candidates
    ]
    return {
        "tokens": point.tokens,
        "steps": point.steps,
        "edge": point.edge,
        "best": candidates[point.candidates.index(point.best)],
        "diverged_learning_rates": list(point.diverged),
        "candidates": candidates,
    }


def _run_mapping(run: Run, arm: str) -> dict:
    return {
        "run": run.name,
        "path": run.path,
        "arm": arm,
        "final": asdict(end_of(run)),
        "commit": run.environment.get("commit"),
        "config": flatten(run.config),
    }
