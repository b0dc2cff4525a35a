"""One job per run folder."""

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import IO


class RunLocked(RuntimeError):
    exit_code = 2


class RunLock:
    """A lock on run.lock in a run's folder, held by the first rank while it lives.

    The kernel holds it (fcntl record lock, which NFS knows as well), so it ends with its owner however that ends: there
    is nothing stale to break. The file stays; its text only says who holds the lock.
    """

    WAIT_SECONDS = 5.0  # a requeued job may begin while its predecessor is still ending

    def __init__(self) -> None:
        self.file: IO[str] | None = None

    def acquire(self, folder: Path) -> None:
        """Lock a folder, making it if needed; raise RunLocked if another process holds it."""
        self.close()
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "run.lock").open("a+")
        deadline = time.monotonic() + self.WAIT_SECONDS
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    owner = file.read(500).strip()
                    file.close()
                    raise RunLocked(
                        f"{folder}: another job is writing this run ({owner}); wait for it, or choose another run_name"
                    ) from None
                time.sleep(0.1)
        file.truncate(0)
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "slurm_job_id": os.environ.get("SLURM_JOB_ID")}
        file.write(json.dumps(holder))
        file.flush()
        self.file = file

    def close(self) -> None:
        if self.file:
            self.file.close()
            self.file = None
