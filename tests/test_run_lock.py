"""One job per folder, also on file systems that have no locks."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from training import ROOT

from engine.interruption import Interruption
from lab.sweeps.journal import Journal
from runfolder.lock import RunFolderUnwritable, RunLock, RunLocked

HOLDER = """
import pathlib, sys, time
from runfolder.lock import RunLock
RunLock.WAIT_SECONDS = 0.2
RunLock().acquire(pathlib.Path(sys.argv[1]))
print(flush=True)
time.sleep(60)
"""
# Preloaded, it stands for a file system that refuses every lock.
NO_LOCKS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <fcntl.h>
int flock(int fd, int operation) { errno = ENOSYS; return -1; }
static int pass_on(const char *name, int fd, int command, void *argument)
{
    if (command == F_SETLK || command == F_SETLKW) { errno = ENOLCK; return -1; }
    return ((int (*)(int, int, void *))dlsym(RTLD_NEXT, name))(fd, command, argument);
}
#define STAND_IN(name) int name(int fd, int command, ...) \\
    { va_list rest; va_start(rest, command); return pass_on(#name, fd, command, va_arg(rest, void *)); }
STAND_IN(fcntl)
STAND_IN(fcntl64)
"""


@pytest.fixture
def no_locks(request, monkeypatch):
    number = getattr(request, "param", errno.ENOSYS)

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(RunLock, "WAIT_SECONDS", 0.2)


def held_by(folder, pid, changes=None):
    folder.mkdir()
    text = {"host": os.uname().nodename, "pid": pid, "started": start_of(pid)} | (changes or {})
    (folder / "run.lock").write_text(json.dumps(text))


def start_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])


@pytest.mark.parametrize("no_locks", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], indirect=True)
def test_without_locks_a_run_goes_on_with_one_warning(no_locks, tmp_path, capsys):
    lock = RunLock()
    lock.acquire(tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1 and "without locks" in said
    assert json.loads((tmp_path / "run/run.lock").read_text())["pid"] == os.getpid()
    lock.close()
    RunLock().acquire(tmp_path / "run")  # this process lives on, its lock does not


def test_without_locks_a_second_job_on_this_host_is_refused(no_locks, tmp_path):
    with subprocess.Popen(["sleep", "30"]) as other:
        held_by(tmp_path / "run", other.pid)
        with pytest.raises(RunLocked, match=f'"pid": {other.pid}'):
            RunLock().acquire(tmp_path / "run")
        other.kill()
        time.sleep(0.1)  # dead, but nobody has asked how it ended
        RunLock().acquire(tmp_path / "run")


@pytest.mark.parametrize(
    "holder", [{"host": "elsewhere"}, {"started": 1}, {"pid": 2**40}, {"pid": "x"}, {"pid": None}, {"host": None}]
)
def test_a_holder_that_is_not_here_holds_nothing(holder, no_locks, tmp_path):
    held_by(tmp_path / "run", os.getppid(), changes=holder)
    RunLock().acquire(tmp_path / "run")


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[1]", "null", '{"host": 1}', "\0\xff"])
def test_a_lock_with_any_text_can_be_taken(text, no_locks, tmp_path):
    (tmp_path / "run.lock").write_text(text)
    RunLock().acquire(tmp_path)


def test_without_locks_a_sweep_goes_on_and_a_second_one_is_refused(no_locks, tmp_path, capsys):
    Journal(tmp_path)
    assert capsys.readouterr().err.count("warning: ") == 1
    with subprocess.Popen(["sleep", "30"]) as other:
        holder = {"host": os.uname().nodename, "pid": other.pid, "started": start_of(other.pid)}
        (tmp_path / ".sweep/points.lock").write_text(json.dumps(holder))
        with pytest.raises(ValueError, match="another sweep is running here"):
            Journal(tmp_path)
        other.kill()


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs a C compiler")
def test_a_file_system_that_refuses_every_lock(tmp_path):
    (tmp_path / "no_locks.c").write_text(NO_LOCKS)
    library = tmp_path / "no_locks.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "no_locks.c"], check=True)
    environment = os.environ | {"LD_PRELOAD": str(library)}
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    first = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "\n"
        second = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert second.returncode == 1 and f"RunLocked: {tmp_path}/run: another job is writing this run" in second.stderr
    finally:
        first.kill()
        assert first.communicate()[1].count("warning: ") == 1


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300])
def test_a_folder_that_cannot_be_made_is_one_line(place, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunFolderUnwritable) as refused:
        RunLock().acquire(tmp_path / place)
    assert "\n" not in str(refused.value) and refused.value.exit_code == 2
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("is_ignored", [False, True])
def test_a_hangup_asks_to_save_unless_nohup_has_it_ignored(is_ignored):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
    try:
        with Interruption() as interruption:
            interruption.has_begun = True
            os.kill(os.getpid(), signal.SIGHUP)
            deadline = time.monotonic() + (0.3 if is_ignored else 5)
            while interruption.received is None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert interruption.received == (None if is_ignored else "SIGHUP")
    finally:
        signal.signal(signal.SIGHUP, before)
