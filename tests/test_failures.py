"""A machine that cannot run a configuration: no compiler, no memory. The run's status says what would run."""

import json

import pytest
import torch
from training import SMALL, composed, run

import engine.trainer
from engine.failures import CannotRun
from engine.session import train
from lab.runs import read_run

SAID = "InductorError: InvalidCxxCompiler: No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1 for the internal stack trace"
ERRORS = {
    "no compiler": (RuntimeError(SAID), "compile=true: no C++ compiler; compile=false runs"),
    "something else of the compiler": (RuntimeError("graph broke\n\nSet X=1"), "compile=true: graph broke; compile=false runs"),
    "GPU memory": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore"),
        "out of memory (CUDA out of memory. Tried to allocate 2.00 GiB.); try micro_batch_size=4, recompute_layers=2; "
        "dry_run=true estimates the memory",
    ),
    "a machine's memory": (
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        "try micro",
    ),
}


def small(docs, tmp_path, *overrides):
    return composed(*SMALL, f"data.dir={docs}", f"out_dir={tmp_path}", "run_name=x", "model=ngpt", "max_steps=2", *overrides)


@pytest.mark.parametrize("case", ERRORS)
def test_what_fails_before_the_first_step_is_in_the_status(case, docs, tmp_path, monkeypatch):
    error, words = ERRORS[case]

    def fail(*_):
        raise error

    monkeypatch.setattr(engine.trainer, "compile_now", fail)
    with pytest.raises(CannotRun) as refused:
        train(small(docs, tmp_path, "compile=true"))
    assert words in str(refused.value) and "\n" not in str(refused.value) and refused.value.exit_code == 2
    status = json.loads((tmp_path / "x/status.json").read_text())
    assert status["state"] == "failed" and words in status["message"]
    assert read_run(tmp_path / "x").state == "failed", "a comparison can read it and leave it out"
    train(small(docs, tmp_path, "compile=false"))  # as the message says; what failed is no other run
    assert json.loads((tmp_path / "x/status.json").read_text())["state"] == "done"


def test_memory_that_runs_out_in_a_step_is_in_the_status(docs, tmp_path, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(engine.trainer.Trainer, "train_step", fail)
    with pytest.raises(CannotRun, match="try recompute_layers=2;"):
        train(small(docs, tmp_path, "micro_batch_size=1"))
    assert "out of memory" in json.loads((tmp_path / "x/status.json").read_text())["message"]


@pytest.mark.slow
def test_without_a_compiler_one_line_says_what_runs(docs, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent")
    done = run("train.py", *SMALL, f"data.dir={docs}", f"out_dir={tmp_path}", "compile=true", code=2)
    assert done.stderr.strip() == "error: compile=true: no C++ compiler; compile=false runs"
