"""Ending a run early and in order: a signal sets a flag, the loop looks at it between steps."""

import os
import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Preempted(RuntimeError):
    """The run was asked to stop and has saved; the same command continues it (75 is EX_TEMPFAIL: try again)."""

    exit_code = 75


class Interruption:
    """Note the first signal; the second one ends the process at once."""

    def __init__(self) -> None:
        self.received: str | None = None

    def __enter__(self) -> "Interruption":
        self._previous = {s: signal.signal(s, self._note) for s in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received:
            os._exit(128 + number)  # no clean-up: the last published checkpoint is intact whatever happens
        self.received = signal.Signals(number).name
