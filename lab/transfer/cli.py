"""Find each arm's best rate in a small sweep, and print the command of the large run that it serves.

    python scripts/transfer.py runs/transfer size=0.5b [out=report/transfer]

    runs=runs/A,runs/B   runs, or folders of runs, if they are not given without a key
    size=0.5b            the large run's size, as train.py takes it
    context=1k           its context
    max_steps=null       its steps; null: as train.py
    out=null             folder to write transfer.json, transfer.md and a figure to; null: only print

A sweep needs at least three rates in steps of a factor 2 for each arm, with the optimum between them (sweeps/transfer.yaml).
Where it holds several widths, depths or lengths, the drift of the optimum is measured. docs/transfer.md says how.
Exit codes: 0 printed, 2 the runs are no sweep of rates, or cannot be read.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from cli.arguments import PATH, Program
from cli.composition import ConfigError
from cli.loading import loading
from lab.ownership import refuse_foreign_folder
from lab.words import printable


@dataclass
class Settings:
    runs: list[str] = field(metadata=PATH)
    size: str = "0.5b"
    context: str = "1k"
    max_steps: Optional[int] = None
    out: Optional[str] = field(default=None, metadata=PATH)


def main(settings: Settings) -> None:
    with loading():
        from lab.runs import RunFolderError, find_runs, read_readable
        from lab.speedup.comparable import IncomparableError
        from lab.transfer.large import describe_large
        from lab.transfer.series import read_series
        from lab.transfer.write import render_text, write_transfer

    if settings.out:
        refuse_foreign_folder(Path(settings.out), "transfer.json", "transfer.md", "rates.png", "rates.svg")
    try:
        folders, passed = find_runs(settings.runs)
        runs, unreadable = read_readable(folders)
        series, notes = read_series(runs)
    except (RunFolderError, IncomparableError) as error:
        raise ConfigError("\n".join(map(printable, str(error).splitlines()))) from None
    large = describe_large(series, settings.size, settings.context, settings.max_steps)
    written = []
    if settings.out:
        from lab.transfer.figure import draw_rates  # with it comes matplotlib

        try:
            written = write_transfer(series, large, Path(settings.out))
            written += [plot.path for plot in draw_rates(series, Path(settings.out))]
        except OSError as error:
            raise ConfigError(f"cannot write {settings.out}: {error}") from None
    print(render_text(series, large, [*passed, *unreadable, *notes]))
    if written:
        print("\nwrote " + ", ".join(map(str, written)))


PROGRAM = Program(main, Settings, ("runs",), __doc__)
