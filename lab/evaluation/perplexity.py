"""Perplexity of a run on any prepared token file, computed as its own validation was."""

from pathlib import Path
from typing import Any

from corpus.token_file import open_token_file
from corpus.tokenizer import byte_lengths
from engine.distributed import Ranks
from engine.evaluate import ValidationSet, evaluate
from engine.loss import NextTokenLoss
from lab.evaluation.trained_run import MeasuredRun, data_folder, open_bins
from lab.words import align
from runfolder.layout import ENVIRONMENT
from runfolder.metrics import read_records, select_validations
from runfolder.status import read_nested


def measure_perplexity(
    run: MeasuredRun,
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
    folder = data or data_folder(run)
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


def recorded_loss(run: MeasuredRun, digest: str) -> float | None:
    """Return the val/loss that training logged at this step, None unless it was on these very windows."""
    if read_nested(run.folder / ENVIRONMENT, "evaluation", "digest") != digest:
        return None
    found = select_validations(read_records(run.folder)).get(run.step)
    return float(found["val/loss"]) if found else None


def describe(result: dict[str, Any]) -> str:
    """Return what was measured as one line."""
    line = (
        f"{result['run']} at step {result['step']:,} on {result['data']} ({result['split']}, "
        f"{result['tokens']:,} tokens, context "
        f"{result['sequence_length']}): {result['nats_per_token']:.4f} nats/token, perplexity {result['perplexity']:.3f}, "
        f"{result['bits_per_byte']:.4f} bits/byte"
    )
    if result["recorded_in_training"] is not None:
        line += f"; training recorded {result['recorded_in_training']:.4f} on the same windows"
    return line


def table(results: list[dict[str, Any]]) -> str:
    """Return the results of several runs as one table."""
    header = ["run", "step", "tokens", "context", "nats/token", "perplexity", "bits/byte", "in training"]
    rows = [
        [
            result["run"],
            f"{result['step']:,}",
            f"{result['tokens']:,}",
            str(result["sequence_length"]),
            f"{result['nats_per_token']:.4f}",
            f"{result['perplexity']:.3f}",
            f"{result['bits_per_byte']:.4f}",
            "-" if result["recorded_in_training"] is None else f"{result['recorded_in_training']:.4f}",
        ]
        for result in results
    ]
    measured_on = dict.fromkeys(f"{result['data']} ({result['split']})" for result in results)
    return f"on {', '.join(measured_on)}\n{align(header, rows)}"
