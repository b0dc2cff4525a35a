"""Train tiny runs under random faults and compare each, bit for bit, with an undisturbed one.

python scripts/soak.py MINUTES [SEED] [--folder FOLDER]

A run is started again after every fault until it is done; runs of one process and of two under torchrun alternate, and so
do the arms. SEED chooses the faults (which, when, what is damaged); where exactly a signal lands is up to the clock.
Exit codes: 0 no difference and nothing unexpected, 1 otherwise (the folder is then kept), 2 wrong usage.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import random  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections import Counter  # noqa: E402
from contextlib import suppress  # noqa: E402
from dataclasses import dataclass  # noqa: E402

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from engine.checkpoint import CheckpointError, list_checkpoints, verify_checkpoint  # noqa: E402

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
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
HANDLED = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
CLOCK = ("train_seconds", "train/tokens_per_second", "train/mfu", "wandb_id")  # what no two runs have in common
SESSION_SECONDS = 240  # a session that takes longer hangs
ORPHAN_SECONDS = 30  # how long a rank may outlive its launcher


@dataclass(frozen=True)
class Fault:
    """Signals to a process of a running job, at a moment."""

    signals: tuple[signal.Signals, ...]  # one, or two in a row
    victim: str  # launcher (the process that was started) | rank | all
    moment: str  # start | step | save
    steps: int  # of the session, before it strikes
    delay: float  # seconds, after the moment and between two signals
    startup: float  # seconds after the start, where the moment is start
    rank: float  # in [0, 1): which

    @property
    def kills(self) -> bool:
        return signal.SIGKILL in self.signals

    def __str__(self) -> str:
        return f"{'+'.join(s.name for s in self.signals)} to {self.victim} at {self.moment}"


def choose_fault(rng: random.Random, ranks: int) -> Fault:
    kind = rng.choices(("kill", "ask", "ask twice", "ask, then kill"), (4, 4, 1, 1))[0]
    first, second = rng.choice(ASKING), rng.choice(ASKING)
    chosen = {
        "kill": (signal.SIGKILL,),
        "ask": (first,),
        "ask twice": (first, second),
        "ask, then kill": (first, signal.SIGKILL),
    }
    victim = rng.choice(("launcher", "rank", "all")) if ranks > 1 else "launcher"
    if victim == "all" and kind != "kill":
        victim = "launcher"
    moment = rng.choices(("start", "step", "save"), (1, 5, 3))[0]
    return Fault(
        chosen[kind],
        victim,
        moment,
        rng.randint(1, 120),
        rng.choice((0, rng.random() * 0.02, rng.random() * 0.3)),
        rng.random() * 6,
        rng.random(),
    )


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

    def wait_for(self, is_reached, seconds: float) -> bool:
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


def is_intact(checkpoint: Path) -> bool:
    try:
        verify_checkpoint(checkpoint)
    except CheckpointError:
        return False
    return True


def damage(folder: Path, rng: random.Random) -> tuple[str, int]:
    """Damage the newest checkpoint, if another one is good, or the end of metrics.jsonl; return what and how many bytes."""
    kind = rng.choice(("truncate", "flip", "flip", "empty", "unlink", "torn", "zeros"))
    where, share, bit = rng.random(), rng.random(), rng.randrange(8)
    if kind in ("torn", "zeros"):  # what a crash of the machine leaves of a line that was being written
        path = folder / "metrics.jsonl"
        if not path.exists() or not path.stat().st_size:
            return "", 0
        line = path.read_bytes().rstrip(b"\n").split(b"\n")[-1]
        rest = line[: 1 + int(share * (len(line) - 2))] if kind == "torn" else bytes(100)
        with path.open("ab") as file:
            file.write(rest)
        return f"{kind} last line of metrics.jsonl", len(rest)
    checkpoints = list_checkpoints(folder / "checkpoints")
    if not any(is_intact(path) for path in checkpoints[1:]):
        return "", 0
    files = sorted(checkpoints[0].iterdir())
    if not files:
        return "", 0
    path = files[int(where * len(files))]
    contents = bytearray(path.read_bytes())
    if kind == "flip" and contents:
        contents[int(share * len(contents))] ^= 1 << bit
        path.write_bytes(contents)
        changed = 1
    elif kind == "unlink":
        path.unlink()
        changed = len(contents)
    else:
        size = 0 if kind == "empty" else int(share * len(contents))
        os.truncate(path, size)
        changed = len(contents) - size
    return f"{kind} {path.relative_to(folder)}", changed


def metrics_of(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCK} for line in lines]


def differences(whole: Path, parts: Path) -> list[str]:
    """Compare two finished runs: every tensor of weights and optimizer, the trainer's state, every line of the metrics."""
    found = []
    left, right = (folder / "checkpoints" / f"step-{STEPS:08d}" for folder in (whole, parts))
    for name in ("model.safetensors", "optimizer.safetensors"):
        a, b = load_file(left / name), load_file(right / name)
        found += [f"{name}: the names of the tensors"] * (a.keys() != b.keys())
        found += [f"{name}: {key}" for key in a.keys() & b.keys() if not torch.equal(a[key], b[key])]
    a, b = (json.loads((folder / "trainer.json").read_text()) for folder in (left, right))
    found += [f"trainer.json: {k} {a.get(k)} {b.get(k)}" for k in a | b if k not in CLOCK and a.get(k) != b.get(k)]
    a, b = metrics_of(whole), metrics_of(parts)
    found += [f"metrics.jsonl: {len(a)} and {len(b)} lines"] * (len(a) != len(b))
    found += [f"metrics.jsonl: {x} {y}" for x, y in zip(a, b, strict=False) if x != y]
    return found


