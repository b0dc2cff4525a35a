"""Runs of one process and of two in turn, disturbed until they are done, compared and counted."""

import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from lab.soak.faults import Fault, choose_fault, damage
from lab.soak.job import ROOT, Job
from lab.soak.verdict import differences, surprises
from runfolder.status import read_status

STEPS = 400
# 2 layers, 32 channels: a step takes some milliseconds, so most of the time goes into starting Python.
SETTINGS = [
    "size=tiny",
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=32",
    "model.sequence_length=32",
    "data=docs",
    "precision=fp32",
    "global_batch_size=8",
    "learning_rate=0.003",
    "warmup_steps=0",
    f"max_steps={STEPS}",
    "eval_interval=40",
    "eval_windows=40",
    "log_interval=1",
    "checkpoint_interval=20",
    "keep_checkpoints=3",
    "device=cpu",
]
CASES = [("ngpt", 2), ("gpt", 1), ("gpt", 2), ("ngpt", 1)]  # arm, processes


class Soak:
    def __init__(self, folder: Path, seed: int):
        self.folder, self.rng = folder, random.Random(seed)
        self.count: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self.different: list[str] = []
        self.longest_orphan = 0.0

    def prepare(self) -> None:
        command = [sys.executable, str(ROOT / "prepare_owt.py"), "data=docs", f"data.dir={self.folder / 'docs'}"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    def start(self, name: str, arm: str, ranks: int) -> Job:
        return Job(
            self.folder / name,
            [
                *SETTINGS,
                f"model={arm}",
                f"micro_batch_size={8 // ranks}",
                f"run_name={name}",
                f"data.dir={self.folder / 'docs'}",
                f"out_dir={self.folder}",
            ],
            ranks,
        )

    def undisturbed(self, arm: str, ranks: int) -> Path:
        """Return the folder of the run to compare with, trained at the first call."""
        folder = self.folder / f"whole-{arm}-{ranks}"
        if not folder.exists():
            job = self.start(folder.name, arm, ranks)
            code, _ = job.finish()
            if code != 0:
                sys.exit(f"error: the undisturbed run failed with exit code {code}\n{job.output()[-3000:]}")
        return folder

    def run(self, number: int, deadline: float) -> None:
        """Do one run under faults to its end and compare it; after the deadline it is disturbed no more."""
        arm, ranks = CASES[number % len(CASES)]
        whole, folder = self.undisturbed(arm, ranks), self.folder / f"run-{number:04d}"
        for session in range(100):
            fault = choose_fault(self.rng, ranks) if time.monotonic() < deadline else None
            job = self.start(folder.name, arm, ranks)
            struck = fault is not None and job.strike(fault)
            code, outlived = job.finish()
            self.record(number, session, fault if struck else None, code, outlived, job)
            if time.monotonic() < deadline and self.rng.random() < 0.5:
                what, changed = damage(folder, self.rng)
                if what:
                    self.count["bytes corrupted"] += changed
                    self.count[f"damage: {what.split()[0]}"] += 1
                    print(f"        {what}", flush=True)
                    continue  # whoever had finished must finish again
            if code == 0:
                break
        found = differences(whole, folder, STEPS)
        self.count["runs completed"] += 1
        self.count["checkpoints quarantined"] += len(list((folder / "checkpoints").glob("*.corrupt-*")))
        self.different += [f"run {number}: {line}" for line in found]
        print(f"run {number} ({arm}, {ranks} process{'es' * (ranks > 1)}): {len(found)} differences", flush=True)
        if not found:
            shutil.rmtree(folder)

    def record(self, number: int, session: int, fault: Fault | None, code: int | None, outlived: float, job: Job) -> None:
        """Count a session, and note what of its end its fault does not explain."""
        status = read_status(job.folder)
        self.count["sessions"] += 1
        if fault:
            self.count["kills"] += fault.kills
            self.count["signals"] += len([s for s in fault.signals if s != signal.SIGKILL])
            self.count[f"{'+'.join(s.name for s in fault.signals)} to {fault.victim}"] += 1
        self.longest_orphan = max(self.longest_orphan, outlived)
        print(
            f"  {number}.{session}: {fault or 'undisturbed'}: exit code {code}, {status.get('state')} at step {status.get('step')}",
            flush=True,
        )
        for line in surprises(fault, job.ranks, code, outlived, status, job.output()):
            self.unexpected.append(f"run {number}, session {session} ({fault}): {line}")
            kept = self.folder / f"unexpected-{len(self.unexpected)}.log"
            shutil.copyfile(job.log, kept)
            print(f"  unexpected: {line}; its output is {kept}, and ends\n{job.output()[-1500:]}", flush=True)

    def report(self, minutes: float) -> int:
        print(f"\nminutes: {minutes:.1f}")
        for key in ("runs completed", "sessions", "kills", "signals", "bytes corrupted", "checkpoints quarantined"):
            print(f"{key}: {self.count.pop(key, 0):,}")
        print(f"longest a rank outlived its launcher: {self.longest_orphan:.1f} s")
        print("by kind: " + ", ".join(f"{key}: {value}" for key, value in sorted(self.count.items())))
        print(f"differences found: {len(self.different)}")
        print(f"unexpected: {len(self.unexpected)}")
        for line in (*self.different[:20], *self.unexpected[:20]):
            print(f"  {line}")
        return 1 if self.different or self.unexpected else 0
