"""Run a sweep's points on this machine, several at a time, each a process of its own."""

import os
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tqdm import tqdm

from cli.composition import ConfigError
from lab.sweeps.branches import is_ready, own_steps
from lab.sweeps.journal import Journal
from lab.sweeps.outcome import last_line, last_step, outcome_of, status_path, version_of
from lab.sweeps.plan import Point
from lab.sweeps.processes import Signals, kill_tree, start_process
from runfolder.status import read_json

ATTEMPTS = 2  # a failed point is tried once more
POLL_SECONDS = 0.2


def share_out(devices: list[str] | None, jobs: int | None, nproc: int) -> list[str | None]:
    """Return for each place where a point can run its CUDA_VISIBLE_DEVICES, None on a machine without.

    Args:
        devices: the GPUs to use, None for the CPU.
        jobs: points at a time, None for as many as there are groups of nproc devices (on the CPU: one); more than that
            makes points share devices.
        nproc: processes, so devices, per point.
    """
    if devices is None:
        return [None] * (jobs or 1)
    groups = [",".join(devices[i : i + nproc]) for i in range(0, len(devices) - nproc + 1, nproc)]
    if not groups:
        raise ConfigError(f"nproc={nproc}: there are only {len(devices)} devices ({','.join(devices)})")
    return [groups[i % len(groups)] for i in range(jobs or len(groups))]


@dataclass
class Attempt:
    """A point that is running."""

    point: Point
    place: str | None
    process: subprocess.Popen
    started: float
    status_before: tuple[int, int] | None


@dataclass
class Result:
    """How the sweep stands at its end: the points by outcome."""

    done: list[Point] = field(default_factory=list)
    diverged: list[Point] = field(default_factory=list)
    failed: list[Point] = field(default_factory=list)
    unfinished: list[Point] = field(default_factory=list)  # only after a signal


