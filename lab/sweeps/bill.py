"""What a sweep costs before it starts: tokens, FLOPs, GPU-hours, disk."""

import math
from collections.abc import Sequence
from dataclasses import asdict

from engine.accounting import BF16_PEAKS, flops_per_token
from engine.config import Config, flatten, is_neutral
from engine.memory import state_bytes
from engine.models import build_model
from lab.words import format_tokens

CARDS = {"H100": "H100", "A100": "A100", "4090": "RTX 4090"}  # as people call them: as BF16_PEAKS does


def describe_bill(configs: Sequence[Config], mfu: float) -> str:
    """Return the cost of these runs in two lines, and in a third what schedule=wsd saves of it or would save.

    Args:
        mfu: model FLOPs utilization, the part of a card's dense bf16 peak that training reaches; bench.py measures it.
    """
    longest = find_longest(configs)
    tokens = flops = saved = disk = 0.0
    counted: dict[str, tuple[int, int]] = {}
    for config in configs:
        key = str((sorted(config.model.items(), key=str), config.precision.matrices, config.update))
        if key not in counted:
            model = build_model(config.model, config.precision.matrices, device="meta")
            counted[key] = flops_per_token(model), state_bytes(model, config.update)
        per_token, checkpoint = counted[key]
        shared = config.decay_start if config.branch_from or config.max_steps < longest[group_of(config)] else 0
        steps = config.max_steps - (shared if config.branch_from else 0)
        tokens += config.tokens_per_step * steps
        flops += per_token * config.tokens_per_step * steps
        saved += per_token * config.tokens_per_step * shared
        disk += checkpoints_kept(config) * checkpoint

    def hours(work: float, card: str) -> str:
        return f"{say(work / (mfu * (BF16_PEAKS[CARDS[card]] or math.nan)) / 3600)} hours of one {card}"

    lines = [
        f"the bill: {format_tokens(tokens)} tokens, {flops:.2e} FLOPs, {say(disk / 1e9)} GB of checkpoints",
        f"at {100 * mfu:g}% of the card's bf16 peak (mfu={mfu:g}): {', '.join(hours(flops, card) for card in CARDS)}",
    ]
    if saved:
        is_wsd = any(config.branch_from for config in configs)
        share = saved / (flops + saved if is_wsd else flops)
        words = "branches of their trunks (schedule: wsd) save" if is_wsd else "with schedule: wsd the shorter runs would save"
        lines.append(f"{words} {100 * share:.0f}%: {', '.join(hours(saved, card) for card in CARDS)}")
    return "\n".join(lines)


def find_longest(configs: Sequence[Config]) -> dict[str, int]:
    """Return the most steps among the runs of each group that could share a trunk."""
    longest: dict[str, int] = {}
    for config in configs:
        longest[group_of(config)] = max(longest.get(group_of(config), 0), config.max_steps)
    return longest


def group_of(config: Config) -> str:
    """Return what runs that could share a trunk have in common: all but their length, and a warmup that may follow it."""
    kept = {key: value for key, value in flatten(asdict(config)).items() if not is_neutral(key)}
    return str(sorted((kept | {"max_steps": None, "warmup_steps": None}).items(), key=str))


def checkpoints_kept(config: Config) -> int:
    """Return how many checkpoints a finished run holds on disk."""
    saved = {*range(config.checkpoint_interval, config.max_steps + 1, config.checkpoint_interval), config.max_steps}
    saved |= set(config.keep_steps)
    for_good = set(config.keep_steps) | {step for step in saved if config.keep_every and step % config.keep_every == 0}
    return len(for_good | set(sorted(saved)[-config.keep_checkpoints :]))


def say(number: float) -> str:
    """Return a number in about three digits: 12,300; 1.5; less than 0.01."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}" if number >= 0.01 else "less than 0.01"
