"""How a point ended and how far it is, read from its run folder and its log."""

import os
from pathlib import Path

from lab.sweeps.plan import Point
from runfolder import metrics
from runfolder.status import read_json


def outcome_of(exit_code: int, state: str | None) -> str:
    """Return done, preempted, diverged or failed.

    Args:
        state: what status.json says, None if this attempt did not write it. torchrun makes 1 of every other exit code.
    """
    if exit_code == 0:
        return "done"
    by_code = {75: "preempted", 5: "diverged"}
    if exit_code in by_code:
        return by_code[exit_code]
    return state if state is not None and state in by_code.values() else "failed"


def status_path(point: Point) -> Path:
    return point.run_dir / "status.json"


def version_of(path: Path) -> tuple[int, int] | None:
    """Return what changes whenever a file is replaced, None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def last_step(point: Point) -> int:
    """Return the last logged step of a run, 0 before its first."""
    return min(metrics.last_step(point.run_dir), point.max_steps)


def reason_failed(point: Point, log: Path) -> str:
    """Return why a run failed: what its status says of this attempt, else the last line of its log."""
    said = last_line(log)
    if said.startswith("error: "):
        return said
    message = read_json(status_path(point)).get("message")
    return one_line(message) if isinstance(message, str) and message else said


def last_line(log: Path) -> str:
    """Return a log's last error line, else its last line; torchrun prints more after a point's own."""
    lines = [line.strip() for line in tail(log).rpartition("\n--- ")[2].splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("error: ")]
    return one_line((own or lines or ["?"])[-1])


def one_line(text: str) -> str:
    """Return the beginning of a text, without the control characters that a log could carry into the terminal."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split())[:300])


def tail(path: Path, size: int = 16_384) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
