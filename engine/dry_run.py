"""What a run would be, without starting it."""

import json
from pathlib import Path

from cli.launcher import is_silent, planned_world_size
from corpus.manifest import MANIFEST_NAME
from engine.accounting import describe_run
from engine.checks import check_batch, check_config
from engine.config import Config
from engine.memory import estimate_memory
from engine.models import build_model
from engine.run_data import open_data


def print_plan(config: Config) -> None:
    """Print, as JSON, what a run would be, without starting it; raise as the run would for what cannot be."""
    check_config(config)
    world_size = planned_world_size()
    check_batch(config, world_size)
    has_data = (Path(config.data.dir) / MANIFEST_NAME).exists()
    train_tokens = open_data(config).manifest.splits["train"].tokens if has_data else config.data.expected.train_tokens
    if not is_silent():
        model = build_model(config.model, config.precision.matrices, device="meta")
        use_compile = config.compile if config.compile is not None else config.device != "cpu"
        plan = describe_run(config, model, world_size, train_tokens)
        plan["memory_gib_per_rank_estimate"] = estimate_memory(config, model, world_size, use_compile)
        print(json.dumps(plan, indent=2))
