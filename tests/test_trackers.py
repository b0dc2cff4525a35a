"""Weights & Biases and TensorBoard show what metrics.jsonl says, whatever befalls the run or the tracker."""

import json
import signal
import struct
import subprocess
import sys
import threading
import time

import pytest
from training import ROOT, SMALL, command, composed, environment, metrics, run

import engine.trackers
from engine.session import train
from engine.trackers import TensorBoardSink, WandbSink

BOTH = ["wandb.mode=offline", "tensorboard=true"]


def arguments(docs, folder, name, *overrides):
    return [*SMALL, f"data.dir={docs}", f"out_dir={folder}", f"run_name={name}", *overrides]


def wandb_records(path):
    """Yield what a .wandb file holds: a LevelDB log of protobuf records; a torn end is left out."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # in one piece, or the last
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def whole_records(path):
    """Return the records of a run that has ended, of which W&B's own process may write the last a moment later."""
    records, deadline = list(wandb_records(path)), time.monotonic() + 60
    while not any(record.HasField("exit") for record in records) and time.monotonic() < deadline:
        time.sleep(0.02)
        records = list(wandb_records(path))
    assert any(record.HasField("exit") for record in records), "its end is not in the file"
    return records


def wandb_rows(folder):
    """Return the rows of a run's one offline folder, by step, checking that they come in order; and its summary."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    rows, summary = {}, {}
    for record in whole_records(path):
        if record.HasField("history"):
            row = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
            assert record.history.step.num == row["step"] > max(rows, default=-1)
            rows[row["step"]] = row
        for item in record.summary.update:
            summary[item.key or item.nested_key[0]] = json.loads(item.value_json)
    return rows, summary


def board(folder):
    """Return {tag: [(step, value)]} of a run's event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    return scalars(accumulator)


