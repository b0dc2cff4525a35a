"""A run's model, opened for whatever is done with it afterwards: evaluation, sampling, export, inspection."""

from dataclasses import dataclass
from pathlib import Path

import torch

from cli.composition import ConfigError
from corpus.manifest import TOKENIZER_NAME, DataError
from corpus.tokenizer import Tokenizer, load_tokenizer
from engine.checkpoint import CheckpointError, check_shapes, load_model, verify_checkpoint
from engine.config import Config
from engine.config_file import load_config
from engine.distributed import Ranks
from engine.models import build_model
from runfolder.files import sha256_of
from runfolder.layout import CHECKPOINTS, CONFIG, ENVIRONMENT, checkpoint_step, list_checkpoints, newest_step
from runfolder.status import read_nested


@dataclass(frozen=True)
class TrainedRun:
    """A run at one of its checkpoints: the model with fp32 weights on `device`, in eval mode, and the run's own tokenizer."""

    folder: Path
    step: int
    config: Config
    model: torch.nn.Module
    tokenizer: Tokenizer
    tokenizer_digest: str
    device: torch.device

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def title(self) -> str:
        return f"{self.folder} (step {self.step:,})"

    @property
    def arm(self) -> str:
        return self.config.model["name"]

    @property
    def sequence_length(self) -> int:
        """The tokens of context that the model was trained with."""
        return self.config.model["sequence_length"]


def open_trained_run(folder: Path, step: int | None = None, device: str = "cpu", ranks: Ranks | None = None) -> TrainedRun:
    """Open a run at its newest checkpoint, or at that of a step.

    Args:
        ranks: who opens it together; each gets the same step, on its own device.

    Raises:
        ConfigError: no such run, or a configuration that cannot be read.
        CheckpointError: no checkpoint, none of that step, or one that is damaged.
        DataError: the tokenizer is missing or not the one that the run was trained with.
    """

    def load(step: int | None, device: torch.device) -> TrainedRun:
        step = newest_step(folder) if step is None else step
        config, model = load_trained_model(folder, step)
        assert step is not None  # without a checkpoint there would be no model
        tokenizer, digest = open_tokenizer(folder)
        outputs = config.model["vocab_size"]
        if tokenizer.n_vocab > outputs:
            raise DataError(
                f"{folder / TOKENIZER_NAME}: {tokenizer.n_vocab:,} tokens, but the model has {outputs:,} outputs: not this run's"
            )
        return TrainedRun(folder, step, config, model.to(device), tokenizer, digest, device)

    if ranks is None:
        return load(step, torch.device(device))
    if step is None:  # asked by one: a run in progress may publish its next checkpoint between two looks
        step = ranks.on_main(lambda: newest_step(folder))
    return ranks.agree(lambda: load(step, ranks.device))


def open_tokenizer(folder: Path) -> tuple[Tokenizer, str]:
    """Return the tokenizer that a run saved and its digest; raise DataError if it is not the one it trained with."""
    path = folder / TOKENIZER_NAME
    tokenizer, digest = load_tokenizer(path), sha256_of(path)
    recorded = read_nested(folder / ENVIRONMENT, "data", "tokenizer", "digest")
    if recorded is not None and recorded != digest:
        raise DataError(f"{path}: not the tokenizer that the run was trained with (environment.json names another digest)")
    return tokenizer, digest


def load_trained_model(folder: Path, step: int | None = None) -> tuple[Config, torch.nn.Module]:
    """Return a run's configuration and its model in fp32 on the CPU, from its newest checkpoint or that of a step.

    Raises:
        ConfigError: no such run, or a configuration that cannot be read.
        CheckpointError: no checkpoint, none of that step, or one that is damaged.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such run folder")
    config = load_config(folder / CONFIG)
    checkpoints = list_checkpoints(folder / CHECKPOINTS)
    if step is not None:
        steps = [checkpoint_step(path) for path in checkpoints]
        if step not in steps:
            raise CheckpointError(f"{folder}: no checkpoint of step {step}; there are: {', '.join(map(str, steps)) or 'none'}")
        checkpoints = [checkpoints[steps.index(step)]]
    if not checkpoints:
        raise CheckpointError(f"{folder}: there is no checkpoint yet")
    verify_checkpoint(checkpoints[0])
    check_shapes(checkpoints[0], config.model)
    model = build_model(config.model)
    load_model(checkpoints[0], model)
    return config, model.eval()
