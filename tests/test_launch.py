"""What happens to a job of two processes, seen from outside: torchrun's faults, Slurm's signals, the sbatch script."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs import STEPS, TORCHRUN, Job, arguments, assert_equal_runs, processes_of, ranks_of, undisturbed, wait_until
from training import ROOT, SMALL, environment, run

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
TIMEOUT = 8  # seconds that a rank waits for the others
SBATCH = ROOT / "scripts/slurm/train.sbatch"


def torchrun(data, run_dir, *overrides, flags=(), script="train.py"):
    return [*TORCHRUN, "--standalone", *flags, str(ROOT / script), *arguments(data, run_dir, *overrides)]


def status(run_dir):
    return json.loads((run_dir / "status.json").read_text())


@pytest.fixture
def whole(docs, tmp_path_factory):
    return undisturbed(docs, tmp_path_factory)


def test_torchrun_killed_a_rank_asked_a_rank_killed_and_still_the_same_result(docs, whole, tmp_path):
    run_dir = tmp_path / "parts"
    with Job(run_dir, torchrun(docs, run_dir)) as job:  # the launcher dies: nobody is left behind
        job.wait_for_steps(25)
        assert set(ranks_of(run_dir)) == {0, 1}
        job.process.kill()
        wait_until(lambda: job.process.poll() is not None and not processes_of(run_dir), 30, "every process ended")
    with Job(run_dir, torchrun(docs, run_dir)) as job:  # one rank alone is asked to stop: all agree on the step
        job.wait_for_steps(10)
        os.kill(ranks_of(run_dir)[1], signal.SIGTERM)
        assert job.finish(45) == 1
        assert status(run_dir)["state"] == "preempted", job.output[-3000:]
        saved = status(run_dir)["step"]
        assert 20 < saved < STEPS and (run_dir / f"checkpoints/step-{saved:08d}").is_dir()
    with Job(run_dir, torchrun(docs, run_dir, flags=["--max-restarts=2"])) as job:  # two die, one after the other
        for _ in range(2):
            before = job.output.count("| loss ")
            job.wait_for_steps(before + 10)
            killed = ranks_of(run_dir)[1]
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda killed=killed: ranks_of(run_dir).get(1, killed) != killed, 60, "the rank began again")
        assert job.finish(120) == 0, job.output[-3000:]
    assert_equal_runs(whole, run_dir)


def test_a_rank_that_hangs_ends_the_job_after_the_timeout(docs, tmp_path):
    run_dir = tmp_path / "hangs"
    with Job(run_dir, torchrun(docs, run_dir, f"timeout_seconds={TIMEOUT}")) as job:
        job.wait_for_steps(25)
        sleeper = ranks_of(run_dir)[1]
        os.kill(sleeper, signal.SIGSTOP)
        stopped = time.monotonic()
        while "Timed out" not in job.output:  # gloo's word
            assert time.monotonic() - stopped < TIMEOUT + 10, job.output[-3000:]
            time.sleep(0.05)
        os.kill(sleeper, signal.SIGCONT)  # else torchrun waits 30 s for it before it kills
        assert job.finish(40) == 1
    assert status(run_dir)["state"] == "failed" and "Timed out" in status(run_dir)["message"]


RAISES = """
import os, runpy, sys
sys.path.insert(0, {root!r})
from engine.trainer import Trainer
step = Trainer.train_step
def train_step(self, *arguments):
    if os.environ["RANK"] == "1" and self.state.step == 30:
        raise RuntimeError("the roof of rank 1 leaks")
    return step(self, *arguments)
Trainer.train_step = train_step
runpy.run_path({train!r}, run_name="__main__")
"""


def test_a_rank_that_raises_alone_ends_the_job_with_its_message(docs, tmp_path):
    run_dir = tmp_path / "raises"
    (tmp_path / "raises.py").write_text(RAISES.format(root=str(ROOT), train=str(ROOT / "train.py")))
    with Job(run_dir, torchrun(docs, run_dir, script=tmp_path / "raises.py")) as job:
        job.wait_for_steps(25)
        assert job.finish(30) == 1
        assert "the roof of rank 1 leaks" in job.output
    assert status(run_dir)["state"] == "failed"


# What Slurm provides. srun's signals reach every process of the step, so torchrun's ranks get them twice: from Slurm and,
# passed on, from torchrun (seen with Slurm 22.05, proctrack/linuxproc).
SRUN = f"""#!{sys.executable}
import os, pathlib, signal, subprocess, sys

def parent(process):
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None

def tree(pid):
    children = [int(p.name) for p in pathlib.Path("/proc").iterdir() if p.name.isdigit() and parent(p) == pid]
    return [pid, *(below for child in children for below in tree(child))]

