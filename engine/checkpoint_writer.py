"""Writing checkpoints beside the training."""

import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path

from engine.checkpoint import CheckpointError, Snapshot, write_checkpoint


class CheckpointWriter:
    """Write snapshots in a thread, one at a time: training waits for the copy, not for the disk.

    A disk that is full or away for a while should not end a run of days: a failed write is tried again after
    RETRY_SECONDS, and when all tries failed the next checkpoint has its turn. After MAX_FAILED in a row, or when the run
    ends with one unwritten, the error is raised.
    """

    RETRY_SECONDS = (0.5, 2.0, 8.0)
    MAX_FAILED = 3

    def __init__(self, folder: Path, keep: int, keep_every: int | None, keep_steps: Collection[int] = ()):
        self.folder, self.keep, self.keep_every, self.keep_steps = folder, keep, keep_every, keep_steps
        self.thread: threading.Thread | None = None
        self.error: CheckpointError | None = None  # of the last write
        self.failed = 0  # writes in a row

    def save(self, snapshot: Snapshot) -> None:
        """Begin to write; wait first for the write before it. Raise CheckpointError if too many have failed."""
        self._join()
        if self.error and self.failed >= self.MAX_FAILED:
            raise self.error
        self.thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint")
        self.thread.start()

    def wait(self) -> None:
        """Wait until everything is on disk; raise CheckpointError if the last write failed."""
        self._join()
        if self.error:
            raise self.error

    def _join(self) -> None:
        if self.thread:
            self.thread.join()
            self.thread = None

    def _write(self, snapshot: Snapshot) -> None:
        for pause in (*self.RETRY_SECONDS, None):
            try:
                write_checkpoint(self.folder, snapshot, self.keep, self.keep_every, self.keep_steps)
            except CheckpointError as error:
                self.error = error
            except Exception as error:  # whatever it is, the main thread must hear of it
                self.error = CheckpointError(f"{self.folder}: {type(error).__name__}: {error}")
            else:
                self.error, self.failed = None, 0
                return
            if pause:
                time.sleep(pause)
        self.failed += 1
        print(f"warning: {self.error}; training goes on", file=sys.stderr, flush=True)
