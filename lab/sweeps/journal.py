"""What a sweep has tried: one JSON line per event, and the locks that keep two sweeps apart.

The run folders say what is finished; the journal adds attempts, times and exit codes.
"""

import fcntl
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from cli.composition import ConfigError
from runfolder.lock import take


class Journal:
    """The folder `.sweep` beside a sweep's runs (`runs/<name>/*` does not match it): journal.jsonl, logs/, a lock.

    Two locks of the kernel, so nothing stale is ever left behind:
    1. on the journal, held by the sweep: a second sweep on the same folder is refused;
    2. on points.lock, which every point inherits: after a kill the next sweep waits until the last point has ended.
    """

    def __init__(self, out_dir: Path):
        self.folder = out_dir / ".sweep"
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        self.file = (self.folder / "journal.jsonl").open("a+b")
        self.points_lock = (self.folder / "points.lock").open("a+b")
        if not take(self.file, fcntl.flock, holder=self.points_lock):
            raise ConfigError(f"{out_dir}: another sweep is running here; wait for it, or stop it")
        if not take(self.points_lock, fcntl.flock):
            print(f"{out_dir}: waiting for points of a sweep that was killed", file=sys.stderr, flush=True)
            while not take(self.points_lock, fcntl.flock):
                time.sleep(0.2)
        self.events = self._read()

    def _read(self) -> list[dict[str, Any]]:
        """Return the events so far; a line cut short by a kill is closed and ignored."""
        self.file.seek(0)
        text = self.file.read()
        if text and not text.endswith(b"\n"):
            self.file.write(b"\n")
        events = []
        for line in text.decode(errors="replace").splitlines():
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict):
                events.append(event)
        return events

    def write(self, event: str, **values: Any) -> None:
        record = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **values}
        self.file.write(json.dumps(record).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def failures(self) -> Counter[str]:
        """Count each point's failed attempts since a sweep last came to its end: a new start then tries all again."""
        counts: Counter[str] = Counter()
        for event in self.events:
            if event.get("event") == "finished":
                counts.clear()
            elif event.get("event") == "end" and event.get("outcome") == "failed":
                counts[str(event.get("point"))] += 1
        return counts

    def log_path(self, point_name: str) -> Path:
        return self.folder / "logs" / f"{point_name}.log"
