"""What the laboratory writes replaces what it wrote before, and nothing else."""

import json
from collections.abc import Iterable
from pathlib import Path

from cli.composition import ConfigError

# The JSON file of each kind of report, and a key that it always has.
RECORDS = {
    "speedup.json": "sections",
    "inspection.json": "definitions",
    "ablations.json": "tables",
    "transfer.json": "optima",
    "extrapolation.json": "training_context",
}


def refuse_foreign_folder(out: Path, record: str, *names: str) -> None:
    """Raise ConfigError if a report would replace a file of a folder that holds no report of its kind.

    Args:
        out: the folder; it need not exist.
        record: the file of RECORDS that such a report always has, written before the others.
        names: patterns of the other files' names.
    """
    if is_object_with(out / record, RECORDS[record]):
        return
    for path in (found for name in (record, *names) for found in sorted(out.glob(name))):
        raise refusal(path, "out")


def refuse_foreign_files(paths: Iterable[Path], written_key: str, key: str) -> None:
    """Raise ConfigError if a JSON file is there already and is no object with written_key; key= is how it was given."""
    for path in paths:
        if path.exists() and not is_object_with(path, written_key):
            raise refusal(path, key)


def refuse_foreign_profile(stem: Path) -> None:
    """Raise ConfigError if STEM.json or STEM.txt is there, and no trace of a step in STEM.json."""
    trace = Path(f"{stem}.json")
    refuse_foreign_files([trace], "traceEvents", "profile")
    if not trace.exists() and Path(f"{stem}.txt").exists():
        raise refusal(Path(f"{stem}.txt"), "profile")


def refusal(path: Path, key: str) -> ConfigError:
    return ConfigError(f"{path} was not written by this program and is not replaced; give another {key}=")


def is_object_with(path: Path, key: str) -> bool:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and key in value
