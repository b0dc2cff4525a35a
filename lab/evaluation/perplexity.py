"""Perplexity of a run on any prepared token file, computed as its own validation was."""

import json
from pathlib import Path
from typing import Any

from corpus.token_file import open_token_file
from corpus.tokenizer import byte_lengths
from engine.distributed import Ranks
from engine.evaluate import ValidationSet, evaluate
from engine.loss import NextTokenLoss
from lab.evaluation.trained_run import TrainedRun, open_bins


def measure_perplexity(
    run: TrainedRun,
    ranks: Ranks,
    data: Path | None,
    split: str,
    sequence_length: int | None,
    windows: int | None,
    batch_size: int | None,
) -> dict[str, Any]:
    """Return nats per token, perplexity, bits per byte and what they were measured on, equal on every rank.

    Args:
        data: a folder written by prepare_owt.py; None is the run's own.
        sequence_length: tokens of context; None is that of training. Longer ones extrapolate (RoPE goes on unchanged).
        windows: evenly spread; None is as many as the run's own validation took, 0 is all.
    """
    folder = data or Path(run.config.data.dir)
    length = sequence_length or run.sequence_length
    limit = run.config.eval_windows if windows is None else windows or None

    def open_windows() -> tuple[ValidationSet, str]:
        manifest = open_bins(run, folder, split, length)
        tokens = open_token_file(folder, split, manifest)
        # The lengths come from the run's tokenizer, whose digest was checked, not from a file beside the bins.
        return ValidationSet(tokens, byte_lengths(run.tokenizer), length, limit), manifest.splits[split].sha256

    validation, sha256 = ranks.agree(open_windows)
    values = evaluate(NextTokenLoss(run.model), validation, batch_size or run.config.micro_batch_size, ranks, run.autocast())
    measured = validation.describe(sha256)
    return {
        **run.describe(),
        "data": str(folder),
        "split": split,
        "sequence_length": length,
        **measured,
        "nats_per_token": values["val/loss"],
        "perplexity": values["val/perplexity"],
        "bits_per_byte": values["val/bits_per_byte"],
        "recorded_in_training": recorded_loss(run, measured["digest"]),
    }


def recorded_loss(run: TrainedRun, digest: str) -> float | None:
    """Return the val/loss that training logged at this step, None unless it was on these very windows."""
    try:
        environment = json.loads((run.folder / "environment.json").read_text())
        if environment["evaluation"]["digest"] != digest:
            return None
        records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        return next((float(r["val/loss"]) for r in records if r["step"] == run.step and "val/loss" in r), None)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # nothing to compare with is no fault
