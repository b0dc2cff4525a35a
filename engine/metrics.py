"""What a run tells: metrics.jsonl is the truth; Weights & Biases and the console repeat it."""

import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from corpus.token_file import write_json_atomically
from engine.checkpoint import TrainerState
from engine.config import Config


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


def forget_after(run_dir: Path, step: int, evaluation_pending: bool = False) -> None:
    """Move the lines of metrics.jsonl beyond step, and a last line cut short by a kill, to metrics.stale.jsonl.

    With evaluation_pending the validation of that very step goes too.

    The resumed run writes those steps again; the file stays in order and without duplicates.
    """
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return
    kept, stale = [], []
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
    """Append metrics to the run folder and show them; on every rank but the first it does nothing."""

    def __init__(self, config: Config, state: TrainerState, is_main_process: bool, environment: dict[str, Any]):
        self.config, self.state, self.is_main_process = config, state, is_main_process
        self.wandb, self.file, self.bar = None, None, None
        if not is_main_process:
            return
        self.file = LineFile(config.run_dir / "metrics.jsonl")
        if config.wandb.mode != "disabled":
            self._start_wandb(environment)
        self.bar = tqdm(total=config.max_steps, initial=state.step, unit="step", disable=None, dynamic_ncols=True)
        self.is_terminal = not self.bar.disable
        self.started, self.first_step, self.last_val = time.monotonic(), state.step, None

    def _start_wandb(self, environment: dict[str, Any]) -> None:
        """Join the run's W&B run; whatever goes wrong is a warning, for training must not depend on it."""
        try:
            import wandb

            settings = {**asdict(self.config), "environment": environment}
            self.wandb = wandb.init(project=self.config.wandb.project, name=self.config.run_name, mode=self.config.wandb.mode,
                                    id=self.state.wandb_id, resume="allow", dir=str(self.config.run_dir), config=settings)  # fmt: skip
            self.state.wandb_id = self.wandb.id  # saved with the next checkpoint
            self.wandb.define_metric("*", step_metric="step")
        except Exception as error:
            print(
                f"warning: wandb is off ({type(error).__name__}: {str(error)[:200]}); metrics.jsonl has everything",
                file=sys.stderr,
            )

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
        self._show(step, values)
        if self.wandb:
            try:
                self.wandb.log(record)
            except Exception as error:
                print(f"warning: wandb is off from here ({error})", file=sys.stderr)
                self.wandb = None

    def sync(self) -> None:
        if self.is_main_process:
            self.file.sync()

    def rewind(self, step: int) -> None:
        """Forget the steps beyond step, which will be done again."""
        if not self.is_main_process:
            return
        self.file.close()
        forget_after(self.config.run_dir, step)
        self.file = LineFile(self.config.run_dir / "metrics.jsonl")
        self.first_step = min(self.first_step, step)
        self.bar.n = min(self.bar.n, step)

    def _show(self, step: int, values: dict[str, float | None]) -> None:
        if "val/loss" in values:
            self.last_val = values["val/loss"]
            self._print(
                f"step {step:>7,}/{self.config.max_steps:,} | val {self.last_val:.4f} nats/token, {values['val/bits_per_byte']:.4f} bits/byte"
            )
            return
        mfu = values.get("train/mfu")
        remaining = (time.monotonic() - self.started) / max(step - self.first_step, 1) * (self.config.max_steps - step)
        parts = [f"loss {values['train/loss']:.4f}", f"lr {values['train/learning_rate']:.2e}", f"grad {values['train/grad_norm']:.2f}",
                 f"{values['train/tokens_per_second']:,.0f} tok/s"]  # fmt: skip
        if mfu is not None:
            parts.append(f"mfu {mfu:.1%}")
        if "train/spike" in values:
            parts.append(f"SPIKE {values['train/spike']:.0f} deviations above the mean")
        if self.is_terminal:
            self.bar.set_postfix_str(", ".join(parts), refresh=False)
            self.bar.update(step - self.bar.n)
        else:
            self._print(
                f"step {step:>7,}/{self.config.max_steps:,} | "
                + " | ".join(parts)
                + f" | eta {format_seconds(remaining)}"
            )

    def _print(self, line: str) -> None:
        try:
            if self.is_terminal:
                self.bar.write(line)
            else:
                print(line, flush=True)
        except OSError:  # the terminal is gone, or the disk behind it full: no reason to end a run
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def close(self) -> None:
        if self.file:
            self.bar.close()
            self.file.close()
        if self.wandb:
            try:
                self.wandb.finish()
            except Exception as error:
                print(f"warning: wandb did not finish ({error})", file=sys.stderr)


def format_seconds(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
