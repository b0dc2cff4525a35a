"""The configuration of a training run: every key, its type and its unit, and what cannot be combined."""

import hashlib
import json
import os
import re
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Optional

from omegaconf import OmegaConf

from cli.composition import ConfigError, first_line, nearest, to_dataclass
from corpus.sources import DataConfig
from engine.models import MODEL_SCHEMAS, MODELS, model_config, nearest_divisor
from runfolder.plain_yaml import load_plain_yaml

DTYPES = ("float32", "bfloat16")


@dataclass
class PrecisionConfig:
    name: str
    matmul: str  # type of the matrix products (autocast); float8: the blocks' through torchao, others bfloat16
    matrices: str  # type in which the blocks' matrices are stored


@dataclass
class WandbConfig:
    mode: str = "disabled"  # disabled | offline | online
    project: str = "gpt-vs-ngpt"


@dataclass
class Config:
    # name, and the fields of that model's Config
    model: dict[str, Any] = field(metadata={"schemas": dict(zip(MODELS, MODEL_SCHEMAS, strict=True))})
    size: str  # the names of the chosen groups, for the run's name and the report
    context: str
    data: DataConfig
    precision: PrecisionConfig

    max_steps: int
    global_batch_size: int  # sequences per optimizer step, over all ranks
    micro_batch_size: int  # sequences per forward pass, on one rank
    learning_rate: float  # the peak
    min_learning_rate: float
    warmup_steps: int
    weight_decay: float  # on tensors of two dimensions
    beta1: float
    beta2: float
    adam_epsilon: float
    grad_clip: float  # largest gradient norm; 0 is no clipping

    eval_interval: int
    eval_windows: Optional[int]  # None: every window of the validation file
    log_interval: int
    checkpoint_interval: int
    keep_checkpoints: int

    seed: int  # of the initialization and of the data order
    run_name: Optional[str]  # None: made from the configuration
    out_dir: str
    resume: str  # auto | must | never
    device: str  # auto | cpu | cuda
    compile: Optional[bool]  # None: on a GPU yes, on a CPU no
    dry_run: bool
    wandb: WandbConfig = field(default_factory=WandbConfig)
    tensorboard: bool = False  # event files in the run's folder
    # Keys newer than the first run folders have a default, so that these can still be read.
    keep_every: Optional[int] = None  # steps; checkpoints of steps divisible by it are kept for good
    verify_data: str = "fast"  # fast | full: how the token files are compared with their manifest
    on_nonfinite: str = "stop"  # stop | skip | rollback
    max_nonfinite: int = 3  # steps skipped or rolled back from before the run stops after all
    timeout_seconds: float = 600.0  # how long a rank waits for the others before it gives up
    recompute_layers: int = 0  # blocks whose activations are computed again in the backward pass
    parallel: str = "ddp"  # ddp | fsdp: the whole model on every rank, or a part of it on each

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch_size * self.model["sequence_length"]

    @property
    def run_dir(self) -> Path:
        return Path(self.out_dir) / self.run_name


# Keys that change neither the trajectory nor its evaluation: a resumed run may have other values.
MAY_CHANGE_ON_RESUME = {
    "micro_batch_size",
    "log_interval",
    "checkpoint_interval",
    "keep_checkpoints",
    "eval_interval",
    "out_dir",
    "resume",
    "device",
    "compile",
    "dry_run",
    "wandb",
    "tensorboard",
    "keep_every",
    "verify_data",
    "on_nonfinite",
    "max_nonfinite",
    "timeout_seconds",
    "parallel",
    "recompute_layers",
    "data",  # the data's digest is compared instead
}

# Keys of `model` that earlier versions had, with the value that is now the only one: their run folders can still be read.
RETIRED = {"qk_norm": True}


