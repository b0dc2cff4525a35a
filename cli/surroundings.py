"""What a program finds around it when it starts, put in order before anything else: streams, text encoding, working folder."""

import io
import os
import sys
from typing import Any

from cli.composition import ConfigError


class Forgiving(io.FileIO):
    """A file whose writes never fail: a message that nobody can read any more is no reason to end a program."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def prepare_surroundings() -> None:
    """Open closed standard streams, read and write text as UTF-8, let messages be lost if nobody can read them.

    Raises:
        ConfigError: the working folder was deleted, so that no relative path means anything.
    """
    open_streams()
    speak_utf8()
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ConfigError("the working folder was deleted; change to one that exists (cd), then start again") from None


def open_streams() -> None:
    """Put /dev/null where a standard stream is closed (`2>&-`): else the next file that is opened would get its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
            os.set_inheritable(number, True)
            if null != number:
                os.close(null)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        raw = io.BufferedWriter(Forgiving(sys.stderr.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(raw, sys.stderr.encoding, "backslashreplace", line_buffering=True, write_through=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def speak_utf8() -> None:
    """Start this program anew in Python's UTF-8 mode if the locale has another encoding.

    Arguments, file names and the text of our files are UTF-8. Under an ASCII locale Python could not write back what it read
    from the command line.
    """
    if sys.getfilesystemencoding() == "utf-8" or sys.flags.utf8_mode or not sys.orig_argv[1:]:
        return
    os.environ["PYTHONUTF8"] = "1"  # for child processes as well
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
