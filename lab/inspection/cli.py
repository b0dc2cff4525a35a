"""Look inside trained models: embeddings, condition numbers and learned scales, after the paper's figures 4 to 6, 10 to 12, 14.

    python scripts/inspect_weights.py runs/A [step=N] [out=report/inspection]
    python scripts/inspect_weights.py runs/A runs/B                    two to six runs in the same pictures
    python scripts/inspect_weights.py runs/A runs/A step=1000,2000

    runs=runs/A,runs/B      the run folders, if they are not given without a key
    step=null               step of the checkpoint, or one step for each run; null: the newest
    out=report/inspection   folder to write to

Writes inspection.html (one self-contained page), inspection.json (every number) and the PNG files.
Exit codes: 0 done, 2 arguments or no such run, 4 no such or no intact checkpoint.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from cli.arguments import PATH, Program
from cli.composition import ConfigError
from cli.loading import loading
from lab.ownership import refuse_foreign_folder


@dataclass
class Settings:
    runs: list[str] = field(metadata=PATH)
    step: Optional[list[int]] = None
    out: str = field(default="report/inspection", metadata=PATH)


def steps_of(settings: Settings) -> list[int | None]:
    """Return a step for each run, None for the newest; raise ConfigError if the numbers do not match."""
    count = len(settings.runs)
    steps: list[int | None] = [*settings.step] if settings.step else [None]
    if len(steps) not in (1, count):
        raise ConfigError(f"step= has {len(steps)} numbers for {count} runs; give one, or one for each run")
    return steps * count if len(steps) == 1 else steps


def main(settings: Settings) -> None:
    steps = steps_of(settings)
    refuse_foreign_folder(Path(settings.out), "inspection.json", "inspection.html", "*.png", "*.svg")
    # Imported late: torch and matplotlib take seconds, and a refusal should come at once.
    with loading():
        from lab.inspection.checkpoints import inspect_runs
        from lab.inspection.tables import list_numbers
        from lab.inspection.write import write_inspection
        from lab.words import align

    inspections = inspect_runs(settings.runs, steps)
    try:
        written = write_inspection(inspections, settings.out)
    except OSError as error:
        raise ConfigError(f"cannot write {settings.out}: {error}") from None
    print(align(*list_numbers(inspections)))
    print("\nwrote " + ", ".join(map(str, written)))


PROGRAM = Program(main, Settings, ("runs",), __doc__)
