"""Perplexity beyond the training context, with RoPE unchanged, on the same tokens at every length.

A span is cut into windows of length L, for each L in turn; every token of it but the first is predicted once per L. So
the lengths differ in the context that a token is given, not in the text. Two figures per length:

- all: the mean over all tokens. In a window of length L a token has L/2 tokens of context on average.
- last: the mean over the final training-context-many tokens of each span, given between L - T and L tokens before them.
  Here a model that uses its longer context improves, and one that breaks beyond it shows by how much.
"""

import math
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cli.composition import ConfigError
from engine.config import difference
from engine.distributed import Ranks
from lab.evaluation.long_text import LongText
from lab.evaluation.scoring import score_tokens
from lab.evaluation.trained_run import MeasuredRun


def check_alike(runs: list[MeasuredRun]) -> None:
    """Raise ConfigError unless the runs read the same tokens and were trained on the same context."""
    for run in runs[1:]:
        if run.tokenizer_digest != runs[0].tokenizer_digest:
            raise ConfigError(f"{run.folder} and {runs[0].folder} have different tokenizers; their perplexities do not compare")
        if run.sequence_length != runs[0].sequence_length:
            raise ConfigError(
                f"{run.folder} was trained on a context of {run.sequence_length}, {runs[0].folder} on "
                f"{runs[0].sequence_length}; "
                "give one command per context"
            )


def extrapolate(runs: list[MeasuredRun], ranks: Ranks, text: LongText, multiples: list[int]) -> dict[str, Any]:
    """Measure every run on the same text; the result explains itself and is what extrapolation.json holds."""
    measured = [{**run.describe(), "lengths": measure_extrapolation(run, ranks, text, multiples)} for run in runs]
    return {
        "training_context": runs[0].sequence_length,
        "multiples": multiples,
        "text": text.describe(),
        "runs": measured,
        "seeds": [over_seeds([measured[i] for i in group]) for group in seed_groups(runs) if len(group) > 1],
    }


