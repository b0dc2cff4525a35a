"""Two nodes for real: one torchrun job over two network namespaces, joined by a virtual cable that can be pulled."""

import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial

import pytest
from jobs import HANDLED, STEPS, Job, arguments, assert_equal_runs, processes_of, undisturbed, wait_until
from network import enter
from training import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
ADDRESSES = ("10.213.77.1", "10.213.77.2")
TIMEOUT = 8  # seconds that a rank waits for the others


def ip(*words: str, namespace: str | None = None) -> None:
    inside = ["-n", namespace] if namespace else []
    subprocess.run(["ip", *inside, *words], check=True, capture_output=True, text=True)


@pytest.fixture
def nodes():
    """The names of two network namespaces that see each other and nothing else."""
    if not shutil.which("ip"):
        pytest.skip("needs the command ip (iproute2)")
    names = [f"node{i}-{os.getpid()}" for i in range(2)]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"may not make network namespaces: {error.stderr.strip()}")
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("address", "add", f"{address}/24", "dev", "cable", namespace=name)
            ip("link", "set", "cable", "up", namespace=name)
            ip("link", "set", "lo", "up", namespace=name)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def launch(nodes, data, run_dir):
    """Start the job's two halves, one torchrun on each node.

    The rendezvous is static: under c10d the agent that is cut off from the store waits for TCP to give up, 15 minutes.
    """
    return [
        Job(
            run_dir,
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--nnodes=2",
                f"--node-rank={rank}",
                f"--master-addr={ADDRESSES[0]}",
                "--master-port=29400",
                "--nproc-per-node=1",
                HANDLED,
                str(ROOT / "train.py"),
                *arguments(data, run_dir, f"timeout_seconds={TIMEOUT}"),
            ],
            preexec_fn=partial(enter, node),
            GLOO_SOCKET_IFNAME="cable",
        )
        for rank, node in enumerate(nodes)
    ]


def test_a_cut_cable_ends_both_sides_and_the_resumed_run_equals_an_undisturbed_one(nodes, docs, tmp_path, tmp_path_factory):
    run_dir = tmp_path / "parts"
    first, second = launch(nodes, docs, run_dir)
    with first, second:
        first.wait_for_steps(50)
        ip("link", "set", "cable", "down", namespace=nodes[1])
        cut = time.monotonic()
        for job in (first, second):
            wait_until(lambda job=job: job.process.poll() is not None, TIMEOUT + 60, "this side ended\n" + job.output[-3000:])
            assert job.process.returncode == 1 and "Timed out" in job.output, job.output[-3000:]
        wait_until(lambda: not processes_of(run_dir), 5, "every process ended")
        assert time.monotonic() - cut < TIMEOUT + 60
    status = json.loads((run_dir / "status.json").read_text())
    assert status["state"] == "failed" and "Timed out" in status["message"] and status["step"] < STEPS

    ip("link", "set", "cable", "up", namespace=nodes[1])
    first, second = launch(nodes, docs, run_dir)
    with first, second:
        assert (first.finish(240), second.finish(60)) == (0, 0), first.output[-3000:] + second.output[-3000:]
    assert_equal_runs(undisturbed(docs, tmp_path_factory), run_dir)  # that of two processes on one node
