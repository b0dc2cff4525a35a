"""Steps whose loss or gradient is not finite: which windows were in them, and whether the run goes on (on_nonfinite)."""

from itertools import chain

from torch import Tensor

from engine.attention import attention_kernel
from engine.checkpoint import TrainerState
from engine.config import Config
from engine.data import BatchShape, TrainingWindows
from engine.distributed import Ranks
from engine.stability import Diverged, record_event


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
