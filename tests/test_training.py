"""train.py as a user runs it: exact resumption, accumulation, several processes, the run folder."""

import json
import shutil
import signal

import pytest
import torch
from training import SMALL, assert_same, error_line, metrics, run, tensors

from corpus.manifest import TOKENIZER_NAME

ARMS = ("gpt", "ngpt")


def train(docs, folder, name, *overrides, **options):
    run("train.py", *SMALL, f"data.dir={docs}", f"out_dir={folder}", f"run_name={name}", *overrides, **options)
    return folder / name


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(arm, docs, tmp_path):
    """Under accumulation; the kill comes as SIGKILL after step 20, when the checkpoint of step 18 may be half written."""
    options = [f"model={arm}", "micro_batch_size=4", "max_steps=40", "eval_interval=20", "keep_checkpoints=9"]
    whole = train(docs, tmp_path, "whole", *options)
    arguments = [*SMALL, *options, f"data.dir={docs}", f"out_dir={tmp_path}", "run_name=parts"]
    run("tests/faulty_train.py", f"signal_at=20,{signal.SIGKILL:d}", *arguments, code=-signal.SIGKILL)
    parts = tmp_path / "parts"
    assert (parts / "checkpoints/step-00000012").exists() and not (parts / "checkpoints/step-00000024").exists()
    assert json.loads((parts / "status.json").read_text())["state"] == "running"
    run("train.py", *arguments)
    assert_same(whole, parts, step=40)
    for key in ("train/loss", "val/loss", "train/grad_norm"):
        assert metrics(whole, key) == metrics(parts, key) and len(metrics(whole, key)) >= 3


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("arm", ARMS)
def test_two_processes_see_the_same_windows_and_agree_with_one(arm, docs, tmp_path):
    one = train(docs, tmp_path, "one", f"model={arm}")
    two = train(docs, tmp_path, "two", f"model={arm}", "micro_batch_size=2", ranks=2)
    for key in ("train/loss", "val/loss"):
        a, b = metrics(one, key), metrics(two, key)
        assert a.keys() == b.keys()
        assert max(abs(a[s] / b[s] - 1) for s in a) < 1e-6, key
    assert json.loads((two / "environment.json").read_text())["world_size"] == 2


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_started_by_two_processes_is_continued_by_one(docs, tmp_path):
    one = train(docs, tmp_path, "one")
    two = train(docs, tmp_path, "two", "micro_batch_size=4", ranks=2)
    for path in (two / "checkpoints").glob("step-00000012"):
        path.rename(tmp_path / "aside")
    (two / "status.json").unlink()
    train(docs, tmp_path, "two")
    a, b = metrics(one, "train/loss"), metrics(two, "train/loss")
    assert a.keys() == b.keys() and max(abs(a[s] / b[s] - 1) for s in a) < 1e-6


@pytest.mark.slow
def test_cadence_and_micro_batch_do_not_change_the_trajectory(docs, tmp_path):
    a = train(docs, tmp_path, "a", "model=ngpt")
    b = train(docs, tmp_path, "b", "model=ngpt", "eval_interval=5", "checkpoint_interval=4", "log_interval=3")
    assert_same(a, b)
    c = train(docs, tmp_path, "c", "model=ngpt", "micro_batch_size=2")
    x, y = metrics(a, "train/loss"), metrics(c, "train/loss")
    assert max(abs(x[s] / y[s] - 1) for s in x) < 1e-6


@pytest.mark.slow
def test_both_arms_and_seeds_see_what_they_should(docs, tmp_path):
    """Another seed is another order and another initialization; bf16 and bf16_weights train too."""
    losses = {seed: metrics(train(docs, tmp_path, f"seed{seed}", f"seed={seed}"), "train/loss") for seed in (1, 2)}
    assert losses[1] != losses[2]
    for precision in ("bf16", "bf16_weights"):
        for arm in ARMS:
            folder = train(docs, tmp_path, f"{arm}-{precision}", f"model={arm}", f"precision={precision}")
            loss = metrics(folder, "train/loss")
            assert loss[12] < loss[1]
    saved = tensors(folder, 12)
    assert saved["blocks.0.mlp.up_proj.weight"].dtype == torch.bfloat16
    assert saved["embedding.weight"].dtype == torch.float32


