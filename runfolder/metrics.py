"""metrics.jsonl: one JSON object a line, each with the `step` after which it was measured. The one reader and the one writer.

A kill may cut the last line short, a disk may damage any: whoever reads skips what is no record.
"""

import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from runfolder.files import write_atomically
from runfolder.layout import METRICS

Record = dict[str, Any]
STALE = "metrics.stale.jsonl"  # lines of steps that were done again
LARGEST_STEP = 2**53  # beyond it a float no longer tells whole numbers apart
TAIL = 16_384  # bytes; several lines


def parse_record(line: str) -> Record | None:
    """Return a line's record, None if it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return record if type(step) is int and 0 <= step <= LARGEST_STEP else None


def read_records(run: Path) -> list[Record]:
    """Return the records of a run's metrics.jsonl in the order of the lines; none if it cannot be read."""
    return [record for line in read_text(run).splitlines() if (record := parse_record(line)) is not None]


def find_damaged_lines(run: Path) -> list[int]:
    """Return the numbers, from 1, of the lines that are no record; not the last, which may still be being written."""
    lines = read_text(run).splitlines()
    return [n for n, line in enumerate(lines[:-1], start=1) if line.strip() and parse_record(line) is None]


def read_text(run: Path) -> str:
    """Return the text of a run's metrics.jsonl, nothing if it cannot be read."""
    path = run / METRICS
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError:
        return ""


def select_validations(records: Iterable[Record]) -> dict[int, Record]:
    """Return the records with a validation by step, in order; where a step occurs twice, the later line holds."""
    found = {record["step"]: record for record in records if type(record.get("val/loss")) in (int, float)}
    return {step: found[step] for step in sorted(found)}


def last_step(run: Path) -> int:
    """Return the step of the last record, 0 if there is none; only the end of the file is read."""
    try:
        with (run / METRICS).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return 0
    return next((record["step"] for line in reversed(lines) if (record := parse_record(line)) is not None), 0)


def rewind_metrics(run: Path, step: int, evaluation_pending: bool = False) -> bool:
    """Move the lines beyond a step, and those that are no record, to metrics.stale.jsonl; return whether there were any.

    The resumed run does these steps again, so that the file stays in order and without duplicates.

    Args:
        evaluation_pending: the validation of that very step is done again as well.
    """

    def is_kept(record: Record | None) -> bool:
        if record is None or record["step"] > step:
            return False
        return not (evaluation_pending and record["step"] == step and "val/loss" in record)

    text = read_text(run)
    kept: list[str] = []
    stale: list[str] = []
    for line in text.splitlines():
        (kept if is_kept(parse_record(line)) else stale).append(f"{line}\n")
    if stale:
        with (run / STALE).open("a", encoding="utf-8") as file:
            file.writelines(stale)
    if "".join(kept) != text:  # also where a kill took nothing but the last line's end
        write_atomically(run / METRICS, "".join(kept))
    return bool(stale)


class LineFile:
    """A file that grows by whole lines; what a full disk refuses is kept and tried again with the next line."""

    def __init__(self, path: Path):
        self.path, self.refused = path, b""
        self.descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def write(self, line: str) -> None:
        """Append a line, which ends with its newline; what cannot be written waits for the next call."""
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
