"""Is a run that was disturbed the run that was not, and did every session end as its fault explains?"""

import json
import signal
from pathlib import Path

import torch
from safetensors.torch import load_file

from lab.soak.faults import Fault
from lab.soak.job import ORPHAN_SECONDS, SESSION_SECONDS

CLOCK = ("train_seconds", "train/tokens_per_second", "train/mfu", "wandb_id")  # what no two runs have in common


def metrics_of(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCK} for line in lines]


def differences(whole: Path, parts: Path, step: int) -> list[str]:
    """Compare two finished runs at their last step: every tensor, the trainer's state, every line of the metrics."""
    found = []
    left, right = (folder / "checkpoints" / f"step-{step:08d}" for folder in (whole, parts))
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