def check_config(config: Config) -> None:
    """Raise ConfigError for values that cannot run and fill in the run's name."""
    model_config(config.model)
    positive = (
        "max_steps",
        "global_batch_size",
        "micro_batch_size",
        "eval_interval",
        "log_interval",
        "checkpoint_interval",
        "keep_checkpoints",
        "learning_rate",
        "adam_epsilon",
        "timeout_seconds",
    )
    for name in positive:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{name}={getattr(config, name)}: must be positive")
    for name in (
        "min_learning_rate",
        "warmup_steps",
        "weight_decay",
        "grad_clip",
        "seed",
        "max_nonfinite",
        "recompute_layers",
    ):
        if not getattr(config, name) >= 0:
            raise ConfigError(f"{name}={getattr(config, name)}: must not be negative")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(config, name) < 1:
            raise ConfigError(f"{name}={getattr(config, name)}: must be at least 0 and below 1")
    for name, what in (("eval_windows", "the whole validation file"), ("keep_every", "none beside the newest")):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: must be positive, or null for {what}")
    if config.warmup_steps > 0 and config.warmup_steps >= config.max_steps:
        raise ConfigError(
            f"warmup_steps={config.warmup_steps} leaves nothing of max_steps={config.max_steps}; try "
            f"warmup_steps={config.max_steps // 10}"
        )
    if config.parallel == "fsdp" and config.precision.matrices != "float32":
        raise ConfigError(
            f"parallel=fsdp gathers a block's weights in one type; precision={config.precision.name} "
            "stores them in two: take bf16 or fp32"
        )
    if config.min_learning_rate > config.learning_rate:
        raise ConfigError(f"min_learning_rate={config.min_learning_rate} is above learning_rate={config.learning_rate}")
    one_of = {
        "resume": ("auto", "must", "never"),
        "device": ("auto", "cpu", "cuda"),
        "wandb.mode": ("disabled", "offline", "online"),
        "verify_data": ("fast", "full"),
        "on_nonfinite": ("stop", "skip", "rollback"),
        "parallel": ("ddp", "fsdp"),
        "precision.matmul": (*DTYPES, "float8"),
        "precision.matrices": DTYPES,
    }
    for key, allowed in one_of.items():
        value = config
        for part in key.split("."):
            value = getattr(value, part)
        if value not in allowed:
            hint = nearest("cuda" if value == "gpu" else value, list(allowed))
            raise ConfigError(f"{key}={value}: must be one of {', '.join(allowed)}{hint}")
    if config.run_name is None:
        config.run_name = default_run_name(config)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}", config.run_name):
        raise ConfigError(f"run_name={config.run_name!r}: use letters, digits and _ . + - only (it names a folder)")


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
    if per_rank % config.micro_batch_size:
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
    return "-".join([*parts, f"seed{config.seed}"])


def name_variant(node: dict[str, Any]) -> list[str]:
    """Return words that tell the variants of one model apart: for a Config with more fields than the one it extends.

    The fields that are not at their defaults, and a digest of the whole node, for other fields may differ as well.
    """
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


def save_config(config: Config, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
    os.replace(temporary, path)


def load_config(path: Path) -> Config:
    """Read a run's resolved configuration; raise ConfigError if it is missing or not one."""
    try:
        if not path.is_file():  # a named pipe would be waited for
            raise OSError("no such file")
        node = load_plain_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a run's configuration ({first_line(error)})") from None
    if not isinstance(node, dict) or "${" in str(node):  # an interpolation could read the environment
        raise ConfigError(f"{path}: not a resolved configuration")
    has_default = {f.name for f in fields(Config) if f.default is not MISSING or f.default_factory is not MISSING}
    missing = [f.name for f in fields(Config) if f.name not in node and f.name not in has_default]
    if missing:
        raise ConfigError(f"{path}: the keys {', '.join(missing)} are missing")
    for key, value in RETIRED.items():
        if isinstance(node["model"], dict) and node["model"].get(key) is value:
            del node["model"][key]
    config = to_dataclass(node, Config)
    check_config(config)
    return config


def difference(old: Config, new: Config) -> list[str]:
    """List the keys, with both values, in which two configurations describe different trajectories."""
    a, b = flatten(asdict(old)), flatten(asdict(new))
    return [
        f"{key}: {a.get(key)} -> {b.get(key)}"
        for key in sorted(a | b)
        if a.get(key) != b.get(key) and key.split(".")[0] not in MAY_CHANGE_ON_RESUME
    ]


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
