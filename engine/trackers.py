"""Weights & Biases and TensorBoard: metrics.jsonl, shown elsewhere.

metrics.jsonl is the truth. At every start of a job a tracker is told all of its records from the first one, so whatever a
kill lost or a resumed job does again, its curves are those of the file. Their horizontal axis is tokens: runs of different
batch sizes lie over each other.
"""

import json
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from engine.config import Config

Record = dict[str, Any]  # one line of metrics.jsonl
CLOSE_SECONDS = 60.0  # how long the end of a job waits for its trackers, all together
WANDB_FOLDER = re.compile(r"(?:superseded-)?(?:offline-)?run-\d{8}_\d{6}-(\w{1,64})")


class Feed:
    """One tracker in a thread of its own: neither its errors nor its slowness reach the training."""

    def __init__(self, name: str, open_sink: Callable[[], Any], records: list[Record]):
        self.name, self.open_sink = name, open_sink
        self.queue: SimpleQueue = SimpleQueue()
        self.is_off = False
        self.restart(records)
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def restart(self, records: list[Record]) -> None:
        """Begin again with these records: those told so far are no longer what happened."""
        self._put(("open", records))

    def log(self, record: Record) -> None:
        self._put(("log", record))

    def finish(self, is_last_row_whole: bool) -> None:
        """Ask for the end; join waits for it."""
        self._put(("close", is_last_row_whole))

    def join(self, deadline: float) -> None:
        """Wait until time.monotonic() is deadline; a tracker that is not done by then is left behind."""
        self.thread.join(max(deadline - time.monotonic(), 0))
        if self.thread.is_alive():
            warn(f"{self.name} did not finish in {CLOSE_SECONDS:g} s and is left behind; metrics.jsonl has everything")

    def _put(self, item: tuple[str, Any]) -> None:
        if not self.is_off:
            self.queue.put(item)

    def _work(self) -> None:
        sink: Any = None
        try:
            while True:
                what, value = self.queue.get()
                if what == "log":
                    sink.log(value)
                    continue
                if sink:
                    sink.close(what == "close" and value)
                if what == "close":
                    return
                sink = self.open_sink()
                for record in value:
                    sink.log(record)
        except (Exception, SystemExit) as error:
            self.is_off = True
            reason = (str(error).strip() or "no message").splitlines()[0][:200]
            warn(f"{self.name} is off from here ({type(error).__name__}: {reason}); metrics.jsonl has everything")


class WandbSink:
    """One W&B run: a row for each step, the step's records merged."""

    def __init__(self, config: Config, environment: dict[str, Any], run_id: str):
        import wandb

        # Every session writes its own folder, whole. The earlier ones would be uploaded as well: not under that name.
        for earlier in (config.run_dir / "wandb").glob(f"offline-run-*-{run_id}"):
            earlier.rename(earlier.with_name(f"superseded-{earlier.name}"))
        self.run = wandb.init(
            entity=config.wandb.entity,
            project=config.wandb.project,
            group=config.wandb.group,
            tags=config.wandb.tags or None,
            name=config.wandb.name or config.run_name,
            mode=config.wandb.mode,
            id=run_id,
            resume="allow",
            dir=str(config.run_dir),
            config={**asdict(config), "environment": environment},
        )
        self.run.define_metric("*", step_metric="tokens")
        self.first_step = self.run.step  # steps below it are on the server already; 0 when offline
        self.row: Record = {}
        self.summary: dict[str, float] = {}

    def log(self, record: Record) -> None:
        self._summarize(record)
        if record["step"] < self.first_step:
            return
        if self.row and self.row["step"] != record["step"]:
            self._send()
        self.row |= {key: value for key, value in record.items() if value is not None}

    def close(self, is_last_row_whole: bool) -> None:
        """End the run; a last row that the next session completes is left to it, for a row can be sent only once."""
        if self.row and is_last_row_whole:
            self._send()
        self.run.summary.update(self.summary)
        self.run.finish()

    def _send(self) -> None:
        self.run.log(self.row, step=self.row["step"])
        self.row = {}

    def _summarize(self, record: Record) -> None:
        self.summary["tokens"], self.summary["train_seconds"] = record["tokens"], record["train_seconds"]
        if record["train_seconds"] > 0:
            self.summary["tokens_per_second"] = record["tokens"] / record["train_seconds"]
        if "val/loss" in record:
            self.summary["final_val_loss"] = record["val/loss"]
            self.summary["best_val_loss"] = min(record["val/loss"], self.summary.get("best_val_loss", record["val/loss"]))


class TensorBoardSink:
    """Event files in <run>/tensorboard. The step is the number of tokens, the relative time that of the training alone."""

    def __init__(self, config: Config, environment: dict[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        folder = config.run_dir / "tensorboard"
        # A TensorBoard that is looking on needs the last file to find the next one; purge_step lets it forget what it read.
        for earlier in sorted(folder.glob("events.out.tfevents.*"))[:-1]:
            earlier.unlink()  # nothing is lost: metrics.jsonl has it, and it is written again
        self.writer = SummaryWriter(str(folder), purge_step=0, flush_secs=10)
        settings = json.dumps({**asdict(config), "environment": environment}, indent=2)
        self.writer.add_text("settings", "```\n" + settings + "\n```", global_step=0, walltime=0.0)

    def log(self, record: Record) -> None:
        for key, value in record.items():
            if "/" in key and value is not None:
                self.writer.add_scalar(key, value, record["tokens"], walltime=record["train_seconds"])

    def close(self, is_last_row_whole: bool) -> None:
        self.writer.close()


def open_trackers(config: Config, environment: dict[str, Any], wandb_id: str | None, records: list[Record]) -> list[Feed]:
    """Start the trackers that the configuration asks for."""
    feeds = []
    if config.wandb.mode != "disabled" and wandb_id is not None and is_installed("wandb"):
        feeds.append(Feed("wandb", lambda: WandbSink(config, environment, wandb_id), records))
    if config.tensorboard and is_installed("tensorboard"):
        feeds.append(Feed("tensorboard", lambda: TensorBoardSink(config, environment), records))
    return feeds


def is_installed(package: str) -> bool:
    """Return whether a tracker's package is there; say so now, before the first step, if it is not."""
    if package in sys.modules or find_spec(package):
        return True
    warn(f"{package} is off: there is no such package (pip install {package}); metrics.jsonl has everything")
    return False


def close_trackers(feeds: list[Feed], is_last_row_whole: bool) -> None:
    """Let the trackers finish, and wait for them no longer than CLOSE_SECONDS."""
    for feed in feeds:
        feed.finish(is_last_row_whole)
    deadline = time.monotonic() + CLOSE_SECONDS
    for feed in feeds:
        feed.join(deadline)


def choose_wandb_id(saved: str | None, run_dir: Path) -> str:
    """Return the id of this run folder's W&B run: as the checkpoint has it, or W&B's own folders, else a new one."""
    if saved and re.fullmatch(r"\w{1,64}", saved):
        return saved
    folder = run_dir / "wandb"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    known = [match[1] for name in names if (match := WANDB_FOLDER.fullmatch(name))]
    return known[-1] if known else secrets.token_hex(4)


def warn(message: str) -> None:
    sys.stderr.write(f"warning: {message}\n")  # in one piece: two trackers may fail at the same time
    sys.stderr.flush()