def scalars(accumulator):
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def assert_trackers_equal_the_file(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    keys = {key for record in records for key in record if "/" in key and record[key] is not None}
    assert {"train/loss", "train/tokens_per_second", "val/loss", "scale/sqk"} <= keys
    rows, _ = wandb_rows(folder)
    shown = board(folder)
    assert set(shown) == keys
    for key in keys:
        values = [(r["step"], r["tokens"], r[key]) for r in records if r.get(key) is not None]
        assert [(s, row["tokens"], row[key]) for s, row in rows.items() if key in row] == values, key
        assert [step for step, _ in shown[key]] == [tokens for _, tokens, _ in values], key
        assert [value for _, value in shown[key]] == pytest.approx([v for *_, v in values], rel=1e-6), key


@pytest.mark.slow
def test_after_a_kill_the_trackers_show_what_the_file_says(docs, tmp_path):
    """Killed after a checkpoint and in the middle of telling; the second job does some steps again."""
    words = arguments(docs, tmp_path, "x", "model=ngpt", "max_steps=300", "eval_interval=50", *BOTH)
    run("tests/faulty_train.py", f"signal_at=160,{signal.SIGKILL:d}", *words, code=-signal.SIGKILL)
    folder = tmp_path / "x"
    for part in ("checkpoints/step-*", "wandb/offline-run-*/*.wandb", "tensorboard/*tfevents*"):
        assert list(folder.glob(part)), part
    (before,) = folder.glob("wandb/offline-run-*")
    done = run("train.py", *words)
    assert "begins where its checkpoint left it, at step " in done.stdout
    assert sorted(metrics(folder, "train/loss")) == list(range(1, 301)), "killed too late to show anything?"
    assert_trackers_equal_the_file(folder)
    (after,) = folder.glob("wandb/offline-run-*")
    assert after.name.rsplit("-")[-1] == before.name.rsplit("-")[-1] and after.name != before.name
    assert (before.parent / f"superseded-{before.name}").is_dir(), "set aside, not deleted"
    _, summary = wandb_rows(folder)
    val = metrics(folder, "val/loss")
    assert summary["final_val_loss"] == val[300] and summary["best_val_loss"] == min(val.values())
    assert summary["tokens"] == 300 * 8 * 32 and summary["tokens_per_second"] > 0 < summary["train_seconds"]


@pytest.mark.slow
def test_after_a_rollback_the_trackers_show_what_the_file_says(docs, tmp_path):
    """Steps 7 to 9 are taken back and done on other data."""
    words = arguments(docs, tmp_path, "x", "model=ngpt", "on_nonfinite=rollback", *BOTH)
    run("tests/faulty_train.py", f"poison={8 * 9 + 3}", *words)
    assert (tmp_path / "x/metrics.stale.jsonl").exists()
    assert_trackers_equal_the_file(tmp_path / "x")


@pytest.mark.slow
def test_runs_of_different_batch_sizes_overlay_by_tokens(docs, tmp_path):
    """And a kill before the first checkpoint does not lose the run's id."""
    for name, batch in (("small", 4), ("large", 8)):
        sizes = [f"global_batch_size={batch}", f"micro_batch_size={batch}", f"max_steps={48 // batch}"]
        train(composed(*arguments(docs, tmp_path, name, *BOTH, "eval_interval=3", *sizes)))
        rows, _ = wandb_rows(tmp_path / name)
        assert max(row["tokens"] for row in rows.values()) == 48 * 32
        assert board(tmp_path / name)["val/loss"][-1][0] == 48 * 32
        (path,) = (tmp_path / name).glob("wandb/offline-run-*/*.wandb")
        defined = {r.metric.glob_name or r.metric.name: r.metric for r in wandb_records(path) if r.HasField("metric")}
        assert defined["*"].step_metric == "tokens"
        assert engine.trackers.choose_wandb_id(None, tmp_path / name) == path.parent.name.rsplit("-")[-1]


def test_a_tensorboard_that_looks_on_forgets_what_was_taken_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = composed(*SMALL, f"out_dir={tmp_path}", "run_name=x")

    def write(losses):
        sink = TensorBoardSink(config, {})
        for step, loss in enumerate(losses, 1):
            sink.log({"step": step, "tokens": step * 256, "train_seconds": 0.5 * step, "train/loss": loss})
        sink.close(True)

    write([5.0, 4.0, 3.0])
    onlooker = EventAccumulator(str(tmp_path / "x/tensorboard"))
    assert len(scalars(onlooker)["train/loss"]) == 3
    time.sleep(1.1)  # TensorBoard takes the files in the order of their names, which have seconds
    write([5.0, 4.0, 2.5, 2.0])
    assert scalars(onlooker)["train/loss"] == [(256, 5.0), (512, 4.0), (768, 2.5), (1024, 2.0)]
    assert [e.wall_time for e in onlooker.Scalars("train/loss")] == [0.5, 1.0, 1.5, 2.0], "relative time is training's"


class FakeRun:
    """W&B's side of a run that has `step` rows already; a fault says where it fails."""

    def __init__(self, step=0, fault=None):
        self.step, self.fault, self.rows, self.summary, self.settings = step, fault, [], {}, {}

    def init(self, **settings):
        self.settings = settings
        if self.fault == "init":
            raise SystemExit("no network")
        if self.fault == "hanging init":
            threading.Event().wait(30)
        return self

    def define_metric(self, *_, **__):
        pass

    def log(self, row, step):
        if self.fault == "log":
            raise ConnectionError("the network\nis cut")
        self.rows.append((step, dict(row)))

    def finish(self):
        if self.fault == "finish":
            threading.Event().wait(30)


def test_wandb_is_told_who_and_where(docs, tmp_path, monkeypatch):
    fake = FakeRun()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    words = ["wandb.mode=online", "wandb.entity=team", "wandb.group=ladder", "wandb.tags=[a,b]", "max_steps=1"]
    train(composed(*arguments(docs, tmp_path, "x", *words)))
    expected = {"entity": "team", "project": "gpt-vs-ngpt", "group": "ladder", "tags": ["a", "b"], "name": "x"}
    assert expected.items() <= fake.settings.items()


def test_a_missing_package_is_said_before_the_first_step(docs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engine.trackers, "find_spec", lambda name: None)
    for name in ("wandb", "tensorboard"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    config = composed(*arguments(docs, tmp_path, "x", "wandb.mode=offline", "tensorboard=true"))
    assert engine.trackers.open_trackers(config, {}, "id", []) == []
    assert [line.split(":")[1] for line in capsys.readouterr().err.splitlines()] == [" wandb is off", " tensorboard is off"]


def test_online_only_what_the_server_lacks_is_sent(docs, tmp_path, monkeypatch):
    config = composed(*SMALL, f"out_dir={tmp_path}", "wandb.mode=online")
    fake = FakeRun(step=3)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    sink = WandbSink(config, {}, "abc123")
    for step in (1, 2, 3, 4):
        sink.log({"step": step, "tokens": step, "train_seconds": step, "train/loss": 9.0 - step, "train/mfu": None})
    sink.log({"step": 4, "tokens": 4, "train_seconds": 4, "val/loss": 6.0})
    sink.log({"step": 5, "tokens": 5, "train_seconds": 5, "train/loss": 4.0})
    sink.close(is_last_row_whole=False)  # its validation was put off: the next job sends the row whole
    assert fake.settings["id"] == "abc123" and fake.settings["resume"] == "allow"
    assert [(step, row.get("val/loss")) for step, row in fake.rows] == [(3, None), (4, 6.0)]
    assert "train/mfu" not in fake.rows[0][1] and fake.summary["final_val_loss"] == 6.0


@pytest.mark.parametrize("fault", ["init", "hanging init", "log", "finish"])
def test_a_tracker_that_fails_or_hangs_costs_one_warning(fault, docs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engine.trackers, "CLOSE_SECONDS", 0.5)
    monkeypatch.setitem(sys.modules, "wandb", FakeRun(fault=fault))
    train(composed(*arguments(docs, tmp_path, "x", "wandb.mode=online", "tensorboard=true")))
    (warning,) = capsys.readouterr().err.strip().splitlines()
    expected = "wandb did not finish in 0.5 s" if fault in ("hanging init", "finish") else "wandb is off from here ("
    assert warning.startswith(f"warning: {expected}") and warning.endswith("metrics.jsonl has everything")
    assert sorted(metrics(tmp_path / "x", "train/loss")) == list(range(1, 13))
    assert len(board(tmp_path / "x")["train/loss"]) == 12, "the other tracker goes on"
    assert json.loads((tmp_path / "x/status.json").read_text())["state"] == "done"


@pytest.mark.slow
def test_missing_packages_are_a_warning_each_and_unused_ones_are_not_imported(docs, tmp_path):
    fakes = tmp_path / "fakes"
    fakes.mkdir()
    for name in ("wandb", "tensorboard"):
        (fakes / f"{name}.py").write_text("raise ModuleNotFoundError('no such package')")
    for name, overrides, expected in (("x", BOTH, ["tensorboard", "wandb"]), ("y", [], [])):
        done = subprocess.run(
            command("train.py", *arguments(docs, tmp_path, name, *overrides)),
            cwd=ROOT,
            env=environment(PYTHONPATH=str(fakes)),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0
        assert sorted(line.split()[1] for line in done.stderr.splitlines()) == expected, done.stderr
        assert all("is off from here (ModuleNotFoundError: " in line for line in done.stderr.splitlines())
        assert "done: val" in done.stdout


@pytest.mark.slow
@pytest.mark.distributed
def test_only_the_first_rank_tracks(docs, tmp_path):
    run("train.py", *arguments(docs, tmp_path, "x", "model=ngpt", "micro_batch_size=4", *BOTH), ranks=2)
    assert len(list((tmp_path / "x/tensorboard").iterdir())) == len(list(tmp_path.glob("x/wandb/*-run-*"))) == 1
    assert_trackers_equal_the_file(tmp_path / "x")


def test_training_does_not_load_what_it_does_not_need():
    code = (
        "import sys, train, engine.session; "
        "print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'wandb', 'tensorboard', 'datasets', 'matplotlib', 'sympy', 'pyarrow', 'pandas', 'torchvision'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
