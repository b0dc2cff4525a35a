"""What a sweep costs before it starts: tokens, FLOPs, GPU-hours, disk."""

import math
from collections.abc import Sequence

from engine.accounting import BF16_PEAKS, count_parameters, flops_per_token
from engine.config import Config
from engine.models import build_model
from lab.words import format_tokens

CARDS = {"H100": "H100", "A100": "A100", "4090": "RTX 4090"}  # as people call them: as BF16_PEAKS does
BYTES_PER_PARAMETER = 3 * 4  # fp32 weights and AdamW's two moments


def describe_bill(configs: Sequence[Config], mfu: float) -> str:
    """Return the cost of these runs in two lines.

    Args:
        mfu: model FLOPs utilization, the part of a card's dense bf16 peak that training reaches; bench.py measures it.
    """
    tokens = sum(config.tokens_per_step * config.max_steps for config in configs)
    flops = disk = 0.0
    counted: dict[str, tuple[int, int]] = {}
    for config in configs:
        key = str(sorted(config.model.items(), key=str))
        if key not in counted:
            model = build_model(config.model, config.precision.matrices, device="meta")
            counted[key] = flops_per_token(model), count_parameters(model)["total"]
        per_token, parameters = counted[key]
        flops += per_token * config.tokens_per_step * config.max_steps
        disk += checkpoints_kept(config) * parameters * BYTES_PER_PARAMETER
    per_card = {card: flops / (mfu * (BF16_PEAKS[name] or math.nan)) / 3600 for card, name in CARDS.items()}
    hours = ", ".join(f"{say(count)} hours of one {card}" for card, count in per_card.items())
    return (
        f"the bill: {format_tokens(tokens)} tokens, {flops:.2e} FLOPs, {say(disk / 1e9)} GB of checkpoints\n"
        f"at {100 * mfu:g}% of the card's bf16 peak (mfu={mfu:g}): {hours}"
    )


def checkpoints_kept(config: Config) -> int:
    """Return how many checkpoints a finished run holds on disk."""
    saved = {*range(config.checkpoint_interval, config.max_steps + 1, config.checkpoint_interval), config.max_steps}
    for_good = {step for step in saved if config.keep_every and step % config.keep_every == 0}
    return len(for_good | set(sorted(saved)[-config.keep_checkpoints :]))


def say(number: float) -> str:
    """Return a number in about three digits: 12,300; 1.5; less than 0.01."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}" if number >= 0.01 else "less than 0.01"
