"""Sweeps: the plan from the file, the points as processes, what is left after every way to be stopped."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from training import ROOT, SMALL, environment, metrics

import lab.sweeps.local
from cli.composition import ConfigError
from engine.config_file import save_config
from lab.sweeps.check import compose_points, finished_state
from lab.sweeps.journal import Journal
from lab.sweeps.local import LocalSweep, share_out
from lab.sweeps.outcome import outcome_of
from lab.sweeps.plan import Point, read_sweep, sweep_from
from lab.sweeps.slurm import write_array

SHIPPED = sorted((ROOT / "sweeps").glob("*.yaml"))
PAPER = {  # thousands of steps in figure 7: GPT, nGPT
    "0.5b_1k": ([50, 100, 200, 400, 800], [25, 50, 100, 200]),
    "0.5b_4k": ([13, 25, 50, 100], [6, 13, 25, 50, 100]),
    "0.5b_8k": ([25, 50, 100], [3, 4, 6, 10, 25, 50, 100]),
    "1b_1k": ([50, 100, 200, 400, 800], [13, 25, 50, 100, 200]),
    "1b_4k": ([25, 50, 100, 200], [6, 13, 20, 25, 50, 100, 200]),
    "1b_8k": ([25, 50, 100, 200], [6, 13, 25, 50, 100]),
}


@pytest.fixture(autouse=True)
def no_long_wait_for_a_stub(monkeypatch):
    """Look often at the stubs, which end at once; a sweep that a test starts as a program looks as often as it always does."""
    monkeypatch.setattr(lab.sweeps.local, "POLL_SECONDS", 0.02)


# --- The plan


def test_the_tiny_ladder_is_63_commands_in_the_stated_order():
    points = read_sweep(ROOT / "sweeps/tiny.yaml").points
    assert len(points) == 63 and [p.name for p in points[:8]] == [
        "gpt-100steps-lr0.0015-seed1",
        "ngpt-100steps-lr0.003-seed1",
        "gpt-100steps-lr0.003-seed1",
        "ngpt-100steps-lr0.006-seed1",
        "gpt-100steps-lr0.006-seed1",
        "ngpt-100steps-lr0.012-seed1",
        "gpt-100steps-lr0.012-seed1",
        "gpt-200steps-lr0.0015-seed1",
    ]
    assert [p.name.rsplit("seed")[1] for p in points] == [*"1" * 21, *"2" * 21, *"3" * 21]
    common = "experiment=quickstart compile=true eval_interval=100 checkpoint_interval=100000"
    assert " ".join(points[7].overrides) == (
        f"{common} model=gpt max_steps=200 learning_rate=0.0015 seed=1 warmup_steps=40 out_dir=runs/tiny "
        "run_name=gpt-200steps-lr0.0015-seed1"
    )
    assert " ".join(points[-1].overrides) == (
        f"{common} model=gpt max_steps=400 learning_rate=0.012 seed=3 warmup_steps=80 out_dir=runs/tiny "
        "run_name=gpt-400steps-lr0.012-seed3"
    )


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_arm_of_every_shipped_sweep_can_run(path):
    sweep = read_sweep(path)
    assert sweep.name == path.stem, "the folder of its runs is named like the file"
    if path.stem.startswith(("ablations", "decomposition")):  # their every arm: test_ablations
        sweep = replace(sweep, points=(sweep.points[0], sweep.points[-1]))
    one_per_arm = {point.name.split("steps-")[0].rpartition("-")[0]: point for point in reversed(sweep.points)}
    configs = compose_points(one_per_arm.values(), world_size=8 if path.stem.endswith("k") else 1)
    for point in one_per_arm.values():
        assert (configs[point.name].run_dir, configs[point.name].max_steps) == (point.run_dir, point.max_steps)


@pytest.mark.parametrize("name", PAPER)
def test_the_ladders_of_the_paper_have_its_budgets(name):
    points = read_sweep(ROOT / f"sweeps/paper_{name}.yaml").points
    for arm, budgets in zip(("gpt", "ngpt"), PAPER[name], strict=True):
        assert sorted({p.max_steps // 1000 for p in points if p.name.startswith(arm)}) == budgets
    rates = {o.split("=")[1] for p in points for o in p.overrides if o.startswith("learning_rate=")}
    last = {"1k": 3, "4k": 5, "8k": 6}[name[-2:]]
    assert rates == {f"{n / 1000:g}" for n in range(1, last + 1)}


def sweep_of(text: str):
    return sweep_from(yaml.safe_load(text))


def test_an_arm_prevails_and_other_keys_are_axes():
    sweep = sweep_of("""
