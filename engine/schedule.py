"""The learning rate of each step."""

import math


def learning_rate_at(step: int, *, max_steps: int, peak: float, minimum: float, warmup_steps: int) -> float:
    """Return the rate of the update that leads from `step` to `step + 1`: linear warmup, then a cosine to minimum."""
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / (max_steps - warmup_steps)
    return minimum + 0.5 * (1 + math.cos(math.pi * progress)) * (peak - minimum)
