"""How a run stands: status.json, and any other small JSON file of a run, read without trust."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from runfolder.files import write_json_atomically
from runfolder.layout import STATUS

STATES = ("running", "done", "preempted", "diverged", "failed")


def write_status(run: Path, state: str, step: int, message: str = "", val_loss: float | None = None) -> None:
    """Replace status.json. A full disk is a warning: the run itself has not failed.

    Args:
        state: one of STATES.
        val_loss: of the last validation, nats/token; None keeps the one that is written down.
    """
    earlier, now = read_status(run), time.strftime("%Y-%m-%dT%H:%M:%S%z")
    status = {
        "state": state,
        "step": step,
        "message": message,
        "val_loss": earlier.get("val_loss") if val_loss is None else val_loss,
        "started": earlier.get("started", now),  # the run's first session
        "updated": now,
        "finished": None if state == "running" else now,
    }
    try:
        write_json_atomically(run / STATUS, status)
    except OSError as error:
        print(f"warning: {run / STATUS}: {error}", file=sys.stderr, flush=True)


def mark_done(run: Path, step: int) -> None:
    """Write that a run is done, unless that is written down: a kill may have come just before it."""
    if read_status(run).get("state") != "done":
        write_status(run, "done", step)


def read_status(run: Path) -> dict[str, Any]:
    """Return what status.json says, nothing where there is none."""
    return read_json(run / STATUS)


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object, or an empty one where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_nested(path: Path, *keys: str) -> Any:
    """Return a value inside a JSON file, None if any key on the way to it is absent."""
    value: Any = read_json(path)
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
