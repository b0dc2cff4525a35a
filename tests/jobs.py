"""Jobs of two processes, watched and struck from outside."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from training import ROOT, SMALL, environment, metrics, tensors

STEPS = 150
PATIENCE = 4  # times as long as it takes on an idle machine is waited for anything on a busy one
HANDLED = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", HANDLED]


def arguments(data: Path, run_dir: Path, *overrides: str) -> list[str]:
    return [
        *SMALL,
        "micro_batch_size=4",
        f"max_steps={STEPS}",
        "eval_interval=50",
        "checkpoint_interval=20",
        "keep_checkpoints=3",
        f"data.dir={data}",
        f"out_dir={run_dir.parent}",
        f"run_name={run_dir.name}",
        *overrides,
    ]


def processes_of(run_dir: Path) -> list[int]:
    """Return the living processes with this run's folder and name on their command line."""
    found, words = [], {f"out_dir={run_dir.parent}".encode(), f"run_name={run_dir.name}".encode()}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and words <= set((entry / "cmdline").read_bytes().split(b"\0")):
                found.append(int(entry.name))
        except OSError:
            pass
    return found


def ranks_of(run_dir: Path) -> dict[int, int]:
    """Return {rank: process id} of a run's workers."""
    ranks = {}
    for pid in processes_of(run_dir):
        try:
            rank = re.search(rb"(?:^|\0)RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes())
        except OSError:
            continue
        if rank:
            ranks[int(rank[1])] = pid
    return ranks


def wait_until(is_true, seconds: float, what: str) -> None:
    deadline = time.monotonic() + PATIENCE * seconds
    while not is_true():
        assert time.monotonic() < deadline, f"after {PATIENCE * seconds} s still not: {what}"
        time.sleep(0.01)


class Job:
    """A started command that trains run_dir; leaving the with-block ends whatever is left of it."""

    def __init__(self, run_dir: Path, command: list[str], preexec_fn: Callable[[], None] | None = None, **changes: str):
        self.run_dir = run_dir
        self.log = run_dir.parent / f"{run_dir.name}-{time.monotonic_ns()}.log"
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            env=environment(**changes),
            start_new_session=True,
            preexec_fn=preexec_fn,
        )

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        while left := [*processes_of(self.run_dir), *([self.process.pid] if self.process.poll() is None else [])]:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for_steps(self, count: int) -> None:
        """Wait until this session has done so many steps."""
        wait_until(lambda: self.output.count("| loss ") >= count or self.process.poll() is not None, 120, f"{count} steps")
        assert self.process.poll() is None, self.output[-3000:]

    def finish(self, seconds: float) -> int:
        """Wait for the launcher and everything below it, at most so long; return the launcher's exit code."""
        wait_until(lambda: self.process.poll() is not None, seconds, "the launcher ended\n" + self.output[-3000:])
        wait_until(lambda: not processes_of(self.run_dir), 5, "every process ended")
        return self.process.returncode


_undisturbed: dict[Path, Path] = {}


def undisturbed(data: Path, factory) -> Path:
    """Return the folder of a run of two processes that nothing befell, trained at the first call."""
    if data not in _undisturbed:
        run_dir = factory.mktemp("runs") / "whole"
        with Job(run_dir, [*TORCHRUN, "--standalone", str(ROOT / "train.py"), *arguments(data, run_dir)]) as job:
            assert job.finish(240) == 0, job.output[-3000:]
        _undisturbed[data] = run_dir
    return _undisturbed[data]


def assert_equal_runs(whole: Path, run_dir: Path) -> None:
    """Compare two finished runs bit for bit: weights, optimizer state, metrics."""
    a, b = tensors(whole, STEPS), tensors(run_dir, STEPS)
    assert a.keys() == b.keys() and not [name for name in a if not torch.equal(a[name], b[name])]
    for key in ("train/loss", "train/grad_norm", "val/loss"):
        assert metrics(whole, key) == metrics(run_dir, key) and metrics(whole, key)
