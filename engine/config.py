"""The configuration of a training run: every key, its type, its unit, and whether the run's result depends on it."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from corpus.settings import DataConfig

# A key that changes neither the trajectory nor its evaluation. A run may be continued with another value, a sweep takes the run
# for the same point, and a comparison takes two runs that differ in nothing else for two seeds. This is the only list: all
# who need it read NEUTRAL, below.
neutral = {"neutral": True}


if TYPE_CHECKING:
    Filled = int
else:  # None on the command line; engine.micro_batch fills it in before anything else reads it
    Filled = Optional[int]


@dataclass
class PrecisionConfig:
    name: str
    matmul: str  # type of the matrix products (autocast); float8: the blocks' through torchao, others bfloat16
    matrices: str  # type in which the blocks' matrices are stored


@dataclass
class WandbConfig:
    mode: str = "disabled"  # disabled | offline | online
    project: str = "gpt-vs-ngpt"
    entity: Optional[str] = None  # None: WANDB_ENTITY, else the account's own
    group: Optional[str] = None
    name: Optional[str] = None  # None: the run's name
    tags: list[str] = field(default_factory=list)


@dataclass
class RateMultipliers:
    """Factors of the learning rate, by kind of parameter (engine/models.py)."""

    embedding: float = 1.0
    matrices: float = 1.0  # of the blocks
    output: float = 1.0
    scales: float = 1.0  # gains and learned scales


@dataclass
class InitMultipliers:
    """Factors of the initial weights, by kind of parameter."""

    embedding: float = 1.0
    matrices: float = 1.0
    output: float = 1.0


@dataclass
class BaseConfig:
    """The small model that was tuned, for parametrization=transfer."""

    n_embd: Optional[int] = None
    n_layer: Optional[int] = None
    max_steps: Optional[int] = None
    applied: bool = False  # true in a run's folder: the multipliers and the model's keys hold what follows from it


@dataclass
class Config:
    # name, and the fields of that model's Config
    model: dict[str, Any] = field(metadata={"group": True})
    size: str = field(metadata=neutral)  # a label, for the run's name and the report: `model` says what it means
    context: str = field(metadata=neutral)
    data: DataConfig = field(metadata=neutral)  # compared by the digest of what was prepared from it
    precision: PrecisionConfig

    max_steps: int
    global_batch_size: int  # sequences per optimizer step, over all ranks
    micro_batch_size: Filled = field(metadata=neutral)  # sequences per forward pass, on one rank; None: what fits its memory
    learning_rate: float  # the peak
    min_learning_rate: float
    warmup_steps: int
    weight_decay: float  # on tensors of two dimensions
    beta1: float
    beta2: float
    adam_epsilon: float
    grad_clip: float  # largest gradient norm; 0 is no clipping

    eval_interval: int = field(metadata=neutral)
    eval_windows: Optional[int]  # None: every window of the validation file
    log_interval: int = field(metadata=neutral)
    checkpoint_interval: int = field(metadata=neutral)
    keep_checkpoints: int = field(metadata=neutral)

    seed: int  # of the initialization and of the data order
    run_name: Optional[str] = field(metadata=neutral)  # None: made from the configuration
    out_dir: str = field(metadata={**neutral, "is_path": True})
    resume: str = field(metadata=neutral)  # auto | must | never
    device: str = field(metadata=neutral)  # auto | cpu | cuda
    compile: Optional[bool] = field(metadata=neutral)  # None: on a GPU yes, on a CPU no
    dry_run: Any = field(metadata=neutral)  # false | true | a number of GPUs to plan for
    wandb: WandbConfig = field(default_factory=WandbConfig, metadata=neutral)
    tensorboard: bool = field(default=False, metadata=neutral)  # event files in the run's folder
    # Keys newer than the first run folders have a default, so that these can still be read.
    keep_every: Optional[int] = field(default=None, metadata=neutral)  # steps; checkpoints of its multiples are kept for good
    verify_data: str = field(default="fast", metadata=neutral)  # fast | full: how the token files are compared with their manifest
    on_nonfinite: str = field(default="stop", metadata=neutral)  # stop | skip | rollback
    max_nonfinite: int = field(default=3, metadata=neutral)  # steps skipped or rolled back from before the run stops after all
    timeout_seconds: float = field(default=600.0, metadata=neutral)  # how long a rank waits for the others before it gives up
    recompute_layers: int = field(default=0, metadata=neutral)  # blocks whose activations are computed again in the backward pass
    schedule: str = "cosine"  # cosine | wsd: warmup, stable, decay; the stable part does not depend on max_steps
    decay_fraction: float = 0.2  # of max_steps, of wsd
    decay: str = "linear"  # linear | sqrt (1 - sqrt of the progress): the form of wsd's decay
    update: str = "adamw"  # adamw | muon | adamh: how a step changes the blocks' matrices; all else takes AdamW's
    rate_multiplier: RateMultipliers = field(default_factory=RateMultipliers)
    init_multiplier: InitMultipliers = field(default_factory=InitMultipliers)
    parametrization: str = "standard"  # standard | transfer: rates and inits follow from a tuned base (docs/method.md)
    base: BaseConfig = field(default_factory=BaseConfig)
    branch_from: Optional[str] = field(default=None, metadata={**neutral, "is_path": True})  # wsd: a longer run, the trunk
    keep_steps: list[int] = field(default_factory=list, metadata=neutral)  # checkpoints of these steps are made and kept
    parallel: str = field(default="ddp", metadata=neutral)  # ddp | fsdp | hsdp: the whole model on every rank, or a part of it
    attention: str = field(default="auto", metadata=neutral)  # auto | cudnn | flash | math: the kernel

    @property
    def is_sharded(self) -> bool:
        """Return whether parallel= asks for a part of the model on each of several ranks."""
        return self.parallel in ("fsdp", "hsdp")

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch_size * self.model["sequence_length"]

    def compiles_on(self, device_type: str) -> bool:
        return self.compile if self.compile is not None else device_type == "cuda"

    @property
    def decay_start(self) -> int:
        """The step from which wsd's rate decays: up to there a run does not depend on max_steps."""
        return decay_start(self.max_steps, self.decay_fraction)

    @property
    def run_dir(self) -> Path:
        return Path(self.out_dir) / str(self.run_name)  # check_config has given it a name


def decay_start(max_steps: int, decay_fraction: float) -> int:
    """Return the step from which the rate of schedule=wsd decays."""
    return max_steps - round(decay_fraction * max_steps)


NEUTRAL = {f.name for f in fields(Config) if f.metadata.get("neutral")}


# Keys of `model` that earlier versions had, with the value that is now the only one: their run folders can still be read.
RETIRED = {"qk_norm": True}


def is_neutral(key: str) -> bool:
    """Return whether a dotted key leaves the result alone; of a group all keys do, or none."""
    return key.partition(".")[0] in NEUTRAL


def difference(old: Config, new: Config) -> list[str]:
    """List the keys, with both values, by which two configurations lead to different results."""
    a, b = flatten(asdict(old)), flatten(asdict(new))
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in sorted(a | b) if a.get(key) != b.get(key) and not is_neutral(key)]


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
