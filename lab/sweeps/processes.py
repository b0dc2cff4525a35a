"""Child processes that do not outlive the sweep, and the signals that end both."""

import ctypes
import os
import signal
import subprocess
import sys
from functools import partial
from types import FrameType
from typing import IO

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Signals:
    """Count the signals that ask the sweep to end, for the time of the with-block."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "Signals":
        numbers = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]  # nohup
        self._previous = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1


def start_process(command: list[str], environment: dict[str, str], log: IO[bytes], inherited_fd: int) -> subprocess.Popen:
    """Start a command that holds inherited_fd open while it lives.

    It gets a session of its own, so that Ctrl-C reaches the sweep alone, which passes it on once. When the sweep is
    killed, the kernel sends the child SIGTERM (Linux): it saves and ends.
    """
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(inherited_fd,),
        start_new_session=True,
        preexec_fn=partial(end_with_parent, os.getpid()) if LIBC else None,
    )


def end_with_parent(parent: int) -> None:
    assert LIBC is not None  # else this is not called
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # killed in between
        os._exit(1)


def kill_tree(pid: int) -> None:
    """Kill a process and all its descendants; torchrun's ranks are in sessions of their own."""
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True).stdout
    children: dict[int, list[int]] = {}
    for line in table.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    family = [pid]
    for member in family:
        family += children.get(member, [])
    for member in family:
        try:
            os.kill(member, signal.SIGKILL)
        except ProcessLookupError:
            continue
