"""The micro batch that fits: micro_batch_size=null."""

import os
from bisect import bisect_right
from dataclasses import replace
from functools import cache

import torch

from cli.composition import ConfigError
from engine.config import Config
from engine.distributed import Ranks
from engine.memory import GIB, estimate_memory
from engine.models import build_model

SHARE = 0.85  # of the memory: the estimate is right to 15%
ASSUMED_GIB = 80.0  # of a GPU that is planned for and not there


def fit_micro_batch(config: Config, ranks: Ranks) -> Config:
    """Return config with a micro batch for this rank's device; the first rank's choice must be every rank's."""
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return with_micro_batch(config, ranks.world_size, memory_of(ranks.device, local_ranks), config.compiles_on(ranks.device.type))


def with_micro_batch(config: Config, world_size: int, memory_gib: float, use_compile: bool) -> Config:
    """Return config with a micro batch: the one it names, else the largest divisor of a rank's sequences that fits.

    Args:
        memory_gib: of one rank.

    Raises:
        ConfigError: not one sequence fits, or the global batch does not divide over the ranks.
    """
    if config.micro_batch_size is not None:
        return config
    per_rank = config.global_batch_size // world_size
    if per_rank == 0 or config.global_batch_size % world_size:
        return replace(config, micro_batch_size=1)  # check_batch says what is wrong
    model = build_model(config.model, config.precision.matrices, device="meta")

    @cache
    def needs(size: int) -> float:
        return estimate_memory(replace(config, micro_batch_size=size), model, world_size, use_compile)["total"]

    divisors = [d for d in range(1, per_rank + 1) if per_rank % d == 0]
    fitting = per_rank if needs(per_rank) <= SHARE * memory_gib else 0
    if not fitting:
        fitting = ([0] + divisors)[bisect_right(divisors, SHARE * memory_gib, key=needs)]
    if not fitting:
        raise ConfigError(
            f"micro_batch_size=null: one sequence needs about {needs(1):.1f} GiB and a rank has {memory_gib:.1f}; try "
            f"recompute_layers={config.model['n_layer']}, parallel=fsdp on several GPUs, or a smaller size="
        )
    return replace(config, micro_batch_size=fitting)


def memory_of(device: torch.device, local_ranks: int) -> float:
    """Return the GiB that a rank may use: all of its GPU, or its share of what is free of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / GIB
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB / local_ranks
