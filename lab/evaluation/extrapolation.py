"""Perplexity beyond the training context, with RoPE unchanged, on the same tokens at every length.

A span is cut into windows of length L, for each L in turn; every token of it but the first is predicted once per L. So
the lengths differ in the context that a token is given, not in the text. Two figures per length:

- all: the mean over all tokens. In a window of length L a token has L/2 tokens of context on average.
- last: the mean over the final training-context-many tokens of each span, given between L - T and L tokens before them.
  Here a model that uses its longer context improves, and one that breaks beyond it shows by how much.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cli.composition import ConfigError
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
    return {
        "training_context": runs[0].sequence_length,
        "multiples": multiples,
        "text": text.describe(),
        "runs": [{**run.describe(), "lengths": measure_extrapolation(run, ranks, text, multiples)} for run in runs],
    }


def render(result: dict[str, Any]) -> str:
    """Return the result as a table for people, perplexity with the nats per token and their standard error over spans."""
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
    for run in result["runs"]:
        lines += ["", f"{run['run']} (step {run['step']:,}, {run['matmul']})"]
        lines.append(f"{'':>6} {'window':>8}   {'all tokens':^32}   {'same last tokens':^32}")
        for row in run["lengths"]:
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


def summarize(span_means: np.ndarray) -> dict[str, float | None]:
    """Return the mean in nats per token, its standard error over spans (None with one) and the perplexity."""
    mean, n = float(span_means.mean()), len(span_means)
    return {
        "nats_per_token": mean,
        "standard_error": float(span_means.std(ddof=1) / math.sqrt(n)) if n > 1 else None,
        "perplexity": math.exp(min(mean, 700)),
    }
