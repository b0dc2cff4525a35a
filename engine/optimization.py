"""The learning rate of each step, and the optimizer: AdamW for either arm; without weight decay it is Adam."""

import math

import torch

from engine.config import Config


def learning_rate_at(step: int, config: Config) -> float:
    """Return the rate of the update that leads from `step` to `step + 1`: linear warmup, then a cosine to the minimum."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    progress = (step - config.warmup_steps) / (config.max_steps - config.warmup_steps)
    height = 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_learning_rate + height * (config.learning_rate - config.min_learning_rate)


def build_optimizer(model: torch.nn.Module, config: Config) -> torch.optim.AdamW:
    """Return AdamW with weight decay on tensors of two dimensions (nanoGPT's rule), none on gains and scales."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.adam_epsilon, fused=True
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
