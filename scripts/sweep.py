"""Run a sweep: every combination of arms, budgets, learning rates and seeds in a YAML file, each a run of its own.

python scripts/sweep.py sweeps/tiny.yaml [--jobs N] [--nproc N] [--devices 0,1] [--only PATTERN] [--dry-run | --slurm FOLDER]
The same command starts and continues. Exit codes: 0 every point has its result, 1 some failed, 75 stopped by a signal,
2 configuration, 3 data.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # not scripts/, whose names could shadow modules

import argparse  # noqa: E402
import fnmatch  # noqa: E402
import os  # noqa: E402
import shlex  # noqa: E402

import torch  # noqa: E402

from cli.composition import ConfigError  # noqa: E402
from cli.entry import fail  # noqa: E402
from engine.config import Config  # noqa: E402
from lab.sweeps.check import check_data, compose_points, finished_state  # noqa: E402
from lab.sweeps.journal import Journal  # noqa: E402
from lab.sweeps.local import LocalSweep, Result, share_out  # noqa: E402
from lab.sweeps.outcome import last_line  # noqa: E402
from lab.sweeps.plan import Point, Sweep, read_sweep  # noqa: E402
from lab.sweeps.slurm import write_array  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sweep.py", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="the sweep, for example sweeps/tiny.yaml")
    parser.add_argument(
        "--jobs", type=positive, metavar="N", help="points at a time (default: as many as the GPUs hold; 1 on a CPU)"
    )
    parser.add_argument(
        "--nproc",
        type=positive,
        metavar="N",
        default=1,
        help="processes per point, each with a GPU of its own if there are any (default: 1)",
    )
    parser.add_argument("--devices", metavar="0,1,...", help="the GPUs to share out (default: all that are visible)")
    parser.add_argument("--only", metavar="PATTERN", help="run the points whose names match, for example 'ngpt-*-seed1'")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print the commands of what is not finished, run nothing")
    what.add_argument("--slurm", type=Path, metavar="FOLDER", help="write a Slurm array of what is not finished, run nothing")
    return parser.parse_args()


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def visible_devices(chosen: str | None, configs: list[Config]) -> list[str] | None:
    """Return the GPUs to use, None for the CPU."""
    if not torch.cuda.is_available():
        if chosen:
            raise ConfigError(f"--devices {chosen}: this PyTorch finds no CUDA GPU")
        return None
    if all(config.device == "cpu" for config in configs):
        return None
    visible = chosen or os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    return [device.strip() for device in visible.split(",") if device.strip()]


def command_of(point: Point, nproc: int, python: str = "python") -> list[str]:
    """Return a point's command line; torchrun's --standalone takes a free port, so points do not meet."""
    train = "train.py" if Path.cwd() == ROOT else str(ROOT / "train.py")
    launcher = [python] if nproc == 1 else ["torchrun", "--standalone", f"--nproc_per_node={nproc}"]
    if nproc > 1 and python != "python":
        launcher = [python, "-m", "torch.distributed.run", *launcher[1:]]
    return [*launcher, train, *point.overrides]


def report(sweep: Sweep, result: Result, journal: Journal) -> int:
    """Print how the sweep ended and return the exit code."""
    counts = [f"{len(points)} {name}" for name, points in vars(result).items() if points]
    print(f"{sweep.name}: {', '.join(counts)}")
    for point in result.failed:
        log = journal.log_path(point.name)
        print(f"  failed: {point.name}\n    {last_line(log)}\n    {log}")
    if result.unfinished:
        print("the same command continues")
        return 75
    print(f"python scripts/compare.py {shlex.quote(str(sweep.out_dir))}/*")
    return 1 if result.failed else 0


def main() -> int:
    """Run the command line and return its exit code."""
    arguments = parse_arguments()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("start the sweep without torchrun; it starts one for each point (--nproc N)")
    sweep = read_sweep(arguments.file)
    points = [p for p in sweep.points if fnmatch.fnmatchcase(p.name, arguments.only or "*")]
    if not points:
        raise ConfigError(
            f"--only {arguments.only!r} matches none of {len(sweep.points)} points, for example {sweep.points[0].name}"
        )
    configs = compose_points(points, arguments.nproc)

    def finished() -> dict[str, str]:
        states = {point.name: finished_state(point, configs[point.name]) for point in points}
        return {name: state for name, state in states.items() if state}

    if arguments.dry_run or arguments.slurm:
        skipped = finished()
        rest = [point for point in points if point.name not in skipped]
        if arguments.slurm and rest:
            script = write_array(arguments.slurm, sweep, rest, arguments.nproc, arguments.jobs)
            print(f"sbatch {shlex.quote(os.path.relpath(script))}")
        elif arguments.dry_run:
            for point in rest:
                print(shlex.join(command_of(point, arguments.nproc)))
        print(f"{len(points)} points, {len(skipped)} of them finished", file=sys.stderr)
        return 0

    places = share_out(visible_devices(arguments.devices, list(configs.values())), arguments.jobs, arguments.nproc)
    check_data(configs.values())
    journal = Journal(sweep.out_dir)
    local = LocalSweep(
        points, finished(), journal, places, arguments.nproc, lambda point: command_of(point, arguments.nproc, sys.executable)
    )
    result = local.run()
    if not result.unfinished:
        journal.write("finished", **{name: len(group) for name, group in vars(result).items()})
    sys.stdout.flush()
    return report(sweep, result, journal)


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        code = 130
    except OSError as error:
        code = 2
        print(f"error: {error}", file=sys.stderr)
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        fail(error)
    sys.exit(code)
