"""Write an analysis down as plain values: what speedup.json holds."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lab.figures import Plot
from lab.runs import Run, lookup
from lab.speedup.comparable import flatten
from lab.speedup.groups import Report, summarize
from lab.speedup.report import Analysis
from lab.speedup.sentences import describe_bound
from lab.speedup.speedup import Comparison


def to_record(report: Report, plots: list[list[Plot]], out: Path) -> dict:
    """Return a report as plain values: one section's numbers at the top, several under `sections`."""
    mappings = []
    for section, pictures in zip(report.sections, plots, strict=True):
        names = [plot.path.relative_to(out).as_posix() for plot in pictures]
        parts = asdict(section.decomposition) if section.decomposition else None
        mappings.append(
            {
                "section": section.label,
                **to_mapping(section.analysis, names),
                **({"decomposition": parts} if parts else {}),
            }
        )
    summary = [
        {
            **row,
            "from_published_points": [asdict(item) for item in row["from_published_points"]],
            "speedup": asdict(row["speedup"]) if row["speedup"] else None,
            "time_speedup": asdict(row["time_speedup"]) if row["time_speedup"] else None,
        }
        for row in summarize(report)
    ]
    rest = {"summary": summary, "left_out_sections": list(report.notes)}
    return {**mappings[0], **rest} if len(mappings) == 1 else {"format": 1, **rest, "sections": mappings}


def to_mapping(analysis: Analysis, plots: Sequence[str] = ()) -> dict:
    """Return the analysis as plain values for speedup.json; every number of the report is in it."""
    first = analysis.runs[0]
    return {
        "format": 1,
        "headlines": list(analysis.headlines),
        "comparisons": [_comparison_mapping(comparison) for comparison in analysis.comparisons],
        "arms": {arm: [_point_mapping(point) for point in ladder.points] for arm, ladder in analysis.ladders.items()},
        "runs": [_run_mapping(run, analysis.arms[run.name]) for run in analysis.runs],
        "left_out": [{"run": run.name, "arm": analysis.arms[run.name], "reason": reason} for run, reason in analysis.left_out],
        "digests": {
            "data": lookup(first.environment, "data.digest"),
            "tokenizer": lookup(first.environment, "data.tokenizer.digest"),
            "evaluation": lookup(first.environment, "evaluation.digest"),
        },
        "provenance": asdict(analysis.provenance),
        "warnings": list(analysis.warnings),
        "plots": list(plots),
    }


def _comparison_mapping(comparison: Comparison) -> dict:
    mapping = asdict(comparison)
    rows = [mapping["token_headline"], *mapping["token_rows"], *mapping["time_rows"]]
    rows += [mapping["time_headline"]] if mapping["time_headline"] else []
    for row in rows:
        row["note"] = describe_bound(row["note"], comparison)
    return mapping


def _point_mapping(point) -> dict:
    best = point.best
    candidates = [
        {
            "learning_rate": item.learning_rate,
            "variant": item.variant,
            "loss": item.loss,
            "standard_error": item.standard_error,
            "seeds": list(item.seeds),
            "runs": [endpoint.run for endpoint in item.endpoints],
        }
        for item in point.candidates
    ]
    return {
        "tokens": point.tokens,
        "steps": point.steps,
        "learning_rate": best.learning_rate,
        "variant": best.variant,
        "edge": point.edge,
        "loss": best.loss,
        "standard_error": best.standard_error,
        "bits_per_byte": best.bits_per_byte,
        "seconds": best.seconds,
        "seeds": list(best.seeds),
        "diverged_learning_rates": list(point.diverged),
        "candidates": candidates,
    }


def _run_mapping(run: Run, arm: str) -> dict:
    return {
        "run": run.name,
        "path": run.path,
        "arm": arm,
        "final": asdict(run.final),
        "commit": run.environment.get("commit"),
        "config": flatten(run.config),
    }
