"""Compare finished runs: how many times fewer tokens, and how much less time, one arm needs for another's loss.

    python scripts/compare.py runs/A runs/B ...          # runs, or folders of runs: runs/tiny
    python scripts/compare.py runs/decomposition_tiny/* decompose=true

    runs=runs/A,runs/B    the run folders, if they are not given without a key; what is no run is passed over with a note
    out=null              folder to write; null: report/ and a name made from the runs, which no other comparison has
    baseline=null         the arm to measure against; null: gpt, else the first given
    across=null           settings of which each value becomes an arm of its own: precision, or a dotted key such as warmup_steps
    decompose=false       split arms by precision and take the speedup apart: learning rate, bf16-stored matrices, QK-norm, the rest
    untuned_rate=null     with decompose=true, the untuned baseline's learning rate; null: of those run, the nearest to nGPT's best
    beside=null           other results for the page: folders (report/extrapolation, report/inspection) and text files

Writes report.html, speedup.json, ladder.csv and each picture as PNG and SVG; docs/method.md says what the numbers are.
Exit codes: 0 compared, 2 the runs cannot be compared or cannot be read.
"""

import hashlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from cli.arguments import PATH, Program
from cli.composition import ConfigError
from cli.loading import loading
from lab.ownership import refuse_foreign_folder
from lab.words import printable
from runfolder.layout import is_run_folder


@dataclass
class Settings:
    runs: list[str] = field(metadata=PATH)
    out: Optional[str] = field(default=None, metadata=PATH)
    baseline: Optional[str] = None
    across: list[str] = field(default_factory=list)
    decompose: bool = False
    untuned_rate: Optional[float] = None
    beside: list[str] = field(default_factory=list, metadata=PATH)


def main(settings: Settings) -> None:
    with loading():
        from lab.runs import RunFolderError, find_runs, read_readable
        from lab.speedup.comparable import IncomparableError
        from lab.speedup.report import build_report

    if settings.untuned_rate is not None and not 0 < settings.untuned_rate < float("inf"):
        raise ConfigError(f"untuned_rate={settings.untuned_rate:g}: must be above 0")
    try:
        folders, notes = find_runs(settings.runs)
        runs, unreadable = read_readable(folders)
        report = build_report(runs, settings.baseline, tuple(settings.across), settings.decompose, settings.untuned_rate)
    except (RunFolderError, IncomparableError) as error:
        raise ConfigError("\n".join(map(printable, str(error).splitlines()))) from None
    for place in settings.beside:
        if not Path(place).exists():
            raise ConfigError(f"beside={place}: no such file or folder")
    with loading():
        from lab.speedup.record import Made  # drawing loads matplotlib, and a refusal should come at once
        from lab.speedup.text import render_text
        from lab.speedup.write import write_report

    made = Made(describe_command(settings), time.strftime("%Y-%m-%d %H:%M"), tuple(map(Path, settings.beside)))
    out = Path(settings.out) if settings.out else choose_folder(settings, folders)
    try:
        refuse_foreign_folder(out, "speedup.json", "report.html", "ladder.csv", "*.png", "*.svg", "section-*/*.[ps][nv]g")
        written = write_report(report, out, made)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error}") from None
    for note in notes + unreadable:
        print(f"note: passed over: {printable(note)}", file=sys.stderr)
    print("\n".join(map(printable, render_text(report).split("\n"))))
    print(f"\nwrote {written[0]}, {written[1].name}, {written[2].name} and {len(written) - 3} pictures (PNG and SVG)", flush=True)


def describe_command(settings: Settings) -> str:
    """Return the command that makes the report again; the runs of a folder that were all given as FOLDER/*."""
    given: dict[Path, list[Path]] = {}
    for run in map(Path, settings.runs):
        given.setdefault(run.parent, []).append(run)
    words: list[str] = []
    for parent, runs in given.items():
        everything = {path for path in parent.iterdir() if not path.name.startswith(".")} if parent.is_dir() else set(runs)
        is_whole = len(runs) > 3 and set(runs) >= everything
        words += [f"{shlex.quote(str(parent))}/*"] if is_whole else [shlex.quote(str(run)) for run in runs]
    for key, value in vars(settings).items():
        if value and key != "runs":
            text = "true" if value is True else ",".join(value) if isinstance(value, list) else str(value)
            words.append(f"{key}={shlex.quote(text)}")
    return f"python scripts/compare.py {' '.join(words)}"


def choose_folder(settings: Settings, folders: Sequence[Path]) -> Path:
    """Return report/<name> for runs: the folder of which they are all, or their own names, and what the settings change.

    The report of other runs that bears this name is not overwritten: the next free number follows.
    """
    runs = [folder.resolve() for folder in folders]
    parents, names = {run.parent for run in runs}, [run.name for run in runs]
    everything = {path for parent in parents for path in parent.iterdir() if is_run_folder(path)}
    name = runs[0].parent.name if len(parents) == 1 and len(runs) > 2 and set(runs) >= everything else "-vs-".join(names)
    if len(name) > 80:
        name = f"{len(names)}-runs-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"
    changes = [*(["parts"] if settings.decompose else []), *settings.across, *([settings.baseline] if settings.baseline else [])]
    changes += [f"{settings.untuned_rate:g}"] if settings.untuned_rate else []
    name = re.sub(r"[^\w.+-]+", "_", "-".join([name, *changes]))
    ours = {os.path.realpath(folder) for folder in folders}
    numbered = (Path("report") / (name if number == 1 else f"{name}-{number}") for number in range(1, 10_000))
    return next(out for out in numbered if not out.exists() or set() < _list_runs(out) <= ours)


def _list_runs(out: Path) -> set[str]:
    """Return the real paths of the runs that a folder's report compares, empty where there is no report."""
    try:
        sections = json.loads((out / "speedup.json").read_text(encoding="utf-8"))["sections"]
        return {os.path.realpath(run["path"]) for section in sections for run in section["runs"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


PROGRAM = Program(main, Settings, ("runs",), __doc__)
