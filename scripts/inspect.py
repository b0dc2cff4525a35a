"""Look inside trained models: embeddings, condition numbers and learned scales, after the paper's figures 4 to 6, 10 to 12, 14.

    python scripts/inspect.py run=runs/A [step=N] [out=report/inspection]
    python scripts/inspect.py run=runs/A,runs/B          two to six runs in the same pictures
    python scripts/inspect.py run=runs/A,runs/A step=1000,2000

Writes inspection.html (one self-contained page), inspection.json (every number) and the PNG files.
Exit codes: 0 done, 2 arguments or no such run, 4 no such or no intact checkpoint.
"""

import sys
from pathlib import Path

# Replaced, not extended: this very file would hide the standard library's inspect from all that follows.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import os  # noqa: E402

from cli.composition import ConfigError, nearest  # noqa: E402
from cli.entry import fail  # noqa: E402

KEYS = ("run", "step", "out")


def parse(arguments: list[str]) -> tuple[list[str], list[int | None], str]:
    """Return the run folders, a step for each (None: the newest) and the folder to write; raise ConfigError."""
    values = {"out": "report/inspection"}
    seen = set()
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ConfigError(f"{argument!r}: write key=value, for example run={argument}")
        if key not in KEYS:
            raise ConfigError(f"unknown key '{key}'{nearest(key, list(KEYS))} (several runs: run=runs/A,runs/B)")
        if key in seen:
            raise ConfigError(f"{key}= is given twice (several runs: run=runs/A,runs/B)")
        if not value:
            raise ConfigError(f"{key}= has no value")
        seen.add(key)
        values[key] = value
    if "run" not in values:
        raise ConfigError("run=runs/NAME is missing (several runs: run=runs/A,runs/B)")
    folders = values["run"].split(",")
    if not all(folders):
        raise ConfigError(f"run={values['run']}: a name is empty")
    steps = values["step"].split(",") if "step" in values else []
    if not all(step.isdecimal() and step.isascii() for step in steps):
        raise ConfigError(f"step={values['step']}: must be a whole number, or one for each run, as in step=1000,2000")
    if len(steps) not in (0, 1, len(folders)):
        raise ConfigError(f"step= has {len(steps)} numbers for {len(folders)} runs; give one, or one for each run")
    chosen = [int(step) for step in steps] or [None]
    return folders, chosen * len(folders) if len(chosen) == 1 else chosen, values["out"]


def main() -> int:
    """Run the command line and return its exit code."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    try:
        folders, steps, out = parse(sys.argv[1:])
        # Imported late: torch and matplotlib take seconds, and a refusal should come at once.
        from lab.inspection.checkpoints import inspect_runs

        inspections = inspect_runs(folders, steps)
        from lab.inspection.write import list_numbers, write_inspection

        try:
            written = write_inspection(inspections, out)
        except OSError as error:
            raise ConfigError(f"cannot write {out}: {error}") from None
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        fail(error)
    header, rows = list_numbers(inspections)
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in (header, *rows)
    ]
    try:
        print("\n".join(lines) + "\n\nwrote " + ", ".join(map(str, written)), flush=True)
    except BrokenPipeError:  # the reader (head, less) has seen enough; the report is already written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
