"""Run a sweep: every combination of arms, budgets, learning rates and seeds in a YAML file, each a run of its own.

    python scripts/sweep.py sweeps/tiny.yaml [jobs=N] [nproc=N] [only='ngpt-*-seed1']
    python scripts/sweep.py sweeps/tiny.yaml dry_run=true        what it would run, and what that costs
    python scripts/sweep.py sweeps/tiny.yaml slurm=FOLDER        write a Slurm array instead

    file=sweeps/tiny.yaml  the sweep, if it is not given without a key
    jobs=null              points at a time; null: as many as the GPUs hold, 1 on a CPU
    nproc=1                processes per point, each with a GPU of its own if there are any
    devices=null           the GPUs to share out, as in 0,1; null: all that are visible
    only=null              run the points whose names match a pattern
    dry_run=false          true: print the commands of what is not finished and the bill; run nothing
    mfu=0.4                model FLOPs utilization that the bill's hours assume
    slurm=null             write a Slurm array of what is not finished to this folder; run nothing

The same command starts and continues. Exit codes: 0 every point has its result, 1 some failed, 75 stopped by a signal,
2 configuration, 3 data.
"""

import fnmatch
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from cli.arguments import PATH, Program
from cli.composition import ConfigError

if TYPE_CHECKING:
    from engine.config import Config
    from lab.sweeps.journal import Journal
    from lab.sweeps.local import Result
    from lab.sweeps.plan import Point, Sweep

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Settings:
    file: str = field(metadata=PATH)
    jobs: Optional[int] = None
    nproc: int = 1
    devices: Optional[str] = None
    only: Optional[str] = None
    dry_run: bool = False
    mfu: float = 0.4
    slurm: Optional[str] = field(default=None, metadata=PATH)


