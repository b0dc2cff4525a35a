"""How a run stands: status.json, and any other small JSON file of a run, read without trust."""

import json
import sys
from pathlib import Path
from typing import Any

from runfolder.files import write_json_atomically
from runfolder.layout import STATUS

STATES = ("running", "done", "preempted", "diverged", "failed")


def write_status(run: Path, state: str, step: int, message: str = "") -> None:
    """Replace status.json; state is one of STATES. A full disk is a warning: the run itself has not failed."""
    try:
        write_json_atomically(run / STATUS, {"state": state, "step": step, "message": message})
    except OSError as error:
        print(f"warning: {run / STATUS}: {error}", file=sys.stderr, flush=True)


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