name: x
overrides: [experiment=quickstart]
arms:
  a: {overrides: [model=gpt], seed: 7, axes: {weight_decay: 0.5}, warmup_fraction: 0.25}
  b: {overrides: [model=ngpt], max_steps: [10, 1e2], learning_rate: 3e-3}
max_steps: 10
learning_rate: 0.1
seed: [1, 2]
axes: {weight_decay: [0.0, 0.1], precision: [bf16, fp32], compile: [null, true]}
""")
    names = [point.name for point in sweep.points]
    assert names[:2] == [
        "a-10steps-lr0.1-seed7-weight_decay0.5-precisionbf16-compilenull",
        "a-10steps-lr0.1-seed7-weight_decay0.5-precisionbf16-compiletrue",
    ]
    assert names[4:8] == [
        "b-10steps-lr0.003-seed1-weight_decay0-precisionbf16-compilenull",
        "b-10steps-lr0.003-seed1-weight_decay0-precisionbf16-compiletrue",
        "b-10steps-lr0.003-seed1-weight_decay0-precisionfp32-compilenull",
        "b-10steps-lr0.003-seed1-weight_decay0-precisionfp32-compiletrue",
    ]
    assert len(names) == 2 * 2 * 8 + 4
    (point,) = [p for p in sweep.points if p.name == "a-10steps-lr0.1-seed7-weight_decay0.5-precisionfp32-compiletrue"]
    assert "warmup_steps=2" in point.overrides and "weight_decay=0.5" in point.overrides
    assert not any(o.startswith("warmup_steps") for p in sweep.points if p.name.startswith("b-") for o in p.overrides)
    config = compose_points([point], world_size=1)[point.name]
    assert (config.weight_decay, config.precision.name, config.compile, config.warmup_steps) == (0.5, "fp32", True, 2)


BASE: dict[str, Any] = {
    "name": "x",
    "arms": {"a": {"overrides": ["experiment=quickstart", "model=gpt", "warmup_steps=0"]}},
    "max_steps": 10,
    "learning_rate": 0.1,
    "seed": 1,
}
MISTAKES = [  # what is changed, what the message says
    ({"name": "../x"}, "name: '../x'; use letters"),
    ({"name": None}, "name: None"),
    ({"arms": {}}, "there are no points"),
    ({"arms": ["gpt"]}, "arms: must be a mapping"),
    ({"sead": 1}, "unknown key 'sead': did you mean 'seed'?"),
    ({"arms": {"a": {"overides": []}}}, "unknown key 'arms.a.overides': did you mean 'overrides'?"),
    ({"overrides": "model=gpt"}, "overrides: must be a list"),
    ({"overrides": ["learning_rate=1"]}, "'learning_rate=1' sets a key that the sweep sets itself"),
    ({"overrides": ["+out_dir=elsewhere"]}, "sets a key that the sweep sets itself"),
    ({"max_steps": []}, "max_steps: an empty list"),
    ({"max_steps": 1.5}, "max_steps: 1.5 is not a whole number"),
    ({"seed": True}, "seed: True is not a whole number"),
    ({"learning_rate": "fast"}, "learning_rate: 'fast' is not a number"),
    ({"learning_rate": [1e-3, "1e-3"]}, "two points have the name a-10steps-lr0.001-seed1"),
    ({"learning_rate": None}, "learning_rate: None is not a number"),
    ({"axes": {"seed": [1]}}, "axes.seed: belongs outside of axes"),
    ({"axes": {"weight_decay": [[1]]}}, "axes.weight_decay: [1] is not a single value"),
    ({"arms": {"a": {"warmup_fraction": 2}}}, "arms.a.warmup_fraction: 2 is not a number"),
    ({"learning_rate": -1}, "a-10steps-lr-1-seed1: learning_rate=-1.0: must be positive"),
    ({"overrides": ["weight_decya=1"]}, "a-10steps-lr0.1-seed1: unknown key 'weight_decya': did you mean 'weight_decay'?"),
    ({"overrides": ["size=2b"]}, "size=2b: no such choice"),
    ({"overrides": ["micro_batch_size=3"]}, "micro_batch_size=3 does not divide"),
    ({"overrides": ["--multirun"]}, "cannot read the override '--multirun'"),
    ({"arms": {"a/b": BASE["arms"]["a"]}}, "use letters, digits"),
]


@pytest.mark.parametrize("change, says", MISTAKES, ids=[says[:40] for _, says in MISTAKES])
def test_a_mistake_is_named_before_anything_starts(change, says):
    with pytest.raises(ConfigError) as refused:
        compose_points(sweep_from(BASE | change).points, world_size=1)
    assert says in str(refused.value) and "\n" not in str(refused.value)


# --- Points as processes; a stub stands for train.py: it keeps steps, saves on SIGTERM, and tells when it runs twice

STUB = """
import fcntl, json, os, pathlib, signal, subprocess, sys, time
folder, behaviour, steps = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
folder.mkdir(parents=True, exist_ok=True)
lock = open(folder / "lock", "w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    (folder / "TWICE").touch()
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
attempts = (folder / "attempts").read_text().count("x") if (folder / "attempts").exists() else 0
(folder / "attempts").open("a").write("x")
def end(state, code):
    new = folder / "status.new"
    new.write_text(json.dumps({"state": state}))
    os.replace(new, folder / "status.json")
    sys.exit(code)
if behaviour == "fails" or behaviour == "fails_once" and attempts == 0:
    print("error: disk\\x1b full")
    sys.exit(4)
if behaviour == "diverges":
    end("diverged", 1)  # torchrun makes 1 of 5
if behaviour == "preempted_once" and attempts == 0:
    end("preempted", 1)
if behaviour == "fails_after_preempted":
    end("preempted", 75) if attempts == 0 else sys.exit(1)
if behaviour == "stubborn":
    child = subprocess.Popen(["sleep", "300"], start_new_session=True)
    (folder / "pids").write_text(f"{os.getpid()} {child.pid}")
progress = folder / "progress"
done = len(progress.read_text()) if progress.exists() else 0
while done < steps:
    time.sleep(0.05)
    with progress.open("a") as file:
        file.write(".")
    done += 1
    if stop and behaviour != "stubborn":
        time.sleep(0.5)  # saving
        end("preempted", 75)
(folder / "cuda").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none") + " " + os.environ["OMP_NUM_THREADS"])
end("done", 0)
"""

DRIVER = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from test_sweeps import stub_sweep
result = stub_sweep(Path(sys.argv[1]), sys.argv[2].split(","), jobs=2, steps=int(sys.argv[3])).run()
print({{name: len(points) for name, points in vars(result).items()}})
sys.exit(75 if result.unfinished else 1 if result.failed else 0)
"""


def stub_sweep(folder: Path, behaviours: list[str], jobs: int = 2, steps: int = 3, places=None) -> LocalSweep:
    (folder / "stub.py").write_text(STUB)
    points = [
        Point(f"{number}-{behaviour}", folder / "runs" / f"{number}-{behaviour}", steps, ())
        for number, behaviour in enumerate(behaviours)
    ]
    journal = Journal(folder / "runs")
    states = {
        p.name: json.loads((p.run_dir / "status.json").read_text())["state"] for p in points if (p.run_dir / "status.json").exists()
    }
    finished = {name: state for name, state in states.items() if state in ("done", "diverged")}

    def command(point):
        return [sys.executable, "-S", str(folder / "stub.py"), str(point.run_dir), point.name.partition("-")[2], str(steps)]

    return LocalSweep(points, finished, journal, places or [None] * jobs, 1, command)


def names(points):
    return [point.name for point in points]


def attempts(folder):
    return {path.parent.name: len(path.read_text()) for path in sorted((folder / "runs").glob("*/attempts"))}


def events(folder):
    return [json.loads(line) for line in (folder / "runs/.sweep/journal.jsonl").read_text().splitlines()]


def test_each_outcome_is_told_apart_and_failures_are_tried_twice(tmp_path, capsys):
    behaviours = ["runs", "fails", "fails_once", "diverges", "preempted_once", "fails_after_preempted"]
    result = stub_sweep(tmp_path, behaviours).run()
    assert names(result.done) == ["0-runs", "2-fails_once", "4-preempted_once"]
    assert names(result.failed) == ["1-fails", "5-fails_after_preempted"] and names(result.diverged) == ["3-diverges"]
    assert not result.unfinished
    assert list(attempts(tmp_path).values()) == [1, 2, 2, 1, 2, 3]
    said = capsys.readouterr().err
    assert "1-fails: failed after 0 s (exit code 4: error: disk? full); it will be tried once more" in said
    ends = [e for e in events(tmp_path) if e["event"] == "end" and e["point"] == "1-fails"]
    assert [(e["outcome"], e["exit_code"]) for e in ends] == [("failed", 4), ("failed", 4)]

    # Started again without having come to its end (no "finished"): nothing is run, the failures stand.
    again = stub_sweep(tmp_path, behaviours).run()
    assert (names(again.done), names(again.failed)) == (names(result.done), names(result.failed))
    assert list(attempts(tmp_path).values()) == [1, 2, 2, 1, 2, 3]

    # After its end a new start tries the failed ones anew, and them alone; a line cut short by a kill does no harm.
    with (tmp_path / "runs/.sweep/journal.jsonl").open("a") as journal:
        journal.write('{"event": "finished"}\n{"event": "end", "outcome": "failed", "poi')
    assert names(stub_sweep(tmp_path, behaviours).run().failed) == names(result.failed)
    assert list(attempts(tmp_path).values()) == [1, 4, 2, 1, 2, 5]


def test_it_says_how_far_it_is(tmp_path, capsys):
    stub_sweep(tmp_path, ["runs"] * 3, jobs=1).run()
    first, second, third = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"0-runs: done after \d+ s; 1 of 3 runs have ended, about \d+ s left", first)
    assert "2 of 3 runs have ended, about" in second
    assert third.endswith("3 of 3 runs have ended")


