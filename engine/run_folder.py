"""A run's folder before the first step: whose it is, what it may be continued with, what explains it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cli.composition import ConfigError, first_line
from corpus.manifest import TOKENIZER_NAME, DataError
from engine.branching import branch_off
from engine.checkpoint import CheckpointError, check_free_space, find_checkpoint, load_trainer_state
from engine.config import Config, difference
from engine.config_file import load_config, save_config
from engine.distributed import Ranks
from engine.environment import describe_environment
from engine.failures import CannotRun
from engine.run_data import RunData
from runfolder import layout
from runfolder.files import write_json_atomically
from runfolder.lock import RunLock
from runfolder.metrics import rewind_metrics
from runfolder.status import read_nested, write_status


def open_run_folder(config: Config, data: RunData, lock: RunLock) -> Path | None:
    """Make or reopen the run's folder and return the checkpoint to continue from, None to begin; called on rank 0.

    What happens, in this order:
    1. The folder is locked: only one job writes a run.
    2. resume=never sets an existing folder aside under another name: nothing is deleted.
    3. An existing folder must have been started with the same configuration and data.
    4. Damaged checkpoints are set aside; the newest intact one is taken.
    5. A new branch takes its trunk's checkpoint.
    6. Metrics beyond it are moved away, for these steps will be done again.

    Raises:
        RunLocked: another job writes the run. RunFolderUnwritable: nothing can be written there.
        ConfigError: the run was started with another configuration, or the folder holds links or files of others.
        DataError: it was trained on other data.
        CheckpointError: resume=must without a checkpoint, or none of them is intact.
    """
    folder = config.run_dir
    is_new = not folder.exists()
    if is_new and config.resume == "must":
        raise CheckpointError(f"{folder}: resume=must, but there is no checkpoint: no such run; resume=auto would start it")
    refuse_links(folder)
    if config.resume != "never":  # which sets the folder aside as it is
        refuse_foreign_files(folder)
    lock.acquire(folder)
    if config.resume == "never" and not is_new:
        folder.rename(layout.replaced_name(folder))
        lock.acquire(folder)
    if (folder / layout.CONFIG).exists():
        changes = difference(load_config(folder / layout.CONFIG), config)
        if changes:
            raise ConfigError(
                f"{folder} was started with another configuration ({'; '.join(changes)}); choose another run_name, or resume=never"
            )
        digest = read_nested(folder / layout.ENVIRONMENT, "data", "digest")
        if digest not in (None, data.manifest.data_digest):
            raise DataError(
                f"{folder} was trained on other data ({str(digest)[:12]}) than {config.data.dir} holds "
                f"({data.manifest.data_digest[:12]}); choose another run_name"
            )
    checkpoint = find_checkpoint(folder / layout.CHECKPOINTS)
    if checkpoint is None and config.resume == "must":
        raise CheckpointError(f"{folder}: resume=must, but there is no checkpoint; resume=auto would start from step 0")
    if checkpoint is None and config.branch_from is not None:
        branch_off(config, data.manifest.data_digest)
        checkpoint = find_checkpoint(folder / layout.CHECKPOINTS)
    state = load_trainer_state(checkpoint) if checkpoint else None
    rewind_metrics(folder, state.step if state else -1, bool(state and state.evaluation_pending))
    return checkpoint


def refuse_links(folder: Path) -> None:
    """Raise ConfigError if a name in a run's folder leads elsewhere: what training writes would be written there."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_symlink():
            raise ConfigError(f"{path}: a link, which training would write through; put the file or folder itself there")


def refuse_foreign_files(folder: Path) -> None:
    """Raise ConfigError naming a file in a folder that no run has begun: training may write under that name."""
    if not folder.is_dir() or (folder / layout.CONFIG).exists():
        return
    begun = {"run.lock"}  # what a run that ended before it had a configuration left
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in begun and not path.name.startswith("."))
    if foreign:
        raise ConfigError(f"{folder / foreign[0]}: not written by train.py (no {layout.CONFIG} beside it); choose another run_name")


def write_run_folder(config: Config, ranks: Ranks, data: RunData, model: torch.nn.Module, step: int) -> dict[str, Any]:
    """Write what explains the run, and return the environment; called on rank 0 once everything is known to fit."""
    folder = config.run_dir
    # fp32 weights and two moments, and the next checkpoint before the one before it is deleted.
    check_free_space(folder, 2 * 3 * 4 * sum(p.numel() for p in model.parameters()))
    environment = describe_environment(config, ranks, data, model)
    save_config(config, folder / layout.CONFIG)
    write_json_atomically(folder / layout.ENVIRONMENT, environment)
    shutil.copyfile(Path(config.data.dir) / TOKENIZER_NAME, folder / TOKENIZER_NAME)
    write_status(folder, "running", step)
    return environment


@contextmanager
def note_failure(config: Config, ranks: Ranks, checkpoint: Path | None) -> Iterator[None]:
    """Write into the run's status what kept the run from its first step, and let it be raised."""
    try:
        yield
    except Exception as error:
        if ranks.is_main_process and (isinstance(error, CannotRun) or not hasattr(error, "exit_code")):
            save_config(config, config.run_dir / layout.CONFIG)  # without it no report could say whose status this is
            step = layout.checkpoint_step(checkpoint) if checkpoint else 0
            write_status(config.run_dir, "failed", step, first_line(error))
        raise
