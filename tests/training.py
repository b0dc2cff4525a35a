"""Running the entry scripts for real, small enough for a test."""

import io
import json
import os
import runpy
import subprocess
import sys
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest

from cli.composition import compose_words, to_dataclass
from engine.checks import check_config
from engine.config import Config

ROOT = Path(__file__).parent.parent

# 2 layers, 32 channels: a step takes some milliseconds.
SMALL = [
    "size=tiny",
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=32",
    "model.sequence_length=32",
    "data=docs",
    "precision=fp32",
    "global_batch_size=8",
    "micro_batch_size=8",
    "learning_rate=0.01",
    "warmup_steps=0",
    "max_steps=12",
    "eval_interval=6",
    "eval_windows=20",
    "log_interval=1",
    "checkpoint_interval=6",
    "device=cpu",
]
# Beside SMALL: 12 sequences a step, two at a time. Tests that compile take it, so that one compilation serves all of them.
COMPILED_SHAPE = ["global_batch_size=12", "micro_batch_size=2"]


def composed(*overrides: str) -> Config:
    """Return the configuration of a command line, to be trained in this process."""
    config = to_dataclass(compose_words("train", overrides), Config)
    check_config(config)
    return config


def environment(**changes: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "TORCHELASTIC"))}
    return kept | {"OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"} | changes


def unmeasured() -> dict[str, str]:
    """Return environment() without coverage, which in a process that cannot write its files could not write its own."""
    return {key: value for key, value in environment().items() if not key.startswith("COVERAGE_")}


def command(script: str, *overrides: str, ranks: int = 1) -> list[str]:
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return [*launcher, str(ROOT / script), *overrides]


def run(
    script: str, *overrides: str, ranks: int = 1, code: int | None = 0, cwd: Path | None = None, **options
) -> subprocess.CompletedProcess:
    """Run an entry script and check its exit code (None: any)."""
    done = subprocess.run(
        command(script, *overrides, ranks=ranks),
        cwd=cwd or ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=560,  # on a machine however busy; pytest's own limit is 600
        **options,
    )
    assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def refusal(script: str, *arguments: object, code: int) -> str:
    """Run an entry script in this process, which has it refused with that exit code; return the one line that it prints.

    What is refused comes before the first step, and Python and torch are started already: a tenth of the time of run().
    """
    out, err = io.StringIO(), io.StringIO()
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ))  # what a script may change
        stack.enter_context(mock.patch.object(sys, "path", [*sys.path]))
        stack.enter_context(mock.patch.object(sys, "argv", [str(ROOT / script), *map(str, arguments)]))
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        stopped = stack.enter_context(pytest.raises(SystemExit))
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert stopped.value.code == code, f"exit code {stopped.value.code}\n{err.getvalue()}"
    assert "step " not in out.getvalue(), "it began to train"
    return error_line(subprocess.CompletedProcess([*map(str, arguments)], code, out.getvalue(), err.getvalue()))


def error_line(done: subprocess.CompletedProcess) -> str:
    """Return the one line that a refused command prints."""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


def metrics(run_dir: Path, key: str) -> dict[int, float]:
    """Return {step: value} of one metric, checking that steps are in order and no line stands twice."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [(r["step"], "val/loss" in r) for r in records]
    assert len(set(steps)) == len(steps) and [s for s, _ in steps] == sorted(s for s, _ in steps)
    return {r["step"]: r[key] for r in records if key in r}


def tensors(run_dir: Path, step: int) -> dict:
    from safetensors.torch import load_file

    folder = run_dir / "checkpoints" / f"step-{step:08d}"
    return load_file(folder / "model.safetensors") | load_file(folder / "optimizer.safetensors")


def assert_same(a: Path, b: Path, step: int = 12) -> None:
    """Check that two runs' weights and optimizer states are equal bit for bit."""
    import torch

    left, right = tensors(a, step), tensors(b, step)
    assert left.keys() == right.keys() and len(left) > 20
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different, different
