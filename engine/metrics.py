"""What a run tells: metrics.jsonl is the truth; the terminal and the trackers repeat it."""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from corpus.token_file import write_json_atomically
from engine.checkpoint import TrainerState
from engine.config import Config
from engine.terminal import Terminal
from engine.trackers import choose_wandb_id, close_trackers, open_trackers


def write_status(run_dir: Path, state: str, step: int, message: str = "") -> None:
    """Replace status.json; state is running, done, preempted, diverged or failed. A full disk is a warning."""
    try:
        write_json_atomically(run_dir / "status.json", {"state": state, "step": step, "message": message})
    except OSError as error:
        print(f"warning: {run_dir}/status.json: {error}", file=sys.stderr, flush=True)


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object, or an empty one where there is none that can be read."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def forget_after(run_dir: Path, step: int, evaluation_pending: bool = False) -> bool:
    """Move the lines of metrics.jsonl beyond step, and a last line cut short by a kill, to metrics.stale.jsonl.

    Return whether there were any.

    With evaluation_pending the validation of that very step goes too.

    The resumed run writes those steps again; the file stays in order and without duplicates.
    """
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return False
    kept: list[str] = []
    stale: list[str] = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
            is_again = evaluation_pending and record["step"] == step and "val/loss" in record
            is_kept = record["step"] <= step and not is_again
        except (ValueError, KeyError, TypeError, RecursionError):
            is_kept = False
        (kept if is_kept else stale).append(line + "\n")
    if stale:
        with (run_dir / "metrics.stale.jsonl").open("a") as file:
            file.writelines(stale)
        rewritten = path.with_suffix(".jsonl.tmp")
        rewritten.write_text("".join(kept))
        os.replace(rewritten, path)
    return bool(stale)


class LineFile:
    """A file that grows by whole lines; what a full disk refuses is kept and tried again with the next line."""

    def __init__(self, path: Path):
        self.path, self.refused = path, b""
        self.descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def write(self, line: str) -> None:
        lines = self.refused + line.encode()
        size, written = os.fstat(self.descriptor).st_size, 0
        try:
            while written < len(lines):
                written += os.write(self.descriptor, lines[written:])
        except OSError as error:
            if not self.refused:
                print(f"warning: {self.path}: {error}; kept in memory, training goes on", file=sys.stderr, flush=True)
            self.refused = lines
            with suppress(OSError):
                os.ftruncate(self.descriptor, size)  # no half line
        else:
            self.refused = b""

    def sync(self) -> None:
        """Make the lines durable, before a checkpoint that they must not lag behind."""
        self.write("")
        with suppress(OSError):
            os.fsync(self.descriptor)

    def close(self) -> None:
        self.write("")
        os.close(self.descriptor)


class MetricsLog:
    """Append metrics to the run folder, show them, tell the trackers; on every rank but the first it does nothing."""

    def __init__(self, config: Config, state: TrainerState, is_main_process: bool, environment: dict[str, Any]):
        self.config, self.state, self.is_main_process = config, state, is_main_process
        self.file, self.trackers, self.terminal = None, [], None
        if not is_main_process:
            return
        self.path = config.run_dir / "metrics.jsonl"
        self.file = LineFile(self.path)
        if config.wandb.mode != "disabled":
            state.wandb_id = choose_wandb_id(state.wandb_id, config.run_dir)  # saved with the next checkpoint
        self.trackers = open_trackers(config, environment, state.wandb_id, read_records(self.path))
        self.terminal = Terminal(config, environment["evaluation"]["tokens"], state.step, state.train_seconds)

    def log(self, step: int, train_seconds: float, values: dict[str, float | None]) -> None:
        """Record values after `step` steps that took train_seconds in all."""
        if not self.is_main_process:
            return
        record = {
            "step": step,
            "tokens": step * self.config.tokens_per_step,
            "train_seconds": round(train_seconds, 3),
            **values,
        }
        self.file.write(json.dumps(record) + "\n")
        self.terminal.show(record)
        for tracker in self.trackers:
            tracker.log(record)

    def sync(self) -> None:
        if self.is_main_process:
            self.file.sync()

    def rewind(self, step: int) -> None:
        """Forget the steps beyond step, which will be done again."""
        if not self.is_main_process:
            return
        self.file.close()
        if forget_after(self.config.run_dir, step):
            for tracker in self.trackers:
                tracker.restart(read_records(self.path))
        self.file = LineFile(self.path)
        self.terminal.rewind(step, self.state.train_seconds)

    @property
    def last_val(self) -> float | None:
        """The loss of the last validation of this job."""
        return self.terminal.last_val if self.is_main_process else None

    def show(self, lines: list[str]) -> None:
        if self.is_main_process:
            self.terminal.print(*lines)

    def close(self) -> None:
        if self.is_main_process:
            self.terminal.close()
            self.file.close()

    def finish_trackers(self) -> None:
        """Wait for the trackers, a minute at the most; apart from close, for all else is then written."""
        # The validation that a signal cut short will belong to the last step's row.
        close_trackers(self.trackers, is_last_row_whole=not self.state.evaluation_pending)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl, without lines that are none."""
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        with suppress(ValueError, RecursionError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]