class LocalSweep:
    """Start, watch and end the points.

    Args:
        finished: names of the points whose run folders hold a result already, and which (done or diverged).
        places: from share_out; one point runs in each at a time.
        command: a point's command line.
    """

    def __init__(
        self,
        points: list[Point],
        finished: dict[str, str],
        journal: Journal,
        places: list[str | None],
        nproc: int,
        command: Callable[[Point], list[str]],
    ):
        self.points, self.journal, self.places, self.command = points, journal, list(places), command
        self.states = dict(finished)  # name -> done | diverged | failed
        self.failures = journal.failures()
        for point in points:
            if point.name not in self.states and self.failures[point.name] >= ATTEMPTS:
                self.states[point.name] = "failed"  # before a kill; the sweep came not to its end
        self.waiting = deque(point for point in points if point.name not in self.states)
        self.running: list[Attempt] = []
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, cores // (len(places) * nproc))  # the environment's own choice prevails
        self.environment = {"OMP_NUM_THREADS": str(threads), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "300"} | dict(os.environ)

    def run(self) -> Result:
        """Run what is not finished; after a signal, end the points in order and return early."""
        tqdm.monitor_interval = 0  # no thread beside the one that starts processes
        total = sum(map(own_steps, self.points))
        with (
            Signals() as signals,
            tqdm(total=total, initial=self.steps(), unit="step", disable=None, dynamic_ncols=True) as bar,
        ):
            self.bar, heard = bar, 0
            self.total, self.began, self.steps_before = total, time.monotonic(), self.steps()
            while self.running or self.waiting and not signals.count:
                while self.places and not signals.count and (point := self.take_next()):
                    self.start(point)
                if signals.count > heard:
                    heard = signals.count
                    self.stop(kill=heard > 1)
                for attempt in [a for a in self.running if a.process.poll() is not None]:
                    self.finish(attempt, is_stopping=signals.count > 0)
                self.show()
                time.sleep(POLL_SECONDS)
        result = Result()
        for point in self.points:
            getattr(result, self.states.get(point.name, "unfinished")).append(point)
        return result

    def take_next(self) -> Point | None:
        """Return the first waiting point that can start, and take it out; None if there is none."""
        unsettled = {point.name for point in self.waiting} | {attempt.point.name for attempt in self.running}
        point = next((point for point in self.waiting if is_ready(point, unsettled)), None)
        if point:
            self.waiting.remove(point)
        return point

    def start(self, point: Point) -> None:
        place, command = self.places.pop(0), self.command(point)
        environment = self.environment | ({} if place is None else {"CUDA_VISIBLE_DEVICES": place})
        number = self.failures[point.name] + 1
        status_before = version_of(status_path(point))
        self.journal.write("start", point=point.name, attempt=number, devices=place)
        with self.journal.log_path(point.name).open("ab") as log:
            log.write(f"--- {time.strftime('%F %T')} attempt {number}: {shlex.join(command)}\n".encode())
            log.flush()
            process = start_process(command, environment, log, self.journal.points_lock.fileno())
        self.running.append(Attempt(point, place, process, time.monotonic(), status_before))

    def stop(self, kill: bool) -> None:
        """Ask the running points to save and end; with kill, end them and all that they started at once."""
        self.say("killing the points" if kill else f"stopping: {len(self.running)} points save and end; again to kill them")
        for attempt in self.running:
            if kill:
                kill_tree(attempt.process.pid)
            else:
                attempt.process.terminate()

    def finish(self, attempt: Attempt, is_stopping: bool) -> None:
        """Note how a point ended, and let it wait for its turn again if it should."""
        self.running.remove(attempt)
        self.places.append(attempt.place)
        point, code, seconds = attempt.point, attempt.process.returncode, time.monotonic() - attempt.started
        status = status_path(point)
        wrote_status = version_of(status) not in (None, attempt.status_before)
        outcome = outcome_of(code, read_json(status).get("state") if wrote_status else None)
        if is_stopping and outcome == "failed":
            outcome = "stopped"  # by us, perhaps before it could save: no fault of its own
        self.journal.write("end", point=point.name, outcome=outcome, exit_code=code, seconds=round(seconds, 1))
        message = ""
        if outcome in ("done", "diverged"):
            self.states[point.name] = outcome
        elif outcome == "failed":
            self.failures[point.name] += 1
            message = f" (exit code {code}: {last_line(self.journal.log_path(point.name))})"
            if self.failures[point.name] < ATTEMPTS:
                self.waiting.append(point)
                message += "; it will be tried once more"
            else:
                self.states[point.name] = "failed"
        else:  # preempted or stopped
            self.waiting.append(point)
        if outcome == "failed" or self.bar.disable:
            counts = f"{len(self.states)} of {len(self.points)} runs have ended"
            self.say(f"{point.name}: {outcome} after {seconds:.0f} s{message}; {counts}{self.time_left()}")

    def time_left(self) -> str:
        """Say about how long the rest takes at the pace of this start, in optimizer steps; empty where nothing is left."""
        seconds, steps = time.monotonic() - self.began, self.steps()
        if steps >= self.total or steps <= self.steps_before:
            return ""
        left = seconds / (steps - self.steps_before) * (self.total - steps)
        return f", about {left:.0f} s left" if left < 90 else f", about {left / 60:.0f} min left"

    def steps(self) -> int:
        """Return the optimizer steps done so far, over all points; a branch's begin at its trunk's."""
        running = {attempt.point.name for attempt in self.running}
        return sum(
            max(last_step(p) - p.first_step, 0) if p.name in running else own_steps(p) if p.name in self.states else 0
            for p in self.points
        )

    def show(self) -> None:
        if not self.bar.disable:
            failed = sum(state == "failed" for state in self.states.values())
            self.bar.set_description(f"{len(self.states)}/{len(self.points)} points", refresh=False)
            names = ", ".join(attempt.point.name for attempt in self.running)
            self.bar.set_postfix_str((f"{failed} failed; " if failed else "") + names, refresh=False)
            self.bar.n = self.steps()
            self.bar.refresh()

    def say(self, line: str) -> None:
        if self.bar.disable:
            print(line, file=sys.stderr, flush=True)
        else:
            self.bar.write(line, file=sys.stderr)
