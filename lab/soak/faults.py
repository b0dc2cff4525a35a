"""What is done to a run while it trains, and to its files between two sessions; chosen by a seed."""

import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint import CheckpointError, verify_checkpoint
from runfolder.layout import list_checkpoints

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


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
