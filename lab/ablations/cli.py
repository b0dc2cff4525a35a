"""Print what each change to nGPT costs, beside the paper's tables 4 to 6.

    python scripts/ablations.py runs/ablations_tiny/* [out=report/ablations]

    runs=runs/A,runs/B   the run folders, if they are not given without a key; files among them are passed over
    out=null             folder to write ablations.json, ablations.md and a forest plot to; null: only print
    base=null            name of a run of the base; null: the setting that differs least from the others

Exit codes: 0 printed, 2 the runs cannot be compared or cannot be read.
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
    out: Optional[str] = field(default=None, metadata=PATH)
    base: Optional[str] = None


def main(settings: Settings) -> None:
    with loading():
        from lab.ablations.table import AblationError, analyze_ablations
        from lab.ablations.write import render_text, write_ablations
        from lab.runs import RunFolderError, read_runs

    try:
        if settings.out:
            refuse_foreign_folder(Path(settings.out), "ablations.json", "ablations.md", "ablations.png", "ablations.svg")
        ablations = analyze_ablations(read_runs([run for run in settings.runs if not Path(run).is_file()]), settings.base)
        written = write_ablations(ablations, Path(settings.out)) if settings.out else []
        if written and settings.out:
            from lab.ablations.forest import draw_forest  # with it comes matplotlib

            written += [plot.path for plot in draw_forest(ablations, Path(settings.out))]
    except (RunFolderError, AblationError) as error:
        raise ConfigError(printable(" ".join(str(error).split()))) from None
    except OSError as error:
        raise ConfigError(f"cannot write {settings.out}: {error}") from None
    print(render_text(ablations))
    if written:
        print("\nwrote " + ", ".join(map(str, written)))


PROGRAM = Program(main, Settings, ("runs",), __doc__)
