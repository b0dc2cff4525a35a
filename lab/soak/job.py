"""One session of a run under test, as a process of its own, and the signals that strike it (Linux)."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lab.soak.faults import Fault

ROOT = Path(__file__).resolve().parents[2]
HANDLED = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
SESSION_SECONDS = 240  # a session that takes longer hangs
ORPHAN_SECONDS = 30  # how long a rank may outlive its launcher


class Job:
    """One session of a run: the process that was started and the ranks below it."""

    def __init__(self, folder: Path, arguments: list[str], ranks: int):
        self.folder, self.ranks = folder, ranks
        self.log = folder.parent / f"{folder.name}.log"
        launcher = [sys.executable]
        if ranks > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", HANDLED]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "TORCHELASTIC"))}
        self.process = subprocess.Popen(
            [*launcher, str(ROOT / "train.py"), *arguments],
            cwd=ROOT,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            env=environment | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        self.started = time.monotonic()

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def is_running(self) -> bool:
        return self.process.poll() is None

    def below(self) -> list[int]:
        """Return the living processes of this run other than the launcher."""
        return [pid for pid in processes_of(self.folder) if pid != self.process.pid]

    def wait_for(self, is_reached: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.is_running() and time.monotonic() < deadline:
            if is_reached():
                return True
            time.sleep(0.002)
        return False

    def steps_done(self) -> int:
        """Return how many steps this session has logged."""
        return self.output().count("| loss ")

    def strike(self, fault: Fault) -> bool:
        """Wait for the fault's moment and send its signals; return whether the job was still running then."""
        if fault.moment == "start":
            self.wait_for(lambda: time.monotonic() - self.started > fault.startup, 60)
        elif not self.wait_for(lambda: self.steps_done() >= fault.steps, SESSION_SECONDS):
            return False
        if fault.moment == "save":
            self.wait_for(lambda: any((self.folder / "checkpoints").glob(".writing-*")), 10)
        for number in fault.signals:
            time.sleep(fault.delay)
            if not self.is_running():
                return number != fault.signals[0]
            below = sorted(self.below())
            victims = {
                "launcher": [self.process.pid],
                "rank": below[int(fault.rank * len(below)) :][:1],
                "all": [self.process.pid, *below],
            }[fault.victim]
            for pid in victims or [self.process.pid]:
                send(pid, number)
        return True

    def finish(self) -> tuple[int | None, float]:
        """Wait for the end; return the exit code (None: it hung) and how long ranks lived on after their launcher."""
        try:
            code = self.process.wait(SESSION_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        ended = time.monotonic()
        while code is not None and self.below() and time.monotonic() - ended < ORPHAN_SECONDS:
            time.sleep(0.1)
        outlived = time.monotonic() - ended
        for pid in processes_of(self.folder):
            send(pid, signal.SIGKILL)
        self.process.wait()
        while self.below():
            time.sleep(0.05)
        return code, outlived


def send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it ended on its own
        os.kill(pid, number)


def processes_of(folder: Path) -> list[int]:
    """Return the living processes that have this run's name on their command line (Linux)."""
    found, words = [], {f"out_dir={folder.parent}".encode(), f"run_name={folder.name}".encode()}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and words <= set((entry / "cmdline").read_bytes().split(b"\0")):
                found.append(int(entry.name))
        except OSError:
            pass  # gone, or not ours
    return found