command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
step = subprocess.Popen(command)
signal.signal(signal.SIGUSR1, lambda number, _: [os.kill(pid, number) for pid in tree(step.pid)])
sys.exit(step.wait())
"""
SCONTROL = """#!/bin/sh
if [ "$1" = requeue ]; then echo "$2" >> FOLDER/requeued; else echo 127.0.0.1; fi
"""


def slurm(folder, **programs):
    """Put programs that stand for Slurm's and others' into a fresh folder and return the environment that uses them."""
    (folder / "bin").mkdir(parents=True)
    for name, text in ({"srun": SRUN, "scontrol": SCONTROL} | programs).items():
        path = folder / "bin" / name
        path.write_text(text.replace("FOLDER", str(folder)))
        path.chmod(0o755)
    return {
        "PATH": os.pathsep.join((str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"])),
        "VIRTUAL_ENV": sys.prefix,
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NUM_NODES": "1",
        "PROCESSES_PER_NODE": "2",
    }


def requeued(folder):
    path = folder / "requeued"
    return path.read_text().split() if path.exists() else []


def test_the_sbatch_script_saves_before_the_limit_requeues_and_continues(docs, whole, tmp_path):
    run_dir, changes = tmp_path / "job", slurm(tmp_path / "slurm")
    command = ["bash", str(SBATCH), *arguments(docs, run_dir)]
    with Job(run_dir, command, **changes) as job:
        job.wait_for_steps(30)
        job.process.send_signal(signal.SIGUSR1)  # --signal=B:USR1 goes to the script alone
        assert job.finish(60) == 0, job.output[-3000:]
        assert status(run_dir)["state"] == "preempted", job.output[-3000:]
    assert requeued(tmp_path / "slurm") == ["4711"]
    with Job(run_dir, command, **changes, SLURM_RESTART_COUNT="1") as job:
        assert job.finish(120) == 0, job.output[-3000:]
        assert "restart 1" in job.output
    assert status(run_dir)["state"] == "done" and requeued(tmp_path / "slurm") == ["4711"]
    assert_equal_runs(whole, run_dir)


def test_the_sbatch_script_refuses_a_wrong_configuration_in_one_line(tmp_path):
    changes = slurm(tmp_path / "slurm")
    done = subprocess.run(["bash", str(SBATCH), "learning_rte=1"], env=environment(**changes), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: unknown key 'learning_rte': did you mean 'learning_rate'?\n"
    assert not requeued(tmp_path / "slurm")


PLAN = f"""#!/bin/sh
case "$*" in *dry_run=true*) echo '{{"run_dir": "FOLDER/run"}}' ;; *) exec {sys.executable} "$@" ;; esac
"""
TORCHRUN_THAT = """#!/bin/sh
[ -z "$CHECKPOINT" ] || mkdir FOLDER/run/checkpoints/step-00000040
[ -z "$STATE" ] || { echo "{\\"state\\": \\"$STATE\\"}" > FOLDER/run/new; mv FOLDER/run/new FOLDER/run/status.json; }
[ -z "$WAITS" ] || { touch FOLDER/waiting; sleep 1; }
exit 1
"""


@pytest.mark.parametrize(
    "state, checkpoint, code, back",
    [
        ("preempted", "yes", 0, True),
        ("preempted", "", 1, False),  # or the status is that of the job before, and this one never began
        ("diverged", "yes", 5, False),
        ("failed", "yes", 0, True),  # a crashed node: tried again as long as each session gets further
        ("failed", "", 1, False),
        ("running", "yes", 0, True),  # killed without a last word
        ("", "", 1, False),
    ],
)
def test_when_the_sbatch_script_requeues(state, checkpoint, code, back, tmp_path):
    changes = slurm(tmp_path, python=PLAN, torchrun=TORCHRUN_THAT)
    (tmp_path / "run/checkpoints/step-00000020").mkdir(parents=True)
    (tmp_path / "run/status.json").write_text('{"state": "preempted"}')
    done = subprocess.run(
        ["bash", str(SBATCH)],
        env=environment(STATE=state, CHECKPOINT=checkpoint, **changes),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, requeued(tmp_path)) == (code, ["4711"] * back), done.stdout + done.stderr


def test_a_cancelled_job_does_not_come_back(tmp_path):
    changes = slurm(tmp_path, python=PLAN, torchrun=TORCHRUN_THAT)
    (tmp_path / "run").mkdir()
    script = subprocess.Popen(["bash", str(SBATCH)], env=environment(STATE="preempted", WAITS="yes", **changes))
    wait_until((tmp_path / "waiting").exists, 30, "torchrun started")
    script.send_signal(signal.SIGTERM)
    assert script.wait(30) == 143 and not requeued(tmp_path)


def test_shell_scripts_are_sound():
    for path in (SBATCH, ROOT / "scripts/soak.sh"):
        subprocess.run(["bash", "-n", str(path)], check=True)
        if shutil.which("shellcheck"):
            subprocess.run(["shellcheck", "--severity=warning", str(path)], check=True)


PARTING = """
import sys, weakref
sys.path[:0] = [{root!r}, {tests!r}]
import faulty_train
import torch.distributed as dist
from cli.entry import run_entry
from engine.config import Config
from engine.trainer import Trainer
wrappers = []
make, destroy = Trainer.__init__, dist.destroy_process_group
def remember(self, *arguments):
    make(self, *arguments)
    wrappers.append(weakref.ref(self.training_model))
def say_and_destroy(*arguments):
    print("DDP is", "still there" if wrappers[0]() else "gone", flush=True)
    destroy(*arguments)
Trainer.__init__, dist.destroy_process_group = remember, say_and_destroy
run_entry(faulty_train.main, Config, config_name="train", has_ranks=True)
"""


def test_ddp_goes_before_the_process_group_so_that_no_rank_hangs_at_its_end(docs, tmp_path):
    script = tmp_path / "parting.py"
    script.write_text(PARTING.format(root=str(ROOT), tests=str(ROOT / "tests")))
    where = (f"data.dir={docs}", f"out_dir={tmp_path}", "run_name=x")
    done = run(str(script), *SMALL, "model=gpt", "micro_batch_size=4", *where, ranks=2)
    assert done.stdout.count("DDP is gone") == 2 and "still there" not in done.stdout