def surprises(fault: Fault | None, ranks: int, code: int | None, outlived: float, status: dict, output: str) -> list[str]:
    """Say what of a session's end the fault does not explain."""
    if code is None:
        return [f"no end within {SESSION_SECONDS} s"]
    found = [f"a process lived on {ORPHAN_SECONDS} s after its launcher"] * (outlived >= ORPHAN_SECONDS)
    allowed = {0}
    if fault:
        started = fault.moment != "start"
        if ranks > 1:
            allowed |= {1} | ({-signal.SIGKILL} if fault.kills and fault.victim != "rank" else set())
        elif not fault.kills or len(fault.signals) > 1:
            # The second one may also come after the run has saved and given the signals back: Python was on its way out.
            allowed |= {75, *(128 + s for s in fault.signals[1:])}
            allowed |= {-s for s in fault.signals[1:] if status.get("state") == "preempted"}
        if fault.kills:
            allowed |= {-signal.SIGKILL}
        if not started or status.get("state") == "done":  # before the handlers are there, or after they have done their work
            allowed |= {-s for s in fault.signals} | {128 + s for s in fault.signals}
        asked_once = started and len(fault.signals) == 1 and not fault.kills
        if asked_once and code != 0 and status.get("state") not in ("preempted", "done"):
            found.append(f"asked to stop, but the status is {status}")
        if not started or fault.kills and ranks > 1 or len(fault.signals) > 1:
            output = ""  # what dies while it starts, or loses its peers, may say so at length
    if code not in allowed:
        found.append(f"exit code {code}")
    if "Traceback" in output and (ranks == 1 or "engine/" in output):
        found.append("a traceback")
    return found


class Soak:
    def __init__(self, folder: Path, seed: int):
        self.folder, self.rng = folder, random.Random(seed)
        self.count, self.unexpected, self.different = Counter(), [], []
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
            self.record(number, session, ranks, fault if struck else None, code, outlived, job)
            if time.monotonic() < deadline and self.rng.random() < 0.5:
                what, changed = damage(folder, self.rng)
                if what:
                    self.count["bytes corrupted"] += changed
                    self.count[f"damage: {what.split()[0]}"] += 1
                    print(f"        {what}", flush=True)
                    continue  # whoever had finished must finish again
            if code == 0:
                break
        found = differences(whole, folder)
        self.count["runs completed"] += 1
        self.count["checkpoints quarantined"] += len(list((folder / "checkpoints").glob("*.corrupt-*")))
        self.different += [f"run {number}: {line}" for line in found]
        print(f"run {number} ({arm}, {ranks} process{'es' * (ranks > 1)}): {len(found)} differences", flush=True)
        if not found:
            shutil.rmtree(folder)

    def record(self, number: int, session: int, ranks: int, fault: Fault | None, code: int | None, outlived: float, job: Job):
        try:
            status = json.loads((job.folder / "status.json").read_text())
        except (OSError, ValueError):
            status = {}
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
        for line in surprises(fault, ranks, code, outlived, status, job.output()):
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


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak.sh", description=__doc__.splitlines()[0])
    parser.add_argument("minutes", type=float)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder, deleted after success)")
    options = parser.parse_args()
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="soak-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    soak, started = Soak(folder, options.seed), time.monotonic()
    print(f"soaking for {options.minutes:g} minutes with seed {options.seed} in {folder}", flush=True)
    soak.prepare()
    deadline, number = started + 60 * options.minutes, 0
    while time.monotonic() < deadline:
        soak.run(number, deadline)
        number += 1
    code = soak.report((time.monotonic() - started) / 60)
    if code == 0 and not options.folder:
        shutil.rmtree(folder)
    else:
        print(f"kept: {folder}")
    return code


if __name__ == "__main__":
    sys.exit(main())
