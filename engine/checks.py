"""What cannot run, said before anything is started; and the name of a run."""

import hashlib
import json
import math
import re
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from cli.composition import ConfigError, nearest, nearest_divisor
from engine.config import Config

DTYPES = ("float32", "bfloat16")
COUNTS = (
    "max_steps",
    "global_batch_size",
    "eval_interval",
    "log_interval",
    "checkpoint_interval",
    "keep_checkpoints",
)
POSITIVE = (*COUNTS, "learning_rate", "adam_epsilon", "timeout_seconds")
NOT_NEGATIVE = ("min_learning_rate", "warmup_steps", "weight_decay", "grad_clip", "seed", "max_nonfinite", "recompute_layers")
FACTORS = ("rate_multiplier", "init_multiplier")  # each of their values is positive
BELOW_ONE = ("beta1", "beta2")  # and not negative
POSITIVE_OR_NULL = {
    "micro_batch_size": "the largest that fits",
    "eval_windows": "the whole validation file",
    "keep_every": "none beside the newest",
}
ONE_OF = {
    "resume": ("auto", "must", "never"),
    "device": ("auto", "cpu", "cuda"),
    "wandb.mode": ("disabled", "offline", "online"),
    "verify_data": ("fast", "full"),
    "on_nonfinite": ("stop", "skip", "rollback"),
    "parallel": ("ddp", "fsdp", "hsdp"),
    "attention": ("auto", "cudnn", "flash", "math"),
    "schedule": ("cosine", "wsd"),
    "decay": ("linear", "sqrt"),
    "update": ("adamw", "muon", "adamh"),
    "parametrization": ("standard", "transfer"),
    "precision.matmul": (*DTYPES, "float8"),
    "precision.matrices": DTYPES,
}


def check_config(config: Config) -> None:
    """Raise ConfigError for values that cannot run; fill in the run's name."""
    check_values(config)
    from engine.models import model_config  # with torch, which takes seconds: what is above needs none
    from engine.parametrization import apply_transfer

    apply_transfer(config)
    model_config(config.model)
    check_combinations(config)
    if config.run_name is None:
        config.run_name = default_run_name(config)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}", config.run_name):
        raise ConfigError(f"run_name={config.run_name!r}: use letters, digits and _ . + - only (it names a folder)")


def check_values(config: Config) -> None:
    """Raise ConfigError for a key whose value is outside its range."""
    for name in POSITIVE:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{name}={getattr(config, name)}: must be positive")
    for name in NOT_NEGATIVE:
        if not getattr(config, name) >= 0:
            raise ConfigError(f"{name}={getattr(config, name)}: must not be negative")
    for group in FACTORS:
        for name, value in vars(getattr(config, group)).items():
            if not 0 < value < math.inf:
                raise ConfigError(f"{group}.{name}={value}: must be positive")
    if not 0 < config.decay_fraction <= 1:
        raise ConfigError(f"decay_fraction={config.decay_fraction}: must be above 0 and at most 1")
    for name in BELOW_ONE:
        if not 0 <= getattr(config, name) < 1:
            raise ConfigError(f"{name}={getattr(config, name)}: must be at least 0 and below 1")
    for name, what in POSITIVE_OR_NULL.items():
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: must be positive, or null for {what}")
    if type(config.dry_run) not in (bool, int) or config.dry_run < 0:
        raise ConfigError(f"dry_run={config.dry_run}: must be true, false or a number of GPUs to plan for")
    for key, allowed in ONE_OF.items():
        value = config
        for part in key.split("."):
            value = getattr(value, part)
        if value not in allowed:
            hint = nearest("cuda" if value == "gpu" else value, list(allowed))
            raise ConfigError(f"{key}={value}: must be one of {', '.join(allowed)}{hint}")


def check_combinations(config: Config) -> None:
    """Raise ConfigError for values that are right by themselves but not together."""
    if config.warmup_steps > 0 and config.warmup_steps >= config.max_steps:
        raise ConfigError(
            f"warmup_steps={config.warmup_steps} leaves nothing of max_steps={config.max_steps}; try "
            f"warmup_steps={config.max_steps // 10}"
        )
    if config.schedule == "wsd" and config.warmup_steps > config.decay_start:
        raise ConfigError(
            f"warmup_steps={config.warmup_steps} reaches into the decay, which begins at step {config.decay_start} "
            f"(decay_fraction={config.decay_fraction})"
        )
    if config.branch_from is not None and config.schedule != "wsd":
        raise ConfigError(f"branch_from needs schedule=wsd: with schedule={config.schedule} every step depends on max_steps")
    if config.update == "muon" and config.parallel != "ddp":
        raise ConfigError(f"update=muon needs each matrix whole; parallel={config.parallel} shards them: take parallel=ddp")
    if config.is_sharded and config.precision.matrices != "float32":
        raise ConfigError(
            f"parallel={config.parallel} gathers a block's weights in one type; precision={config.precision.name} "
            "stores them in two: take bf16 or fp32"
        )
    if config.min_learning_rate > config.learning_rate:
        raise ConfigError(f"min_learning_rate={config.min_learning_rate} is above learning_rate={config.learning_rate}")


def check_batch(config: Config, world_size: int) -> None:
    """Raise ConfigError unless the global batch divides into micro batches over world_size ranks."""
    per_rank, rest = divmod(config.global_batch_size, world_size)
    if rest:
        down = config.global_batch_size - rest
        choices = [n for n in (down, down + world_size) if n]
        raise ConfigError(
            f"global_batch_size={config.global_batch_size} does not divide over {world_size} ranks; "
            f"{' or '.join(map(str, choices))} would"
        )
    if config.micro_batch_size is not None and per_rank % config.micro_batch_size:
        good = nearest_divisor(per_rank, config.micro_batch_size)
        raise ConfigError(
            f"micro_batch_size={config.micro_batch_size} does not divide the {per_rank} sequences that "
            f"each of {world_size} ranks has of "
            f"global_batch_size={config.global_batch_size}; micro_batch_size={good} would"
        )


def default_run_name(config: Config) -> str:
    """Name a run from its configuration alone, so that every rank and every restart agrees."""
    parts = [
        config.model["name"],
        *name_variant(config.model),
        config.size,
        config.context,
        config.data.name,
        f"{config.max_steps}steps",
        f"lr{config.learning_rate:g}",
    ]
    if config.precision.name != "bf16":
        parts.append(config.precision.name)
    for key, usual in (("update", "adamw"), ("schedule", "cosine"), ("parametrization", "standard")):
        if getattr(config, key) != usual:
            parts.append(getattr(config, key))
    # A data.name may hold what no folder's name should.
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", "-".join([*parts, f"seed{config.seed}"]))


def name_variant(node: dict[str, Any]) -> list[str]:
    """Return words that tell the variants of one model apart: for a Config with more fields than the one it extends.

    The fields that are not at their defaults, and a digest of the whole node, for other fields may differ as well.
    """
    from engine.models import MODELS

    schema = MODELS[node["name"]].Config
    inherited = {f.name for base in schema.__bases__ if is_dataclass(base) for f in fields(base)}
    own = [f for f in fields(schema) if f.name not in inherited]
    if not inherited or not own:
        return []
    words = []
    for f in own:
        default = f.default if f.default_factory is MISSING else f.default_factory()
        value = node.get(f.name, default)
        if value != default:
            words.append(f"{f.name}_{'+'.join(value) if isinstance(value, list) else str(value).lower()}")
    return [*words, hashlib.sha256(json.dumps(node, sort_keys=True).encode()).hexdigest()[:6]]
