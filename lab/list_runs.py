"""List runs: state, step, loss, speed, age.

    python scripts/runs.py                   all runs in runs/, those of sweeps included
    python scripts/runs.py runs/tiny         the runs of a folder
    python scripts/runs.py state=running

    folders=runs      run folders, or folders of them; also without the key
    state=null        only runs in this state: running, done, preempted, diverged, failed, killed

One line a run. loss: the last validation's, nats/token; speed: tokens per second of the last record; age: since the run last
wrote; killed: the run never wrote how it ended, and its process on this host is gone. Exit codes: 0, 2 no such folder.
"""

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from cli.arguments import PATH, Program
from cli.composition import ConfigError
from lab.words import align, format_seconds, printable
from runfolder.layout import CONFIG, METRICS, STATUS, is_replaced, is_run_folder
from runfolder.lock import is_running
from runfolder.metrics import read_records, select_validations
from runfolder.plain_yaml import load_plain_yaml
from runfolder.status import STATES, read_status

DEPTH = 2  # runs/<sweep>/<run>
REASON_WIDTH = 60


@dataclass
class Settings:
    folders: list[str] = field(default_factory=lambda: ["runs"], metadata=PATH)
    state: Optional[str] = None


def main(settings: Settings) -> None:
    if settings.state not in (None, "killed", *STATES):
        raise ConfigError(f"state={settings.state}: must be one of {', '.join(STATES)}, killed")
    found: list[Path] = []
    for folder in map(Path, settings.folders):
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder")
        found += find_runs(folder)
    rows = [row for row in map(describe, dict.fromkeys(found)) if settings.state in (None, row[1])]
    if not rows:
        print("no runs" + (f" in state {settings.state}" if settings.state else ""))
        return
    print(align(["run", "state", "step", "loss", "tokens/s", "age", ""], rows, left=(0, 1, 6)))


def find_runs(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Yield a folder if it is a run, else the runs in it and one level down; what is set aside or hidden is not looked at."""
    if is_run_folder(folder):
        yield folder
    elif depth and not is_replaced(folder):
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from find_runs(child, depth - 1)


def describe(run: Path) -> list[str]:
    """Return a run's line; what cannot be read is a dash."""
    status, records = read_status(run), read_records(run)
    state = str(status.get("state") or "-")
    if state == "running" and has_died(run):
        state = "killed"
    losses = [record["val/loss"] for record in select_validations(records).values()]
    speeds = [record["train/tokens_per_second"] for record in records if "train/tokens_per_second" in record]
    last = max((record["step"] for record in records), default=status.get("step"))
    written = [(run / name).stat().st_mtime for name in (METRICS, STATUS, CONFIG) if (run / name).is_file()]
    reason = str(status.get("message") or "") if state in ("failed", "diverged") else ""
    return [
        printable(str(run)),
        printable(state),
        f"{number(last)}/{number(max_steps(run))}",
        number(losses[-1], ".4f") if losses else "-",
        number(speeds[-1]) if speeds else "-",
        format_seconds(max(0.0, time.time() - max(written))),
        printable(" ".join(reason.split()))[:REASON_WIDTH],
    ]


def has_died(run: Path) -> bool:
    """Return whether the process that the run's lock names was one of this host and lives no longer."""
    try:
        text = (run / "run.lock").read_bytes()[:500]
        host = json.loads(text)["host"] if text.strip() else None  # released, but no word of how the run ended
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return host in (None, socket.gethostname()) and not is_running(text)


def max_steps(run: Path) -> Any:
    try:
        config = load_plain_yaml((run / CONFIG).read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return None
    return config.get("max_steps") if isinstance(config, dict) else None


def number(value: Any, form: str = ",.0f") -> str:
    """Return a number in a format, a dash for anything else."""
    return format(value, form) if isinstance(value, int | float) and not isinstance(value, bool) else "-"


PROGRAM = Program(main, Settings, ("folders",), __doc__)
