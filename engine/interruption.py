"""Ending a run early and in order: a signal sets a flag, the loop looks at it between steps and validation batches."""

import os
import select
import signal
import socket
import threading
import time

from cli.launcher import LAUNCHER

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
SAME_REQUEST_SECONDS = 5.0  # Slurm signals every process of a job, and torchrun passes its own signal on to each rank
ORPHAN_SECONDS = 15  # how long a rank whose launcher died may take to save


class Preempted(RuntimeError):
    """The run was asked to stop and has saved; the same command continues it (75 is EX_TEMPFAIL: try again)."""

    exit_code = 75
    state = "preempted"  # in status.json


def is_ignored_hangup(number: int) -> bool:
    """Return whether this is SIGHUP and nohup asked for it to be ignored."""
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


class Interruption:
    """Note the first signal; the second one ends the process at once (under torchrun: one more than 5 seconds later).

    Python runs signal handlers in the main thread alone, and that may be inside a collective whose other side is gone.
    So a thread listens: at the C level every signal writes its number into a socket. The same thread sees when torchrun
    dies, which would leave its ranks behind without anybody to stop them.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.has_begun = False  # until the ranks have met there is nothing to save: a signal ends the process at once
        self._received_at = 0.0

    def __enter__(self) -> "Interruption":
        self._launcher = LAUNCHER if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._listening, self._signalled = socket.socketpair()
        self._signalled.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._signalled.fileno(), warn_on_full_buffer=False)
        self._previous = {s: signal.signal(s, lambda *_: None) for s in SIGNALS if not is_ignored_hangup(s)}
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._signalled.close()  # ends the thread

    def _listen(self) -> None:
        orphaned_since = None
        while True:
            if select.select([self._listening], [], [], 1.0)[0]:
                numbers = self._listening.recv(64)
                if not numbers:
                    self._listening.close()
                    return
                for number in numbers:
                    if number in self._previous:
                        self._note(number)
            if self._launcher is None or os.getppid() == self._launcher:
                continue
            self.received = self.received or "the launcher's death"
            orphaned_since = orphaned_since or time.monotonic()
            if not self.has_begun or time.monotonic() - orphaned_since > ORPHAN_SECONDS:
                os._exit(1)  # the other ranks are gone and the main thread waits for them

    def _note(self, number: int) -> None:
        if self.has_begun and not self.received:
            self.received, self._received_at = signal.Signals(number).name, time.monotonic()
        elif not self.has_begun or not self._launcher or time.monotonic() - self._received_at > SAME_REQUEST_SECONDS:
            os._exit(128 + number)  # no clean-up: the last published checkpoint is intact whatever happens