def seed_groups(runs: list[MeasuredRun]) -> list[list[int]]:
    """Return the runs' indices, together those that differ in nothing but their seed, in the order of their first."""
    groups: list[list[int]] = []
    for index, run in enumerate(runs):
        for group in groups:
            first = runs[group[0]]
            keys = {line.partition(":")[0] for line in difference(first.config, run.config)}
            if keys <= {"seed", "run_name"} and first.step == run.step:
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def over_seeds(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of runs that differ in their seed, with the standard error and the extremes over the seeds."""
    lengths = []
    for rows in zip(*(run["lengths"] for run in measured), strict=True):
        row: dict[str, Any] = {key: rows[0][key] for key in ("multiple", "length")}
        for key in ("all", "last"):
            values = np.array([seed_row[key]["nats_per_token"] for seed_row in rows])
            row[key] = summarize(values) | {"lowest_nats": values.min().item(), "highest_nats": values.max().item()}
        lengths.append(row)
    names = [run["run"] for run in measured]
    return {"name": f"{os.path.commonprefix(names)}*", "step": measured[0]["step"], "runs": names, "lengths": lengths}


def lines_of(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return (title, its lengths) for what is shown: the means over seeds, and each run that is in none of them."""
    averaged = {name for group in result["seeds"] for name in group["runs"]}
    shown = [(f"{group['name']}, mean of {len(group['runs'])} seeds", group) for group in result["seeds"]]
    return shown + [(run["run"], run) for run in result["runs"] if run["run"] not in averaged]


def render(result: dict[str, Any]) -> str:
    """Return the result as a table for people: perplexity, and nats per token with their standard error over seeds or spans."""
    text = result["text"]
    inside = (
        f"inside {text['documents']} documents"
        if text["inside_documents"]
        else "cut from the joined stream, across document boundaries as in training: NO DOCUMENT IS AS LONG AS A SPAN"
    )
    lines = [
        f"{text['source']}: {text['spans']} spans of {text['span_tokens']:,} tokens, {inside}; training context "
        f"{result['training_context']:,}",
    ]
    for title, shown in lines_of(result):
        over = f"{shown['matmul']}; standard errors over spans" if "matmul" in shown else "standard errors over seeds"
        lines += ["", f"{title} (step {shown['step']:,}; {over})"]
        lines.append(f"{'':>6} {'window':>8}   {'all tokens':^32}   {'same last tokens':^32}")
        for row in shown["lengths"]:
            cells = [
                f"ppl {row[key]['perplexity']:>10,.3f}  nats {row[key]['nats_per_token']:.4f} +- "
                f"{row[key]['standard_error'] or float('nan'):.4f}"
                for key in ("all", "last")
            ]
            lines.append(f"{row['multiple']:>5}x {row['length']:>8,}   " + "   ".join(cells))
    return "\n".join(lines)


def measure_extrapolation(run: MeasuredRun, ranks: Ranks, text: LongText, multiples: list[int]) -> list[dict[str, Any]]:
    """Return, for each multiple of the training context, nats per token in all and by position, equal on every rank."""
    context = run.sequence_length
    n_spans = len(text.spans)
    sums = [torch.zeros(n_spans, multiple, dtype=torch.float64, device=ranks.device) for multiple in multiples]
    last = torch.zeros(n_spans, len(multiples), dtype=torch.float64, device=ranks.device)

    def measure_share() -> None:
        share = range(ranks.rank, n_spans, ranks.world_size)
        quiet = None if ranks.is_main_process else True  # None: quiet unless on a terminal
        for number in tqdm(share, desc=run.name, unit="span", disable=quiet):
            span = torch.from_numpy(text.spans[number]).to(ranks.device)
            for index, multiple in enumerate(multiples):
                nats = nats_of_span(run, span, multiple * context)
                # (windows, multiple, context) -> nats by how many contexts lie before the token in its window
                sums[index][number] = nats.view(-1, multiple, context).sum(dim=(0, 2))
                last[number, index] = nats[-context:].sum()

    ranks.agree(measure_share)
    ranks.all_reduce_sum(last)
    span_tokens = multiples[-1] * context
    results = []
    for index, multiple in enumerate(multiples):
        by_bucket = ranks.all_reduce_sum(sums[index]).cpu().numpy()
        results.append(
            {
                "multiple": multiple,
                "length": multiple * context,
                "all": summarize(by_bucket.sum(axis=1) / span_tokens),
                "last": summarize(last[:, index].cpu().numpy() / context),
                "nats_by_position": (by_bucket.mean(axis=0) / (span_tokens / multiple)).tolist(),
            }
        )
    return results


def nats_of_span(run: MeasuredRun, span: Tensor, length: int) -> Tensor:
    """Return -log p of every token of a span (span_tokens,), float64, seen through windows of that length."""
    windows = span.unfold(0, length + 1, length)  # neighbours share one token: read by one, predicted by the other
    try:
        with run.autocast():
            log_probability, _ = score_tokens(run.model, windows[:, :-1], windows[:, 1:], run.tokenizer.n_vocab)
    except torch.OutOfMemoryError:
        raise ConfigError(
            f"out of memory with {span.numel() - 1:,} tokens at a time in windows of {length:,}; leave out the largest multiples"
        ) from None
    return -log_probability.double().flatten()


def summarize(means: np.ndarray) -> dict[str, float | None]:
    """Return the mean in nats per token, its standard error over spans or seeds (None with one) and the perplexity."""
    mean, n = float(means.mean()), len(means)
    return {
        "nats_per_token": mean,
        "standard_error": float(means.std(ddof=1) / math.sqrt(n)) if n > 1 else None,
        "perplexity": perplexity_of(mean),
    }


def perplexity_of(nats: float) -> float:
    """Return exp(nats), finite for a model that is far off."""
    return math.exp(min(nats, 700))