@pytest.mark.parametrize(("seconds", "text"), [(10, "about 20 s left"), (100, "about 3 min left")])
def test_the_rest_takes_as_long_as_its_steps_at_the_pace_so_far(tmp_path, monkeypatch, seconds, text):
    sweep = stub_sweep(tmp_path, ["runs"] * 4)
    sweep.total, sweep.steps_before, sweep.began = 12, 3, 0.0
    monkeypatch.setattr(sweep, "steps", lambda: 6)
    monkeypatch.setattr(time, "monotonic", lambda: float(seconds))
    assert sweep.time_left() == f", {text}"


def test_points_share_the_machine(tmp_path):
    stub_sweep(tmp_path, ["runs"] * 4, steps=8, places=["0,1", "2,3"]).run()
    starts = [e["devices"] for e in events(tmp_path) if e["event"] == "start"]
    assert starts[:2] == ["0,1", "2,3"] and sorted(starts) == ["0,1", "0,1", "2,3", "2,3"]
    order = [e["event"] for e in events(tmp_path)]
    assert order[:3] == ["start", "start", "end"], "two at a time"
    for event in (e for e in events(tmp_path) if e["event"] == "start"):
        assert (tmp_path / "runs" / event["point"] / "cuda").read_text().split()[0] == event["devices"]