def test_the_run_folder_explains_itself(docs, tmp_path):
    run("train.py", *SMALL, f"data.dir={docs}", f"out_dir={tmp_path}", "model=ngpt")
    (folder,) = tmp_path.iterdir()
    assert folder.name == "ngpt-tiny-1k-docs-12steps-lr0.01-fp32-seed1337"
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "config.yaml",
        "environment.json",
        "console.log",
        "metrics.jsonl",
        "status.json",
        "checkpoints",
        TOKENIZER_NAME,
        "run.lock",
    }
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-00000006", "step-00000012"]
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["step"], status["message"]) == ("done", 12, "")
    assert status["started"] <= status["finished"] and status["val_loss"] == metrics(folder, "val/loss")[12]
    environment_ = json.loads((folder / "environment.json").read_text())
    assert environment_["tokens_per_step"] == 8 * 32 and environment_["evaluation"]["windows"] == 20
    assert sorted(metrics(folder, "val/loss")) == [0, 6, 12] and sorted(metrics(folder, "train/loss")) == list(range(1, 13))
    val, bits = metrics(folder, "val/loss")[12], metrics(folder, "val/bits_per_byte")[12]
    evaluation = environment_["evaluation"]
    assert abs(bits - val * evaluation["tokens"] / evaluation["bytes"] / 0.6931471805599453) < 1e-9
    (folder / "status.json").write_text('{"state": "running", "step": 6, "message": ""}')  # killed at the very end
    again = run("train.py", *SMALL, f"data.dir={docs}", f"out_dir={tmp_path}", "model=ngpt")
    assert "all 12 steps are done" in again.stdout
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["step"], status["message"]) == ("done", 12, "")


SIXTY = ["max_steps=60", "checkpoint_interval=1000", "eval_interval=60"]


@pytest.fixture(scope="module")
def sixty(docs, tmp_path_factory):
    """A run of 60 steps that nothing befell."""
    return train(docs, tmp_path_factory.mktemp("sixty"), "whole", *SIXTY)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_saves_and_exits_with_75_and_the_same_command_continues(number, docs, sixty, tmp_path):
    arguments = [*SMALL, *SIXTY, f"data.dir={docs}", f"out_dir={tmp_path}", "run_name=parts"]
    run("tests/faulty_train.py", f"signal_at=10,{number:d}", *arguments, code=75)
    status = json.loads((tmp_path / "parts/status.json").read_text())
    assert status["state"] == "preempted" and 10 <= status["step"] < 60
    run("train.py", *arguments)
    assert_same(sixty, tmp_path / "parts", step=60)


def test_divergence_stops_with_5_before_the_weights_are_harmed(docs, tmp_path):
    done = run("train.py", *SMALL, f"data.dir={docs}", f"out_dir={tmp_path}", "run_name=x", "learning_rate=1e30", code=5)
    assert "try a lower learning_rate" in error_line(done)
    assert json.loads((tmp_path / "x/status.json").read_text())["state"] == "diverged"


@pytest.mark.slow
def test_wandb_offline_needs_no_account_and_keeps_its_run_over_a_restart(docs, tmp_path):
    options = ["wandb.mode=offline", "max_steps=12"]
    folder = train(docs, tmp_path, "x", *options)
    (first,) = {p.name.rsplit("-", 1)[1] for p in (folder / "wandb").glob("offline-run-*")}
    trainer = json.loads((folder / "checkpoints/step-00000012/trainer.json").read_text())
    assert trainer["wandb_id"] == first
    (folder / "checkpoints/step-00000012").rename(tmp_path / "aside")
    train(docs, tmp_path, "x", *options)
    assert {p.name.rsplit("-", 1)[1] for p in (folder / "wandb").glob("offline-run-*")} == {first}


@pytest.mark.slow
def test_compiled_equals_eager(docs, trained, tmp_path):
    if not shutil.which("g++"):
        pytest.skip("torch.compile on the CPU needs a C++ compiler")
    for arm in ARMS:
        eager = metrics(trained / arm, "train/loss")
        options = [f"model={arm}", "compile=true", "micro_batch_size=2"]  # COMPILED_SHAPE's
        compiled = metrics(train(docs, tmp_path, arm, *options), "train/loss")
        assert max(abs(eager[s] - compiled[s]) for s in eager) < 1e-4
