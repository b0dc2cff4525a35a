"""A run's folder and data, checked before the first step: everything a run needs to explain and to continue itself."""

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cli.composition import ConfigError
from corpus.manifest import TOKENIZER_NAME, DataError, Manifest, read_manifest
from corpus.token_file import TokenFile, open_token_file, token_byte_lengths, write_json_atomically
from engine.accounting import count_parameters, flops_per_token
from engine.checkpoint import (
    CheckpointError,
    check_free_space,
    check_shapes,
    checkpoint_step,
    find_checkpoint,
    list_checkpoints,
    load_model,
    load_trainer_state,
    sha256_of,
    verify_checkpoint,
)
from engine.config import Config, difference
from engine.config_file import load_config, save_config
from engine.data import check_split
from engine.distributed import Ranks
from engine.evaluate import ValidationSet
from engine.metrics import forget_after, read_json, write_status
from engine.models import build_model
from runfolder.layout import replaced_name
from runfolder.lock import RunLock


@dataclass
class RunData:
    """The token files of a run, opened and checked."""

    manifest: Manifest
    train: TokenFile
    validation: ValidationSet

    def describe(self) -> dict[str, Any]:
        tokenizer = self.manifest.tokenizer
        return {
            "name": self.manifest.name,
            "digest": self.manifest.data_digest,
            "tokenizer": {"name": tokenizer.name, "digest": tokenizer.digest},
        }


def open_data(config: Config) -> RunData:
    """Open the bins in data.dir; raise DataError if they cannot feed this configuration."""
    folder, length = Path(config.data.dir), config.model["sequence_length"]
    manifest = read_manifest(folder)
    if manifest.tokenizer.name != config.data.tokenizer:
        raise DataError(
            f"{folder}: made with the tokenizer {manifest.tokenizer.name}, but "
            f"data.tokenizer={config.data.tokenizer}; prepare again or choose its data="
        )
    tokenizer_file = folder / TOKENIZER_NAME
    if not tokenizer_file.is_file() or sha256_of(tokenizer_file) != manifest.tokenizer.digest:
        raise DataError(f"{tokenizer_file}: missing or not the tokenizer that made the bins; prepare again with overwrite=true")
    for split in manifest.splits.values():
        check_split(folder, split, length, config.model["vocab_size"])
    train, val = (open_token_file(folder, split, manifest) for split in ("train", "val"))
    return RunData(manifest, train, ValidationSet(val, token_byte_lengths(folder, manifest), length, config.eval_windows))


def open_run_folder(config: Config, data: RunData, lock: RunLock) -> Path | None:
    """Make or reopen the run's folder and return the checkpoint to continue from, None to begin; called on rank 0.

    What happens, in this order:
    1. The folder is locked: only one job writes a run.
    2. resume=never sets an existing folder aside under another name: nothing is deleted.
    3. An existing folder must have been started with the same configuration and data.
    4. Damaged checkpoints are set aside; the newest intact one is taken.
    5. Metrics beyond it are moved away, for these steps will be done again.
    """
    folder = config.run_dir
    is_new = not folder.exists()
    if is_new and config.resume == "must":
        raise CheckpointError(f"{folder}: resume=must, but there is no checkpoint: no such run; resume=auto would start it")
    refuse_links(folder)
    lock.acquire(folder)
    if config.resume == "never" and not is_new:
        folder.rename(replaced_name(folder))
        lock.acquire(folder)
    if (folder / "config.yaml").exists():
        changes = difference(load_config(folder / "config.yaml"), config)
        if changes:
            raise ConfigError(
                f"{folder} was started with another configuration ({'; '.join(changes)}); choose another run_name, or resume=never"
            )
        recorded = read_json(folder / "environment.json").get("data")
        digest = recorded.get("digest") if isinstance(recorded, dict) else None
        if digest not in (None, data.manifest.data_digest):
            raise DataError(
                f"{folder} was trained on other data ({str(digest)[:12]}) than {config.data.dir} holds "
                f"({data.manifest.data_digest[:12]}); choose another run_name"
            )
    checkpoint = find_checkpoint(folder / "checkpoints")
    if checkpoint is None and config.resume == "must":
        raise CheckpointError(f"{folder}: resume=must, but there is no checkpoint; resume=auto would start from step 0")
    state = load_trainer_state(checkpoint) if checkpoint else None
    forget_after(folder, state.step if state else -1, bool(state and state.evaluation_pending))
    return checkpoint


def refuse_links(folder: Path) -> None:
    """Raise ConfigError if a name in a run's folder leads elsewhere: what training writes would be written there."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_symlink():
            raise ConfigError(f"{path}: a link, which training would write through; put the file or folder itself there")


def write_run_folder(config: Config, ranks: Ranks, data: RunData, model: torch.nn.Module, step: int) -> dict[str, Any]:
    """Write what explains the run, and return the environment; called on rank 0 once everything is known to fit."""
    folder = config.run_dir
    # fp32 weights and two moments, and the next checkpoint before the one before it is deleted.
    check_free_space(folder, 2 * 3 * 4 * sum(p.numel() for p in model.parameters()))
    environment = describe_environment(config, ranks, data, model)
    save_config(config, folder / "config.yaml")
    write_json_atomically(folder / "environment.json", environment)
    shutil.copyfile(Path(config.data.dir) / TOKENIZER_NAME, folder / TOKENIZER_NAME)
    write_status(folder, "running", step)
    return environment


def load_trained_model(folder: Path, step: int | None = None) -> tuple[Config, torch.nn.Module]:
    """Return a run's configuration and its model in fp32 on the CPU, from its newest checkpoint or that of a step."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such run folder")
    config = load_config(folder / "config.yaml")
    checkpoints = list_checkpoints(folder / "checkpoints")
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


def describe_environment(config: Config, ranks: Ranks, data: RunData, model: torch.nn.Module) -> dict[str, Any]:
    """Return versions, commit, topology, sizes and data: what the configuration does not say."""
    name = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "versions": {
            "python": platform.python_version(),
            **{package: version_of(package) for package in ("torch", "numpy", "tiktoken", "safetensors")},
        },
        "commit": current_commit(),
        "world_size": ranks.world_size,
        "device": {"type": ranks.device.type, "name": name, "threads": torch.get_num_threads()},
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "parameters": count_parameters(model),
        "flops_per_token": flops_per_token(model),
        "tokens_per_step": config.tokens_per_step,
        "data": data.describe(),
        "evaluation": data.validation.describe(data.manifest.splits["val"].sha256),
    }


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def current_commit() -> str | None:
    """Return the commit of this code, with "+" if files differ from it, None outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