def test_sharing_out_devices():
    eight = list("01234567")
    assert share_out(eight, None, 2) == ["0,1", "2,3", "4,5", "6,7"]
    assert share_out(eight, None, 8) == ["0,1,2,3,4,5,6,7"] and share_out(eight, 2, 1) == ["0", "1"]
    assert share_out(["3", "5", "6"], None, 2) == ["3,5"]
    assert share_out(["0"], 3, 1) == ["0", "0", "0"], "asked for more than there are: they share"
    assert share_out(None, None, 2) == [None] and share_out(None, 3, 1) == [None] * 3
    with pytest.raises(ConfigError, match="nproc=4: there are only 2 devices"):
        share_out(["0", "1"], None, 4)


def test_outcomes():
    assert [outcome_of(code, None) for code in (0, 75, 5, 1, 2, -9)] == [
        "done",
        "preempted",
        "diverged",
        *["failed"] * 3,
    ]
    assert [outcome_of(1, state) for state in ("preempted", "diverged", "running", "failed", None)] == [
        "preempted",
        "diverged",
        *["failed"] * 3,
    ]


def start_driver(folder, behaviours, steps):
    (folder / "driver.py").write_text(DRIVER.format(root=str(ROOT), tests=str(ROOT / "tests")))
    return subprocess.Popen(
        [sys.executable, folder / "driver.py", folder, ",".join(behaviours), str(steps)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def progress(folder):
    return [len(path.read_text()) for path in (folder / "runs").glob("*/progress")]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the points of a killed sweep on Linux alone")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_that_is_ended_continues_without_running_a_point_twice_at_once(number, tmp_path):
    behaviours = ["runs", "fails_once", "runs", "runs"]
    first = start_driver(tmp_path, behaviours, steps=30)
    wait_for(lambda: sum(progress(tmp_path)) > 8)
    with pytest.raises(ConfigError, match="another sweep is running here"):
        Journal(tmp_path / "runs")
    first.send_signal(number)
    if number == signal.SIGKILL:
        second = start_driver(tmp_path, behaviours, steps=30)  # at once: the points are still saving
        first.communicate()
    else:
        out, _ = first.communicate(timeout=30)
        assert first.returncode == 75 and "'unfinished': 4" in out
        second = start_driver(tmp_path, behaviours, steps=30)
    out, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    assert "{'done': 4, 'diverged': 0, 'failed': 0, 'unfinished': 0}" in out
    assert not list(tmp_path.rglob("TWICE"))
    assert progress(tmp_path) == [30] * 4, "every step done once: continued, not begun again"


@pytest.mark.slow
def test_a_second_signal_kills_the_points_and_their_children(tmp_path):
    driver = start_driver(tmp_path, ["stubborn"], steps=2000)
    pids = tmp_path / "runs/0-stubborn/pids"
    wait_for(lambda: pids.exists() and sum(progress(tmp_path)) > 0)
    family = [int(pid) for pid in pids.read_text().split()]
    driver.send_signal(signal.SIGINT)
    time.sleep(1)
    assert driver.poll() is None and all(map(is_alive, family))
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=10)
    assert driver.returncode == 75 and not any(map(is_alive, family))


def test_a_killed_sweeps_survivors_are_waited_for(tmp_path):
    """A point holds a lock that it inherited, whatever became of the sweep."""
    journal = Journal(tmp_path / "runs")
    survivor = subprocess.Popen(["sleep", "1"], pass_fds=[journal.points_lock.fileno()])
    journal.file.close()
    journal.points_lock.close()
    Journal(tmp_path / "runs")
    assert survivor.poll() == 0


# --- What is finished


def test_a_run_folder_is_finished_only_with_the_same_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = sweep_from(BASE | {"overrides": ["data.dir=none"]})
    (point,) = sweep.points
    config = compose_points([point], world_size=1)[point.name]
    assert finished_state(point, config) is None
    point.run_dir.mkdir(parents=True)
    recorded = point.run_dir / "config.yaml"
    save_config(config, recorded)
    for state, expected in {"running": None, "preempted": None, "failed": None, "diverged": "diverged", "done": "done"}.items():
        (point.run_dir / "status.json").write_text(json.dumps({"state": state}))
        assert finished_state(point, config) == expected
    other = compose_points(sweep_from(BASE | {"overrides": ["compile=true", "eval_interval=7"]}).points, 1)[point.name]
    assert finished_state(point, other) == "done", "keys that do not change the trajectory"
    older = yaml.safe_load(recorded.read_text())
    del older["model"]["init_std"]
    recorded.write_text(yaml.safe_dump(older))
    assert finished_state(point, config) == "done", "made before a key existed"
    recorded.write_text(yaml.safe_dump(older | {"weight_decay": 0.3}))
    with pytest.raises(ConfigError, match="weight_decay: 0.3 -> 0.1.*give the sweep another name"):
        finished_state(point, config)


# --- Slurm


@pytest.mark.slow
def test_a_slurm_array_gives_each_task_its_line(tmp_path, monkeypatch):
    """With an srun of our own, which writes down what it was given; how a task ends and comes back is test_launch's."""
    monkeypatch.chdir(ROOT)
    sweep = sweep_from(BASE | {"seed": [1, 2, 3], "overrides": ["data=docs", "micro_batch_size=2", "data.files='a b/*.txt'"]})
    script = write_array(tmp_path / "array", sweep, list(sweep.points[1:]), nproc=4, jobs=2)
    text = script.read_text()
    for directive in ("array=1-2%2", "gpus-per-node=4", "cpus-per-task=16", "signal=B:USR1@300", "requeue", "open-mode=append"):
        assert text.count(f"#SBATCH --{directive}\n") == 1, directive
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "srun").write_text(f"#!/bin/bash\nprintf '%s\\n' \"$@\" > {tmp_path}/given\n")
    (commands / "scontrol").write_text("#!/bin/bash\necho node7\n")
    for path in commands.iterdir():
        path.chmod(0o755)
    path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    slurm = environment(
        PATH=path, SLURM_ARRAY_TASK_ID="2", SLURM_JOB_ID="41003", SLURM_JOB_NODELIST="node[7-8]", SLURM_GPUS_ON_NODE="4"
    )
    done = subprocess.run(["bash", script], cwd="/", env=slurm, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    given = (tmp_path / "given").read_text().splitlines()
    assert given[-len(sweep.points[2].overrides) - 1 :] == ["train.py", *sweep.points[2].overrides], "line 2, unharmed"
    assert "--nproc-per-node=4" in given
    with pytest.raises(ConfigError, match="choose another folder"):
        write_array(tmp_path / "array", sweep, list(sweep.points), nproc=4, jobs=2)


# --- The command, with train.py


def sweep_command(folder, *arguments, code=0):
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/sweep.py", *map(str, arguments)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def write_sweep(folder, docs, **changes):
    overrides = [
        o for o in SMALL if o.split("=")[0] not in ("learning_rate", "max_steps", "checkpoint_interval", "micro_batch_size")
    ]
    node = {
        "name": "small",
        "overrides": [*overrides, "micro_batch_size=4", "checkpoint_interval=1000", f"data.dir={docs}"],
        "arms": {"ngpt": {"overrides": ["model=ngpt"]}},
        "max_steps": 400,
        "learning_rate": 0.01,
        "seed": [1, 2],
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(node | changes))
    return folder / "small.yaml"


@pytest.mark.slow
def test_a_real_sweep_killed_and_started_again(docs, tmp_path):
    file = write_sweep(tmp_path, docs)
    command = [sys.executable, ROOT / "scripts/sweep.py", file, "jobs=2"]
    killed = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL)
    runs = [tmp_path / "runs/small" / f"ngpt-400steps-lr0.01-seed{seed}" for seed in (1, 2)]
    wait_for(lambda: all((run / "metrics.jsonl").exists() for run in runs))
    killed.kill()
    killed.wait()
    done = sweep_command(tmp_path, file, "jobs=2")
    assert done.stdout == "small: 2 done\npython scripts/compare.py runs/small/*\n"
    for run in runs:
        assert json.loads((run / "status.json").read_text())["state"] == "done"
        assert sorted(metrics(run, "train/loss")) == list(range(1, 401))
    before = (tmp_path / "runs/small/.sweep/journal.jsonl").read_text().count("start")
    assert before == 4, "both continued"
    assert sweep_command(tmp_path, file).stdout == done.stdout
    assert (tmp_path / "runs/small/.sweep/journal.jsonl").read_text().count("start") == before
    file = write_sweep(tmp_path, docs, arms={"ngpt": {"overrides": ["model=ngpt", "beta2=0.9"]}})
    assert "beta2: 0.95 -> 0.9" in sweep_command(tmp_path, file, code=2).stderr


