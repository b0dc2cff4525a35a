"""The learning rate of each step, and the optimizer."""

import math

import torch

from engine.config import Config
from engine.models import parameters_by_kind
from engine.updates import Optimizer, make_optimizer


def learning_rate_at(step: int, config: Config) -> float:
    """Return the rate of the update that leads from `step` to `step + 1`: linear warmup, then cosine or wsd to the minimum.

    wsd stays at the peak, exactly, until config.decay_start.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "cosine":
        progress = (step - config.warmup_steps) / (config.max_steps - config.warmup_steps)
        height = 0.5 * (1 + math.cos(math.pi * progress))
    elif step < config.decay_start:
        return config.learning_rate
    else:
        progress = (step - config.decay_start) / (config.max_steps - config.decay_start)
        height = 1 - (math.sqrt(progress) if config.decay == "sqrt" else progress)
    return config.min_learning_rate + height * (config.learning_rate - config.min_learning_rate)


def build_optimizer(model: torch.nn.Module, config: Config) -> Optimizer:
    """Return the optimizer of config.update, with weight decay on tensors of two dimensions (nanoGPT's rule) alone."""
    groups = {}
    for kind, parameters in parameters_by_kind(model).items():
        decay = 0.0 if kind == "scales" else config.weight_decay
        group = {"params": parameters, "weight_decay": decay, "rate_multiplier": getattr(config.rate_multiplier, kind)}
        groups[kind] = [group] if parameters else []
    optimizer = make_optimizer(groups, config.update, (config.beta1, config.beta2), config.adam_epsilon)
    optimizer.set_learning_rate(config.learning_rate)  # until the first step sets its own
    return optimizer
