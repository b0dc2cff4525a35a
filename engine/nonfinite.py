"""Steps whose loss or gradient is not finite: which windows were in them, and how the run goes on (on_nonfinite)."""

import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from engine.attention import attention_kernel
from engine.checkpoint import TrainerState, find_checkpoint
from engine.config import Config
from engine.data import BatchShape, TrainingWindows
from engine.distributed import Ranks
from engine.metrics import MetricsLog
from engine.stability import Diverged, record_event

if TYPE_CHECKING:  # the trainer imports this module
    from engine.trainer import StepResult, Trainer


def recover(trainer: "Trainer", result: "StepResult", log: MetricsLog) -> None:
    """Leave out a step whose numbers are not finite (on_nonfinite=skip), or go back to the newest checkpoint (rollback).

    Raises:
        Diverged: on_nonfinite=stop, or it has happened too often, or there is no checkpoint to go back to.
    """
    config, ranks = trainer.config, trainer.ranks
    batch = trainer.state.step + trainer.state.skipped_batches
    culprits = find_culprits(result.micro_losses, batch, trainer.shape, trainer.windows)
    what = handle_nonfinite(str(result), culprits, config, ranks, trainer.state)
    if config.on_nonfinite == "skip":
        trainer.state.step += 1
    else:
        roll_back(trainer, what)
    trainer.state.nonfinite_events += 1
    log.rewind(trainer.state.step, trainer.state.train_seconds)
    trainer.logged = (trainer.state.step, trainer.state.train_seconds)
    if ranks.is_main_process:
        print(f"warning: {what}; on_nonfinite={config.on_nonfinite}: at step {trainer.state.step}", file=sys.stderr)


def roll_back(trainer: "Trainer", cause: str) -> None:
    """Go back to the newest checkpoint, and on from it with the batches that follow the present one.

    Raises:
        Diverged: there is no checkpoint; the message begins with the cause.
    """

    def newest_checkpoint() -> Path | None:
        trainer.writer.wait()
        return find_checkpoint(trainer.writer.folder)

    checkpoint = trainer.ranks.on_main(newest_checkpoint)
    if checkpoint is None:
        raise Diverged(f"{cause}; there is no checkpoint to go back to yet")
    failed = trainer.state
    trainer.ranks.agree(lambda: trainer.restore(checkpoint))
    trainer.state = replace(
        trainer.state,
        train_seconds=failed.train_seconds,  # they were spent
        # The batches before the bad one would lead to it again.
        skipped_batches=failed.step + failed.skipped_batches + 1 - trainer.state.step,
        nonfinite_events=failed.nonfinite_events,
        evaluation_pending=False,  # made up for when this session began
        wandb_id=failed.wandb_id,
    )
    trainer.batches = trainer.read_batches()


def find_culprits(micro_losses: Tensor, batch: int, shape: BatchShape, windows: TrainingWindows) -> list[int]:
    """Return the windows of this rank's micro batches whose own loss (micro steps,) is not finite; batch is the global batch."""
    starts = [shape.first_sample(batch, m) for m, is_finite in enumerate(micro_losses.isfinite().tolist()) if not is_finite]
    return [windows.window_of(start + i) for start in starts for i in range(shape.micro_batch_size)]


def handle_nonfinite(numbers: str, culprits: list[int], config: Config, ranks: Ranks, state: TrainerState) -> str:
    """Record in events.jsonl that a step's numbers are not finite; return a sentence that says so if the run may go on.

    Args:
        numbers: the step's loss and gradient norm, in words.
        culprits: this rank's windows; none if all losses are finite, and the gradient is not.

    Raises:
        Diverged: on_nonfinite=stop, or it has happened max_nonfinite times before.
    """
    step = state.step + 1
    what = f"step {step}: {numbers}"
    found = list(chain(*ranks.gather(culprits)))
    kernel = attention_kernel(config, ranks.device)
    if ranks.is_main_process:
        details = {
            "numbers": numbers,
            "action": config.on_nonfinite,
            "windows": found or "all of the batch",
            "attention": kernel,
        }
        record_event(config.run_dir, step, "nonfinite", **details, batch=state.step + state.skipped_batches)
    if config.on_nonfinite == "stop":
        # cuDNN's backward pass has returned NaN where other kernels do not.
        other = f", attention=flash (it ran by {kernel})" if kernel == "cudnn" else ""
        raise Diverged(f"{what}; try a lower learning_rate than {config.learning_rate:g}{other}, or on_nonfinite=skip")
    if state.nonfinite_events >= config.max_nonfinite:
        raise Diverged(f"{what}; and {state.nonfinite_events} times before (max_nonfinite={config.max_nonfinite})")
    return what
