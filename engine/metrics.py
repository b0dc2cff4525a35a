"""What a run tells: metrics.jsonl is the truth; the terminal and the trackers repeat it."""

import json
import time
from dataclasses import dataclass
from typing import Any

from engine.checkpoint import TrainerState
from engine.config import Config
from engine.terminal import Terminal
from engine.trackers import Feed, choose_wandb_id, close_trackers, open_trackers
from runfolder.layout import CONSOLE, METRICS
from runfolder.metrics import LineFile, read_records, rewind_metrics


@dataclass
class Outlets:
    """Where the first rank's records go."""

    file: LineFile
    console: LineFile
    terminal: Terminal
    trackers: list[Feed]


class MetricsLog:
    """Append metrics to the run folder, show them, tell the trackers; on every rank but the first it does nothing."""

    def __init__(self, config: Config, state: TrainerState, is_main_process: bool, environment: dict[str, Any]):
        """Begin where state is, which on the first rank is given the id of the run's W&B run if there is to be one."""
        self.config = config
        self.outlets: Outlets | None = None
        if not is_main_process:
            return
        file = LineFile(config.run_dir / METRICS)
        if config.wandb.mode != "disabled":
            state.wandb_id = choose_wandb_id(state.wandb_id, config.run_dir)  # saved with the next checkpoint
        trackers = open_trackers(config, environment, state.wandb_id, read_records(config.run_dir))
        console = LineFile(config.run_dir / CONSOLE)
        console.write(f"--- {time.strftime('%Y-%m-%dT%H:%M:%S%z')} on {environment['host']}: {environment['command']}\n")
        tokens = environment["evaluation"]["tokens"]
        terminal = Terminal(config, tokens, state.step, state.train_seconds, lambda line: console.write(line + "\n"))
        self.outlets = Outlets(file, console, terminal, trackers)

    def log(self, step: int, train_seconds: float, values: dict[str, float | None]) -> None:
        """Record values after `step` steps that took train_seconds in all."""
        if not self.outlets:
            return
        record = {
            "step": step,
            "tokens": step * self.config.tokens_per_step,
            "train_seconds": round(train_seconds, 3),
            **values,
        }
        self.outlets.file.write(json.dumps(record) + "\n")
        self.outlets.terminal.show(record)
        for tracker in self.outlets.trackers:
            tracker.log(record)

    def advance(self, step: int) -> None:
        """Show that a step is done of which there is no record."""
        if self.outlets:
            self.outlets.terminal.advance(step)

    def sync(self) -> None:
        """Make what was logged durable, before a checkpoint that it must not lag behind."""
        if self.outlets:
            self.outlets.file.sync()

    def rewind(self, step: int, train_seconds: float) -> None:
        """Forget the steps beyond step, which will be done again; train_seconds is the time spent so far."""
        if not self.outlets:
            return
        self.outlets.file.close()
        if rewind_metrics(self.config.run_dir, step):
            for tracker in self.outlets.trackers:
                tracker.restart(read_records(self.config.run_dir))
        self.outlets.file = LineFile(self.config.run_dir / METRICS)
        self.outlets.terminal.rewind(step, train_seconds)

    @property
    def last_val(self) -> float | None:
        """The loss of the last validation of this job, nats/token."""
        return self.outlets.terminal.last_val if self.outlets else None

    def show(self, lines: list[str]) -> None:
        if self.outlets:
            self.outlets.terminal.print(*lines)

    def note(self, line: str) -> None:
        """Write a line into console.log alone: what the program will say on its own when it ends."""
        if self.outlets:
            self.outlets.console.write(line + "\n")

    def close(self) -> None:
        if self.outlets:
            self.outlets.terminal.close()
            self.outlets.file.close()
            self.outlets.console.close()

    def finish_trackers(self, is_last_row_whole: bool) -> None:
        """Wait for the trackers, a minute at the most; apart from close, for all else is then written.

        Args:
            is_last_row_whole: False if the next session adds to the last step's row the validation that a signal put off.
        """
        if self.outlets:
            close_trackers(self.outlets.trackers, is_last_row_whole)
