"""The sbatch script under a real Slurm on this machine (Debian's slurmctld and slurmd; skipped without them or without root).

One node, two processes. A job of higher priority preempts the training, Slurm requeues it, then it is told that its limit is near
and puts itself back into the queue, and at last it finishes: with the result of an undisturbed run.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs import STEPS, arguments, assert_equal_runs, processes_of, undisturbed, wait_until
from training import ROOT, environment

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
MISSING = [name for name in PROGRAMS if not shutil.which(name)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.distributed,
    pytest.mark.skipif(bool(MISSING) or os.geteuid() != 0, reason=f"needs root and Slurm ({', '.join(MISSING) or 'not root'})"),
]

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 Port={node_port} CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=high Nodes={host} PriorityTier=2 MaxTime=INFINITE State=UP
"""


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.fixture
def slurm(tmp_path):
    """Start a Slurm of one node and return a function that runs its commands."""
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(folder=folder, host=socket.gethostname().split(".")[0], port=free_port(), node_port=free_port())
    )
    changes = {
        "SLURM_CONF": str(configuration),
        "PROCESSES_PER_NODE": "2",
        "VIRTUAL_ENV": sys.prefix,
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
    }
    daemons = [
        subprocess.Popen([name, "-D", "-f", str(configuration)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for name in ("slurmctld", "slurmd")
    ]

    def call(*words, check=True):
        done = subprocess.run(words, env=environment(**changes), cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip()

    call.folder = folder
    try:
        wait_until(lambda: "idle" in call("sinfo", "-h", "-o", "%T", check=False), 60, "the node is idle")
        yield call
    finally:
        call("scancel", "--user=root", check=False)
        time.sleep(1)
        for daemon in daemons[::-1]:
            daemon.terminate()
            daemon.wait(30)


def test_a_preempted_and_requeued_job_finishes_with_the_result_of_an_undisturbed_one(docs, slurm, tmp_path, tmp_path_factory):
    whole = undisturbed(docs, tmp_path_factory)
    run_dir = tmp_path / "runs" / "job"
    log = tmp_path / "job.log"
    flags = ["--parsable", "--gpus-per-node=0", "--cpus-per-task=2", f"--output={log}", "--time=10"]
    job = slurm("sbatch", *flags, "--partition=low", "scripts/slurm/train.sbatch", *arguments(docs, run_dir))

    def output():
        return log.read_text() if log.exists() else ""

    def steps():
        return output().count("| loss ")

    def in_queue():
        return slurm("squeue", "-h", "-j", job, "-o", "%T", check=False)

    def status():
        path = run_dir / "status.json"
        return json.loads(path.read_text()) if path.exists() else {"state": "not begun", "step": 0}

    def wait(is_true, seconds, what):
        try:
            wait_until(is_true, seconds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; in the queue: {in_queue()}; {status()}\n{output()[-3000:]}") from None

    def begin_again():
        """Let the requeued job begin: Slurm would let it rest for two minutes. At once it would refuse it."""
        wait(lambda: in_queue() == "PENDING" and not processes_of(run_dir), 90, "back in the queue")
        time.sleep(5)
        slurm("scontrol", "update", f"JobId={job}", "StartTime=now")

    wait(lambda: steps() > 25, 120, "steps before the preemption")
    slurm("sbatch", "--partition=high", "--cpus-per-task=2", "--output=/dev/null", "--wrap=sleep 1")
    wait(lambda: status()["state"] == "preempted", 60, "saved when preempted")
    assert 0 < status()["step"] < STEPS
    before = steps()
    begin_again()
    wait(lambda: steps() > before + 10, 120, "continued after the preemption")
    assert "restart 1" in output()

    slurm("scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@300 sends
    wait(lambda: "back to the queue" in output(), 90, "put itself back")
    begin_again()
    wait(lambda: status()["state"] == "done", 180, "finished")
    wait(lambda: in_queue() in ("", "COMPLETED"), 60, "the job ended")
    assert "restart 2" in output()
    assert_equal_runs(whole, run_dir)
