"""What a run would be, without starting it."""

import json
from pathlib import Path

import torch

from cli.launcher import is_silent, planned_world_size
from corpus.manifest import MANIFEST_NAME
from engine.accounting import describe_run, h100_hours
from engine.checks import check_batch, check_config
from engine.config import Config
from engine.memory import estimate_memory
from engine.micro_batch import ASSUMED_GIB, memory_of, with_micro_batch
from engine.models import build_model
from engine.run_data import open_data


def print_plan(config: Config) -> None:
    """Print, as JSON, what a run would be, without starting it; raise as the run would for what cannot be."""
    check_config(config)
    # dry_run=8 plans for 8 GPUs, whatever is here; dry_run=true for this machine and, under torchrun, its ranks.
    world_size = planned_world_size() if config.dry_run is True else int(config.dry_run)
    use_compile = config.compiles_on("cpu" if config.device == "cpu" else "cuda")
    config = with_micro_batch(config, world_size, planned_memory(config), use_compile)
    check_batch(config, world_size)
    has_data = (Path(config.data.dir) / MANIFEST_NAME).exists()
    train_tokens = open_data(config).manifest.splits["train"].tokens if has_data else config.data.expected.train_tokens
    if not is_silent():
        model = build_model(config.model, config.precision.matrices, device="meta")
        plan = describe_run(config, model, world_size, train_tokens)
        plan["memory_gib_per_rank_estimate"] = estimate_memory(config, model, world_size, use_compile)
        plan["h100_hours_at_40_percent_mfu"] = h100_hours(plan["flops"], mfu=0.4)
        print(json.dumps(plan, indent=2))


def planned_memory(config: Config) -> float:
    """Return the GiB of one rank: of the GPU that is here, of one of 80 GB where there is none, of the machine for device=cpu."""
    if config.device == "cpu":
        return memory_of(torch.device("cpu"), 1)
    return memory_of(torch.device("cuda"), 1) if torch.cuda.is_available() else ASSUMED_GIB
