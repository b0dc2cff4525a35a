"""What lies where in a run's folder, and which folders are runs.

runs/<name>/
    config.yaml         the resolved configuration
    environment.json    versions, commit, devices, digests of data and evaluation
    metrics.jsonl       one record a line; metrics.stale.jsonl: those of steps that were done again
    status.json         how the run stands: state, step, last validation, started, updated, finished
    events.jsonl        what should not have happened: spikes, numbers that are not finite
    console.log         what the terminal was told, session after session
    tokenizer.json      the tokenizer of the data
    run.lock            which process writes the run
    checkpoints/step-00001000/   engine/checkpoint.py
runs/<name>.replaced-1/ an earlier run of that name, set aside by resume=never
"""

import re
from pathlib import Path

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
STATUS = "status.json"
CONSOLE = "console.log"
CHECKPOINTS = "checkpoints"
CHECKPOINT = re.compile(r"step-\d{8,}")
REPLACED = re.compile(r".+\.replaced-\d+")


def is_run_folder(folder: Path) -> bool:
    """Return whether a folder holds a run, finished or not, that nothing has replaced."""
    return (folder / CONFIG).is_file() and not is_replaced(folder)


def is_replaced(folder: Path | str) -> bool:
    """Return whether a run was set aside by resume=never: it counts no longer."""
    return REPLACED.fullmatch(Path(folder).resolve().name) is not None


def replaced_name(folder: Path) -> Path:
    """Return the first free name under which a run's folder can be set aside."""
    number = next(n for n in range(1, 10_000) if not folder.with_name(f"{folder.name}.replaced-{n}").exists())
    return folder.with_name(f"{folder.name}.replaced-{number}")


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the published checkpoints in a folder of checkpoints, newest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=checkpoint_step, reverse=True)


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def checkpoint_step(path: Path) -> int:
    """Return the step of a published checkpoint."""
    return int(path.name.removeprefix("step-"))


def newest_step(run: Path) -> int | None:
    """Return the step of a run's newest checkpoint, None if there is none yet.

    Whoever reads a checkpoint more than once asks once: a run in progress may publish its next one meanwhile.
    """
    found = list_checkpoints(run / CHECKPOINTS)
    return checkpoint_step(found[0]) if found else None