def check(settings: Settings) -> None:
    """Raise ConfigError for values that cannot be."""
    for name in ("jobs", "nproc"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: must be positive")
    if not 0 < settings.mfu <= 1:
        raise ConfigError(f"mfu={settings.mfu}: must be above 0 and at most 1")
    if settings.dry_run and settings.slurm:
        raise ConfigError("dry_run=true and slurm= exclude each other")


def main(settings: Settings) -> int:
    """Run the sweep, or say what it would run; return the exit code."""
    check(settings)
    from lab.sweeps.plan import read_sweep

    sweep = read_sweep(Path(settings.file))
    points = [p for p in sweep.points if fnmatch.fnmatchcase(p.name, settings.only or "*")]
    if not points:
        raise ConfigError(f"only={settings.only}: matches none of {len(sweep.points)} points, for example {sweep.points[0].name}")
    # Imported late: torch takes seconds, and a refusal should come at once.
    from lab.sweeps.branches import detach
    from lab.sweeps.check import check_data, compose_points, finished_state
    from lab.sweeps.journal import Journal
    from lab.sweeps.local import LocalSweep, share_out

    configs = compose_points(points, settings.nproc)

    def finished() -> dict[str, str]:
        states = {point.name: finished_state(point, configs[point.name]) for point in points}
        return {name: state for name, state in states.items() if state}

    if settings.dry_run or settings.slurm:
        skipped = finished()
        return plan(settings, sweep, [point for point in points if point.name not in skipped], len(points), configs)
    places = share_out(visible_devices(settings.devices, list(configs.values())), settings.jobs, settings.nproc)
    check_data(configs.values())
    journal = Journal(sweep.out_dir)
    local = LocalSweep(
        points, finished(), journal, places, settings.nproc, lambda point: command_of(detach(point), settings.nproc, sys.executable)
    )
    result = local.run()
    if not result.unfinished:
        journal.write("finished", **{name: len(group) for name, group in vars(result).items()})
    sys.stdout.flush()
    return report(sweep, result, journal, configs)


def plan(settings: Settings, sweep: "Sweep", rest: "list[Point]", count: int, configs: "dict[str, Config]") -> int:
    """Write the Slurm array, or print the commands and the bill, of what is not finished; return the exit code."""
    from lab.sweeps.bill import describe_bill
    from lab.sweeps.branches import detach, is_ready
    from lab.sweeps.slurm import write_array

    if settings.slurm:
        waiting = {point.name for point in rest}
        ready = [detach(point) for point in rest if is_ready(point, waiting)]
        if len(ready) < len(rest):
            left = f"{len(rest) - len(ready)} branches wait for their trunks"
            print(f"{left}: when these are done, write a further array of them to another folder", file=sys.stderr)
        rest = ready
    if settings.slurm and rest:
        script = write_array(Path(settings.slurm), sweep, rest, settings.nproc, settings.jobs)
        print(f"sbatch {shlex.quote(os.path.relpath(script))}")
    elif settings.dry_run:
        for point in rest:
            print(shlex.join(command_of(point, settings.nproc)))
    print(f"{count} points, {count - len(rest)} of them finished", file=sys.stderr)
    if settings.dry_run and rest:
        sys.stdout.flush()
        print(describe_bill([configs[point.name] for point in rest], settings.mfu), file=sys.stderr)
    return 0


def visible_devices(chosen: str | None, configs: "list[Config]") -> list[str] | None:
    """Return the GPUs to use, None for the CPU."""
    import torch

    if not torch.cuda.is_available():
        if chosen:
            raise ConfigError(f"devices={chosen}: this PyTorch finds no CUDA GPU")
        return None
    if all(config.device == "cpu" for config in configs):
        return None
    visible = chosen or os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    return [device.strip() for device in visible.split(",") if device.strip()]


def command_of(point: "Point", nproc: int, python: str = "python") -> list[str]:
    """Return a point's command line; torchrun's --standalone takes a free port, so points do not meet."""
    train = "train.py" if Path.cwd() == ROOT else str(ROOT / "train.py")
    launcher = [python] if nproc == 1 else ["torchrun", "--standalone", f"--nproc_per_node={nproc}"]
    if nproc > 1 and python != "python":
        launcher = [python, "-m", "torch.distributed.run", *launcher[1:]]
    return [*launcher, train, *point.overrides]


def report(sweep: "Sweep", result: "Result", journal: "Journal", configs: "dict[str, Config]") -> int:
    """Print how the sweep ended and return the exit code."""
    from lab.sweeps.outcome import reason_failed

    counts = [f"{len(points)} {name}" for name, points in vars(result).items() if points]
    print(f"{sweep.name}: {', '.join(counts)}")
    for point in result.failed:
        log = journal.log_path(point.name)
        print(f"  failed: {point.name}\n    {reason_failed(point, log)}\n    {log}")
    if result.unfinished:
        print("the same command continues")
        return 75
    print(next_command(str(sweep.out_dir), list(configs.values())))
    return 1 if result.failed else 0


def next_command(folder: str, configs: "list[Config]") -> str:
    """Return the command that reads a finished sweep.

    Runs of one model that differ in its settings are ablations: compare.py would take them for candidates of one arm, and
    headline the luckiest. Precisions that differ are the parts of a decomposition. Sizes that differ show how the best rate
    moves, if each has its rates and nothing else differs; if not, the sweep is read two arms at a time.
    """
    where = shlex.quote(folder)
    variants: dict[tuple, set[str]] = {}
    rates: dict[tuple, set[float]] = {}
    for config in configs:
        model = {key: value for key, value in config.model.items() if key != "sequence_length"}  # compare.py has sections for it
        arm = model["name"].removesuffix("_ablation"), config.update, config.parametrization, model["n_embd"], model["n_layer"]
        variants.setdefault(arm, set()).add(str(sorted(model.items(), key=str)))
        rates.setdefault(arm, set()).add(config.learning_rate)
    is_varied = any(len(found) > 1 for found in variants.values())
    if len({arm[-2:] for arm in variants}) > 1:
        if is_varied or min(map(len, rates.values())) < 3:
            return f"python scripts/compare.py {where}/ARM-* {where}/OTHER-*"
        return f"python scripts/transfer.py {where}"
    script = "ablations" if is_varied else "compare"
    parts = script == "compare" and len({str(config.precision) for config in configs}) > 1
    return f"python scripts/{script}.py {where}/*" + (" decompose=true" if parts else "")


PROGRAM = Program(main, Settings, ("file",), __doc__)
