"""Write a sweep as a Slurm array: one task per point, each as scripts/slurm/train.sbatch runs a single one."""

import os
import shlex
from pathlib import Path

from cli.composition import ConfigError
from lab.sweeps.plan import Point, Sweep

SINGLE = Path("scripts/slurm/train.sbatch")
CPUS_PER_GPU = 4
SET_HERE = ("job-name", "gpus-per-node", "cpus-per-task", "output")

SCRIPT = """\
#!/usr/bin/env bash
# {count} points of the sweep {name}: task N runs line N of commands.txt, saves before the time limit and comes back to the
# queue until the point is done (docs/cluster.md). Submit it with what your cluster needs, for example
#   sbatch --partition=gpu --time=24:00:00 {script}
#SBATCH --job-name={name}
#SBATCH --array=1-{count}{limit}
#SBATCH --gpus-per-node={nproc}
#SBATCH --cpus-per-task={cpus}
#SBATCH --output={logs}/%a.log
{directives}
set -uo pipefail
export SLURM_SUBMIT_DIR={root}
cd "$SLURM_SUBMIT_DIR" || exit 2
arguments=()
eval "arguments=($(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {commands}))" # quoted for the shell by the sweep that wrote them
[ "${{#arguments[@]}}" -gt 2 ] || exit 2
exec bash {single} "${{arguments[@]:2}}" # without "python train.py"
"""


def write_array(folder: Path, sweep: Sweep, points: list[Point], nproc: int, jobs: int | None) -> Path:
    """Write commands.txt and array.sbatch into folder and return the path of the latter.

    Args:
        nproc: GPUs per node.
        jobs: points at a time, None for as many as the cluster gives.

    Raises:
        ConfigError: the working directory is not the repository, or folder cannot be written, or holds an array already:
            queued tasks would read other lines.
    """
    commands, script, logs = (folder.resolve() / name for name in ("commands.txt", "array.sbatch", "logs"))
    if not SINGLE.is_file():
        raise ConfigError(f"{SINGLE}: not found; write the array from the repository's root, where its tasks will run")
    if commands.exists():
        raise ConfigError(f"{commands}: there already, and queued tasks may still read it; choose another folder")
    if any(char in str(logs) for char in "\n\"'\\% "):
        raise ConfigError(f"{logs}: a path for Slurm's logs cannot have spaces, quotes, backslashes or %")
    lines = [line for line in SINGLE.read_text(encoding="utf-8").splitlines() if line.startswith("#SBATCH ")]
    text = SCRIPT.format(
        count=len(points),
        name=sweep.name,
        limit=f"%{jobs}" if jobs else "",
        nproc=nproc,
        cpus=CPUS_PER_GPU * nproc,
        logs=logs,
        directives="\n".join(line for line in lines if not line.startswith(tuple(f"#SBATCH --{key}=" for key in SET_HERE))),
        root=shlex.quote(str(Path.cwd())),
        commands=shlex.quote(str(commands)),
        single=SINGLE,
        script=shlex.quote(os.path.relpath(script)),
    )
    try:
        logs.mkdir(parents=True, exist_ok=True)
        commands.write_text(
            "".join(shlex.join(["python", "train.py", *point.overrides]) + "\n" for point in points), encoding="utf-8"
        )
        script.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from None
    return script
