"""The server of warm starts: what it forks is what Python started anew would have been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import warm
from execnet.gateway_io import popen_bootstrapline
from training import environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="on other systems every start is a true one")

SAYS = """
import json, os, sys
print(json.dumps({
    "pid": os.getpid(), "parent": os.getppid(), "group": os.getpgrp(), "session": os.getsid(0), "cwd": os.getcwd(),
    "argv": sys.argv, "path": sys.path[0], "name": __name__, "file": __file__, "given": os.environ.get("GIVEN"),
    "input": sys.stdin.read(), "shown": open("/proc/self/cmdline").read().rstrip("\\0").split("\\0"),
    "environment": "GIVEN=è" in open("/proc/self/environ").read().split("\\0"), "warm": "torch" in sys.modules,
    "open": sorted(map(int, os.listdir("/proc/self/fd")))[:3], "flags": sys.flags.optimize, "encoding": sys.stdin.encoding,
    "unbuffered": [sys.stdout.write_through, sys.stdout.line_buffering, sys.stderr.line_buffering, sys.stderr.errors],
}))
"""

# What is in a buffer cannot be written at the end; with a stream of its own, whatever PYTHONUNBUFFERED says.
UNWRITTEN = "import os, sys\nsys.stdout = open(1, 'w', closefd=False)\nprint('unwritten')\nos.close(1)"


@pytest.fixture
def says(tmp_path):
    (tmp_path / "says.py").write_text(SAYS)

    def start(*flags, **options):
        command = [sys.executable, *flags, "says.py", "a b", "c=1"]
        given = {"cwd": tmp_path, "env": environment(GIVEN="è"), "input": "words"} | options
        process = subprocess.Popen(
            command, **{k: v for k, v in given.items() if k != "input"}, stdin=-1, stdout=-1, stderr=-1, text=True
        )
        out, err = process.communicate(given["input"])
        assert process.returncode == 0 and err == "", err
        return process, json.loads(out)

    return start


def ended(script: Path, text: str, **options) -> subprocess.CompletedProcess:
    script.write_text(text)
    return subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment(), **options)


def test_a_warm_start_is_the_program_that_was_asked_for(says, tmp_path):
    process, warm_one = says()
    assert warm_one["warm"] and warm_one["pid"] == process.pid and warm_one["parent"] == os.getpid()
    assert (warm_one["group"], warm_one["session"]) == (os.getpgrp(), os.getsid(0))
    assert warm_one["environment"] and warm_one["given"] == "è" and warm_one["input"] == "words"
    cold_process, cold_one = says(env=environment(GIVEN="è", COLD_STARTS="yes"))
    assert not cold_one["warm"] and cold_one["pid"] == cold_process.pid
    different = {key for key in warm_one if warm_one[key] != cold_one[key]}
    assert different == {"pid", "warm"}, {key: (warm_one[key], cold_one[key]) for key in different}
    process, own = says(start_new_session=True)
    assert own["warm"] and own["session"] == own["group"] == process.pid
    assert says("-u")[1]["unbuffered"][0]


def test_what_is_read_before_the_first_import_makes_a_true_start(says):
    for flags, changes in (((), {"PYTHONPATH": "/nowhere"}), ((), {"LC_ALL": "C"}), (("-O",), {})):
        _, answer = says(*flags, env=environment(GIVEN="è", **changes))
        assert not answer["warm"] and answer["flags"] == len(flags)
    assert not says(preexec_fn=lambda: None)[1]["warm"]


@pytest.mark.parametrize(
    "text, code, error",
    [
        ("import sys; sys.exit(75)", 75, ""),
        ("import sys; sys.exit('in words')", 1, "in words\n"),
        ("raise ValueError('no')", 1, "ValueError: no\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("import os; os.abort()", -signal.SIGABRT, ""),
        ("import atexit, sys; atexit.register(print, 'last', file=sys.stderr)", 0, "last\n"),
        (UNWRITTEN, 120, "OSError: [Errno 9] Bad file descriptor\n"),
    ],
)
def test_it_ends_as_python_ends(text, code, error, tmp_path):
    done = ended(tmp_path / "ends.py", text)
    assert done.returncode == code and done.stderr.endswith(error) and (error or not done.stderr), done.stderr


def test_only_a_program_of_several_ranks_is_taken_apart(tmp_path):
    (tmp_path / "ends.py").write_text(
        "import os, sys\nclass Last:\n    def __del__(self, write=os.write): write(2, b'apart')\n"
        "last = Last()\nprint('said')\nsys.exit(3)\n"
    )
    for changes, error in (({}, ""), ({"RANK": "0"}, "apart")):
        command = [sys.executable, tmp_path / "ends.py"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(**changes))
        assert (done.returncode, done.stdout, done.stderr) == (3, "said\n", error)


def test_it_is_killed_and_stopped_like_any_process(tmp_path):
    (tmp_path / "waits.py").write_text("import time\nprint('begins', flush=True)\ntime.sleep(600)\n")
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(
            [sys.executable, tmp_path / "waits.py"], stdout=-1, stderr=subprocess.DEVNULL, env=environment(), text=True
        )
        assert process.stdout.readline() == "begins\n" and process.poll() is None
        process.send_signal(number)
        assert process.wait(10) == -number and process.stdout.read() == ""
        process.stdout.close()


def test_a_program_that_starts_programs_has_a_server_of_its_own(tmp_path):
    """Its children are its own, it waits for them, and its death is theirs to see; the server goes with it."""
    (tmp_path / "child.py").write_text(
        "import os, sys, time; print(os.getpid(), os.getppid(), 'torch' in sys.modules, flush=True)\n"
    )
    (tmp_path / "sweep.py").write_text(
        "import os, subprocess, sys, time\nprint(os.getpid(), flush=True)\n"
        "print(subprocess.run([sys.executable, 'child.py'], check=True).returncode, flush=True)\ntime.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "sweep.py"], cwd=tmp_path, stdout=-1, env=environment(), text=True)
    assert int(process.stdout.readline()) == process.pid
    child, parent, is_warm = process.stdout.readline().split()
    assert int(parent) == process.pid and int(child) != process.pid and is_warm == "True"
    assert process.stdout.readline() == "0\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    assert process.stdout.read() == "", "nobody is left who holds the pipe"
    process.wait()
    deadline = time.monotonic() + 10
    while any(warm_alive(int(pid)) for pid in children):
        assert time.monotonic() < deadline, "the server outlived its program"
        time.sleep(0.01)


def warm_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_pytests_workers_are_forked_too():
    assert popen_bootstrapline == warm.WORKER  # as long as they are begun in these words
    is_scripts_test = os.environ.get("OMP_NUM_THREADS") == "1" and "COLD_STARTS" not in os.environ
    if "PYTEST_XDIST_WORKER" in os.environ and is_scripts_test:
        assert warm.__name__ == "__main__", "the server's own module, which knows the server that was forked with the worker"
