"""Numbers that go wrong: non-finite losses, spikes, matrices off the sphere. What is noticed, and what becomes of it."""

import json
import math
import time
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch.func import functional_call

from engine.checkpoint import TrainerState
from engine.distributed import full_tensor
from engine.models import learned_scales

SPIKE_DEVIATIONS = 6.0  # standard deviations above the running mean
SPIKE_HISTORY = 20  # steps before anything can be called a spike
SPIKE_MEMORY = 0.98  # weight of the past in the running mean: about 50 steps
# A vector of 1000 fp32 numbers is of unit norm to about 1e-7 after the renormalization, one of bf16 numbers to about 1e-3.
NORM_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}


class Diverged(RuntimeError):
    """The loss is not finite, or an invariant of the model does not hold; the weights saved last are intact."""

    exit_code = 5
    state = "diverged"  # in status.json


def note_loss(state: TrainerState, loss: float) -> float | None:
    """Update the running mean of the training loss; return how many deviations above it the loss is, if it is a spike.

    The running values are part of the state, so that a resumed run flags the same steps. A spike does not enter them.
    """
    if state.loss_mean is None:
        state.loss_mean = loss
    excess = loss - state.loss_mean
    deviation = math.sqrt(state.loss_variance)
    if state.losses_seen >= SPIKE_HISTORY and excess > SPIKE_DEVIATIONS * max(deviation, 1e-3 * abs(state.loss_mean)):
        return excess / max(deviation, 1e-12)
    state.losses_seen += 1
    state.loss_mean += (1 - SPIKE_MEMORY) * excess
    state.loss_variance = SPIKE_MEMORY * (state.loss_variance + (1 - SPIKE_MEMORY) * excess**2)
    return None


@torch.no_grad()
def max_norm_deviation(model: torch.nn.Module) -> float | None:
    """Return the largest |norm - 1| over the vectors of the matrices kept at unit norm, None where there are none."""
    norms = [
        full_tensor(torch.linalg.vector_norm(weight.to(torch.promote_types(weight.dtype, torch.float32)), dim=dim))
        for weight, dim in chain.from_iterable(model.normalized_matrices())
    ]
    deviations = [(norm - 1).abs().max() for norm in norms]
    return torch.stack(deviations).max().item() if deviations else None


@torch.no_grad()
def scale_means(model: torch.nn.Module) -> dict[str, float]:
    """Return the mean |value| of each kind of learned scale over all layers, by its name (attn_alpha, sqk, ...)."""
    values: dict[str, list[torch.Tensor]] = {}
    for kind, scale in learned_scales(model):
        stored = {name: full_tensor(p) for name, p in scale.named_parameters()}
        values.setdefault(kind, []).append(functional_call(scale, stored, ()).abs().mean())
    return {name: torch.stack(means).mean().item() for name, means in values.items()}


def check_norms(deviation: float | None, matrices: str) -> None:
    """Raise Diverged if a matrix that is kept at unit norm is not; deviation is the largest |norm - 1|."""
    if deviation is not None and not deviation <= NORM_TOLERANCE[matrices]:
        raise Diverged(
            f"a matrix is off the unit sphere: largest |norm - 1| is {deviation:.2e}, at most {NORM_TOLERANCE[matrices]:.0e} "
            "is rounding; is post_optimizer_step still called after every step?"
        )


def record_event(run_dir: Path, step: int, event: str, **details: Any) -> None:
    """Append to events.jsonl what should not happen and did; the file is for reading, nothing depends on it."""
    record = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "step": step, "event": event, **details}
    try:
        with (run_dir / "events.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
    except OSError:
        pass  # told on the console as well
