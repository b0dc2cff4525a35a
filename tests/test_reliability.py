"""What can happen to a run, and what must then happen. docs/reliability.md says which test stands for which fault."""

import errno
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import faulty_train
import pytest
import torch
from jobs import ranks_of
from training import ROOT, SMALL, assert_same, command, composed, environment, error_line, metrics, run, unmeasured

import engine.checkpoint
import engine.checkpoint_writer
import engine.evaluate
import engine.loss
import engine.run_data
import engine.trainer
from corpus.manifest import DataError
from engine.checkpoint import CheckpointError, TrainerState, check_free_space, find_checkpoint, take_snapshot, verify_checkpoint
from engine.checkpoint_writer import CheckpointWriter
from engine.interruption import Preempted
from engine.models import build_model
from engine.optimization import build_optimizer
from engine.session import train
from engine.stability import Diverged, max_norm_deviation, note_loss, scale_means
from runfolder.files import sha256_of
from runfolder.metrics import LineFile


@pytest.fixture
def faults(monkeypatch):
    """The functions that the faults replace are put back afterwards."""
    for owner, name in (
        (engine.trainer.TrainingWindows, "__init__"),
        (engine.loss.NextTokenLoss, "forward"),
        (engine.checkpoint, "sync_path"),
        (engine.checkpoint_writer.CheckpointWriter, "RETRY_SECONDS"),
        (engine.evaluate.ValidationSet, "batches"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    return faulty_train


def here(docs, folder, name, *overrides):
    """Train in this process; return the run's folder."""
    train(composed(*SMALL, f"data.dir={docs}", f"out_dir={folder}", f"run_name={name}", *overrides))
    return folder / name


def arguments(docs, folder, name, *overrides):
    return [*SMALL, f"data.dir={docs}", f"out_dir={folder}", f"run_name={name}", *overrides]


def status(folder):
    return json.loads((folder / "status.json").read_text())


def events(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(trained):
    """The run that nothing disturbs."""
    return trained / "ngpt"


def lines_of(folder):
    """The metrics without their times."""
    keep = ("train/loss", "train/grad_norm", "train/learning_rate", "val/loss", "val/bits_per_byte", "scale/sqk")
    return {key: metrics(folder, key) for key in keep}


# Checkpoints


def test_training_does_not_wait_for_the_disk_but_the_next_save_does(monkeypatch, tmp_path):
    opened, writing = threading.Event(), []

    def write(folder, snapshot, keep, keep_every, keep_steps):
        writing.append(snapshot)
        assert opened.wait(10)

    monkeypatch.setattr(engine.checkpoint_writer, "write_checkpoint", write)
    writer = CheckpointWriter(tmp_path, 2, None)
    writer.save("first")
    second = threading.Thread(target=writer.save, args=("second",))
    second.start()
    time.sleep(0.2)
    assert writing == ["first"] and second.is_alive()
    opened.set()
    second.join(10)
    writer.wait()
    assert writing == ["first", "second"]


def test_a_snapshot_is_a_copy(docs):
    config = composed(*SMALL, "model=ngpt")
    model = build_model(config.model)
    optimizer = build_optimizer(model, config)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    state = TrainerState(1, 0.0, None)
    snapshot = take_snapshot(model, optimizer, state)
    before = {name: value.clone() for name, value in (snapshot.model | snapshot.optimizer).items()}
    optimizer.step()
    state.step = 2
    assert snapshot.state["step"] == 1
    assert all(torch.equal(before[name], value) for name, value in (snapshot.model | snapshot.optimizer).items())


def test_a_disk_that_comes_back_is_no_error_and_one_that_stays_away_is(monkeypatch, tmp_path, capsys):
    fails = [True, True, False]
    monkeypatch.setattr(CheckpointWriter, "RETRY_SECONDS", (0.01, 0.01))

    def write(*_):
        if fails.pop(0):
            raise CheckpointError("the disk is away")

    monkeypatch.setattr(engine.checkpoint_writer, "write_checkpoint", write)
    writer = CheckpointWriter(tmp_path, 2, None)
    writer.save("a")
    writer.wait()
    assert not fails and writer.failed == 0 and not capsys.readouterr().err
    fails.extend([True] * 20)
    for _ in range(writer.MAX_FAILED):
        writer.save("b")
        writer._join()
    assert capsys.readouterr().err.count("the disk is away; training goes on") == 3
    with pytest.raises(CheckpointError, match="the disk is away"):
        writer.save("c")


def test_room_is_checked_before_writing(monkeypatch, tmp_path):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    check_free_space(tmp_path, free // 2)
    with pytest.raises(CheckpointError, match="a checkpoint needs .* MB free"):
        check_free_space(tmp_path, free)


def test_keep_every_keeps_for_good(docs, tmp_path):
    folder = here(docs, tmp_path, "x", "checkpoint_interval=2", "keep_checkpoints=1", "keep_every=4", "eval_interval=12")
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000008", "step-00000012"]


@pytest.mark.slow
def test_full_disk_leaves_the_checkpoint_before_and_the_run_can_go_on(docs, tmp_path, whole):
    """RLIMIT_FSIZE makes writes beyond 50 kB fail, as a full disk does."""
    folder = here(docs, tmp_path, "x", "model=ngpt")
    for path in (folder / "checkpoints").glob("step-00000012"):
        path.rename(tmp_path / "aside")
    words = arguments(docs, tmp_path, "x", "model=ngpt")
    done = subprocess.run(
        command("tests/faulty_train.py", "quick_retries", *words),
        cwd=ROOT,
        env=unmeasured(),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert done.returncode == 4, done.stderr
    assert "could not be written" in done.stderr and "Traceback" not in done.stderr
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-00000006"]
    verify_checkpoint(folder / "checkpoints/step-00000006")
    assert status(folder)["state"] == "failed"
    here(docs, tmp_path, "x", "model=ngpt")
    assert_same(folder, whole)
    assert lines_of(folder) == lines_of(whole)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_save_that_fails_on_rank_0_ends_every_rank(docs, tmp_path):
    started = time.monotonic()
    done = run("tests/faulty_train.py", "failing_save", *arguments(docs, tmp_path, "x", "micro_batch_size=4"), ranks=2, code=1)
    assert "Read-only file system" in done.stderr and time.monotonic() - started < 120
    assert status(tmp_path / "x")["state"] == "failed" and "Read-only" in status(tmp_path / "x")["message"]


def test_a_pickle_in_a_checkpoint_is_refused_and_not_run(docs, tmp_path):
    folder = here(docs, tmp_path, "x")
    proof = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {proof}",)

    for checkpoint in (folder / "checkpoints").iterdir():
        file = checkpoint / "model.safetensors"
        file.write_bytes(pickle.dumps(Payload()))
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        manifest["files"][file.name] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="model.safetensors"):
        here(docs, tmp_path, "x", "eval_interval=100")
    (folder / "checkpoints/step-00000012").rename(tmp_path / "aside")
    with pytest.raises(CheckpointError, match="model.safetensors"):
        here(docs, tmp_path, "x")
    assert not proof.exists()


# One job per run


@pytest.mark.slow
def test_two_jobs_cannot_write_one_run_and_a_dead_owner_holds_nothing(docs, tmp_path):
    words = arguments(docs, tmp_path, "x", "max_steps=100000", "eval_interval=100000", "checkpoint_interval=50")
    first = subprocess.Popen(command("train.py", *words), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    for line in first.stdout:
        if "step      60/" in line:
            break
    refused = run("train.py", *words, code=2)
    assert "another job is writing this run" in error_line(refused) and f'"pid": {first.pid}' in refused.stderr
    never = run("train.py", *words, "resume=never", code=2)
    assert "another job" in error_line(never) and sorted(p.name for p in tmp_path.iterdir()) == ["x"]
    first.kill()
    first.communicate()
    third = subprocess.Popen(command("train.py", *words), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    for line in third.stdout:
        if "/100,000 |" in line:
            assert int(line.split("/")[0].split()[-1].replace(",", "")) > 50  # resumed
            break
    third.kill()
    third.communicate()


# Signals


def test_a_signal_in_an_evaluation_puts_it_off(docs, tmp_path, whole, faults):
    faults.signal_in_evaluation(signal.SIGTERM)
    with pytest.raises(Preempted):
        here(docs, tmp_path, "x", "model=ngpt")
    folder = tmp_path / "x"
    assert status(folder)["state"] == "preempted" and status(folder)["step"] == 6
    assert sorted(metrics(folder, "val/loss")) == [0]
    before = {path: path.read_bytes() for path in (folder / "checkpoints").rglob("*.*")}
    here(docs, tmp_path, "x", "model=ngpt", "eval_interval=6")
    assert lines_of(folder) == lines_of(whole)
    # Killed after that validation and before the next checkpoint: it is done once more, and stands once.
    shutil.rmtree(folder / "checkpoints/step-00000012")
    assert all(path.read_bytes() == content for path, content in before.items())
    here(docs, tmp_path, "x", "model=ngpt")
    assert_same(folder, whole)
    assert lines_of(folder) == lines_of(whole)


def test_a_signal_in_the_last_evaluation_is_made_up_for_once(docs, tmp_path, faults, capsys):
    faults.signal_in_evaluation(signal.SIGTERM)
    with pytest.raises(Preempted):
        here(docs, tmp_path, "x", "model=gpt", "eval_interval=12")
    folder = tmp_path / "x"
    assert status(folder)["state"] == "preempted" and sorted(metrics(folder, "val/loss")) == [0]
    here(docs, tmp_path, "x", "model=gpt", "eval_interval=12")
    assert status(folder)["state"] == "done" and sorted(metrics(folder, "val/loss")) == [0, 12]
    before = (folder / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    here(docs, tmp_path, "x", "model=gpt", "eval_interval=12")
    assert "all 12 steps are done" in capsys.readouterr().out and (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_second_signal_ends_a_save_at_once_and_harms_nothing(docs, tmp_path, whole):
    words = arguments(docs, tmp_path, "x", "model=ngpt")
    process = subprocess.Popen(
        command("tests/faulty_train.py", "slow_save=600", *words),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "saving" in line:
            break
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None  # it waits for the save
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    process.stdout.close()
    assert find_checkpoint(tmp_path / "x/checkpoints") is None
    here(docs, tmp_path, "x", "model=ngpt")
    assert_same(tmp_path / "x", whole)
    assert [p.name for p in (tmp_path / "x/checkpoints").glob(".*")] == []


@pytest.mark.slow
@pytest.mark.distributed
def test_a_signal_to_one_rank_stops_all_at_one_step(docs, tmp_path):
    words = arguments(
        docs, tmp_path, "x", "micro_batch_size=4", "max_steps=100000", "eval_interval=100000", "checkpoint_interval=100000"
    )
    job = subprocess.Popen(
        command("train.py", *words, ranks=2),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in job.stdout:
        if "step      10/" in line:
            break
    ranks = ranks_of(tmp_path / "x")
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGTERM)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 1  # torchrun has no other code
    assert status(tmp_path / "x")["state"] == "preempted", err
    (checkpoint,) = (tmp_path / "x/checkpoints").iterdir()
    assert int(checkpoint.name[5:]) == status(tmp_path / "x")["step"]


# Numbers


def test_stop_names_the_windows_and_leaves_the_weights(docs, tmp_path, faults):
    faults.poison(8 * 7 + 3)  # in the 8th step's batch
    with pytest.raises(Diverged, match="step 8: loss nan"):
        here(docs, tmp_path, "x", "model=ngpt", "micro_batch_size=2")
    folder = tmp_path / "x"
    assert status(folder)["state"] == "diverged" and max(metrics(folder, "train/loss")) == 7
    (event,) = events(folder)
    assert event["event"] == "nonfinite" and event["step"] == 8
    config = composed(*SMALL, f"data.dir={docs}")
    windows = engine.trainer.TrainingWindows(engine.run_data.open_data(config).train, 32, config.seed)
    assert event["windows"] == [windows.window_of(8 * 7 + 2), windows.window_of(8 * 7 + 3)]  # of that micro batch


def test_skip_leaves_one_step_out(docs, tmp_path, faults, whole):
    faults.poison(8 * 7 + 3)
    folder = here(docs, tmp_path, "x", "model=ngpt", "on_nonfinite=skip")
    losses = metrics(folder, "train/loss")
    assert sorted(losses) == [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12]
    assert {s: v for s, v in metrics(whole, "train/loss").items() if s < 8} == {s: v for s, v in losses.items() if s < 8}
    saved = json.loads((folder / "checkpoints/step-00000012/trainer.json").read_text())
    assert saved["nonfinite_events"] == 1 and status(folder)["state"] == "done"


def test_rollback_goes_on_with_other_data(docs, tmp_path, faults, whole):
    faults.poison(8 * 9 + 3)  # step 10; the last checkpoint is that of step 6
    folder = here(docs, tmp_path, "x", "model=ngpt", "on_nonfinite=rollback", "log_interval=1")
    losses, undisturbed = metrics(folder, "train/loss"), metrics(whole, "train/loss")
    assert sorted(losses) == list(range(1, 13))
    assert all(losses[s] == undisturbed[s] for s in range(1, 7)) and losses[7] != undisturbed[7]
    saved = json.loads((folder / "checkpoints/step-00000012/trainer.json").read_text())
    assert saved["skipped_batches"] == 4 and saved["nonfinite_events"] == 1  # step 7 took the batch after the bad one
    stale = [json.loads(line)["step"] for line in (folder / "metrics.stale.jsonl").read_text().splitlines()]
    assert stale == [7, 8, 9]


def test_the_number_of_retries_is_bounded(docs, tmp_path, faults):
    faults.poison(8 * 7, 8 * 8, 8 * 9)
    with pytest.raises(Diverged, match="and 2 times before"):
        here(docs, tmp_path, "x", "on_nonfinite=skip", "max_nonfinite=2")
    with pytest.raises(Diverged, match="no checkpoint to go back to"):
        here(docs, tmp_path, "y", "on_nonfinite=rollback", "checkpoint_interval=100")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_what_is_nan_on_one_rank_is_agreed_by_all(policy, docs, tmp_path):
    """Sample 7 of step 8 is the second rank's."""
    words = arguments(docs, tmp_path, "x", "micro_batch_size=4", f"on_nonfinite={policy}")
    done = run("tests/faulty_train.py", f"poison={8 * 7 + 7}", *words, ranks=2, code=1 if policy == "stop" else 0)
    (event,) = events(tmp_path / "x")
    assert event["step"] == 8 and len(event["windows"]) == 4
    assert status(tmp_path / "x")["state"] == ("diverged" if policy == "stop" else "done"), done.stderr


def test_a_spike_is_flagged_and_only_a_spike():
    generator = torch.Generator().manual_seed(0)
    state = TrainerState(0, 0.0, None)
    for step in range(300):
        loss = 3 + 7 / (step + 1) + 0.05 * torch.randn((), generator=generator).item()
        assert note_loss(state, loss) is None, step
    assert note_loss(state, 300.0) > 6
    assert note_loss(state, 3.05) is None  # the spike has not moved the mean


def test_the_unit_norm_invariant_is_reported_and_its_breach_is_an_error(docs, tmp_path, whole, monkeypatch):
    reported = metrics(whole, "train/max_norm_deviation")
    assert sorted(reported) == [0, 6, 12] and max(reported.values()) < 1e-6
    assert sorted(key for key in json.loads((whole / "metrics.jsonl").read_text().splitlines()[0]) if "scale/" in key)
    monkeypatch.setattr("ngpt.model.Transformer.post_optimizer_step", lambda self: None)
    with pytest.raises(Diverged, match="off the unit sphere"):
        here(docs, tmp_path, "x", "model=ngpt")


def test_a_zero_row_stays_zero_and_is_reported_not_nan():
    model = build_model(composed(*SMALL, "model=ngpt").model)
    with torch.no_grad():
        model.blocks[-1].attn.q_proj.weight[3] = 0  # the last block is looked at as well
    model.post_optimizer_step()
    assert torch.isfinite(model.blocks[-1].attn.q_proj.weight).all() and max_norm_deviation(model) == 1.0
    assert scale_means(model)["sv"] == 1.0 and max_norm_deviation(build_model(composed(*SMALL).model)) is None


# What is written along the way


def test_a_full_disk_keeps_metrics_in_memory_until_it_has_room(tmp_path, monkeypatch, capsys):
    file = LineFile(tmp_path / "metrics.jsonl")
    file.write("first\n")
    write = os.write

    def half(descriptor, data):
        if len(data) < 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:-3])

    monkeypatch.setattr(os, "write", half)
    file.write("second\n")
    file.write("third\n")
    assert (tmp_path / "metrics.jsonl").read_text() == "first\n"
    assert capsys.readouterr().err.count("No space left") == 1
    monkeypatch.setattr(os, "write", write)
    file.write("fourth\n")
    file.close()
    assert (tmp_path / "metrics.jsonl").read_text() == "first\nsecond\nthird\nfourth\n"


@pytest.mark.slow
def test_a_console_that_is_full_or_gone_does_not_end_a_run(docs, tmp_path):
    words = arguments(docs, tmp_path, "full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("train.py", *words),
            cwd=ROOT,
            env=environment(LANG="C", LC_ALL="C"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 0 and status(tmp_path / "full")["state"] == "done", done.stderr
    line = " ".join(map(repr, command("train.py", *arguments(docs, tmp_path, "gone")))) + " | head -n 1"
    subprocess.run(line, shell=True, cwd=ROOT, env=environment(), capture_output=True, check=True)
    deadline = time.monotonic() + 60
    while status(tmp_path / "gone")["state"] == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert status(tmp_path / "gone")["state"] == "done"


@pytest.mark.parametrize("fails_in", ["import", "init", "log"])
def test_a_tracker_that_fails_is_one_warning(fails_in, docs, tmp_path, monkeypatch, capsys):
    class Tracker:
        id = "abc"

        def define_metric(self, *_, **__):
            pass

        def log(self, *_):
            raise ConnectionError("the network is cut")

        def finish(self):
            pass

    def init(**_):
        if fails_in == "init":
            raise ConnectionError("the network is cut")
        return Tracker()

    stub = None if fails_in == "import" else type("wandb", (), {"init": staticmethod(init)})
    monkeypatch.setitem(sys.modules, "wandb", stub)
    folder = here(docs, tmp_path, "x", "wandb.mode=online")
    assert capsys.readouterr().err.count("warning: wandb is off") == 1
    assert sorted(metrics(folder, "train/loss")) == list(range(1, 13))


@pytest.mark.slow
def test_secrets_are_not_written(docs, tmp_path):
    secrets = {"WANDB_API_KEY": "5ec2e7" * 7, "HF_TOKEN": "hf_notforprint", "AWS_SECRET_ACCESS_KEY": "notforprint"}
    words = arguments(docs, tmp_path, "x", "wandb.mode=offline")
    done = subprocess.run(command("train.py", *words), cwd=ROOT, env=environment(**secrets), capture_output=True, check=True)
    written = done.stdout + done.stderr + b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert not [name for name, secret in secrets.items() if secret.encode() in written]


# Data


def test_a_flipped_bit_in_the_data_is_found(docs, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(docs, data)
    content = bytearray((data / "train.bin").read_bytes())
    content[-1000] ^= 2
    (data / "train.bin").write_bytes(content)
    for verify in ("fast", "full"):  # of a file this small the fast check reads every block
        with pytest.raises(DataError, match="train.bin: its contents have changed"):
            here(data, tmp_path, "x", f"verify_data={verify}")
    assert not (tmp_path / "x").exists()