@pytest.mark.slow
@pytest.mark.distributed
def test_points_of_two_processes_that_diverge_or_cannot_start(docs, tmp_path):
    file = write_sweep(tmp_path, docs, learning_rate=1e30, seed=1, max_steps=12)
    done = sweep_command(tmp_path, file, "nproc=2")
    assert done.stdout.startswith("small: 1 diverged\n"), "torchrun said 1"
    broken = tmp_path / "runs/small/ngpt-12steps-lr1e+30-seed2"
    broken.parent.mkdir(exist_ok=True)
    broken.write_text("a file where a folder should be")
    file = write_sweep(tmp_path, docs, learning_rate=1e30, seed=[1, 2], max_steps=12)
    done = sweep_command(tmp_path, file, "only=*seed2", code=1)
    assert done.stdout.startswith("small: 1 failed\n  failed: ngpt-12steps-lr1e+30-seed2\n    ") and ".log\n" in done.stdout


def test_the_command_refuses_in_one_line_and_leaves_nothing(docs, tmp_path):
    def refusal(*arguments, code=2):
        lines = sweep_command(tmp_path, *arguments, code=code).stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        return lines[0]

    assert "none.yaml: cannot be read as a sweep" in refusal("none.yaml")
    assert "manifest.json: missing" in refusal(write_sweep(tmp_path, tmp_path / "nothing"), code=3)
    assert not (tmp_path / "runs").exists()
    assert "write the array from the repository's root" in refusal(write_sweep(tmp_path, docs), "slurm=array")
