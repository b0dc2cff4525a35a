"""One job per folder: a lock of the kernel, and where a file system has none, the name of the process that writes there."""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

# What a file system without locks says: Lustre mounted without flock, NFS without its lock daemon, some FUSE mounts.
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


class RunLocked(RuntimeError):
    exit_code = 2


class RunFolderUnwritable(RuntimeError):
    exit_code = 2


class RunLock:
    """A lock on run.lock in a run's folder, held by the first rank while it lives.

    The kernel holds it (fcntl record lock, which NFS knows as well) and releases it however its owner ends, so there are no
    stale locks to clean up. The file stays; its text says who holds the lock.
    """

    WAIT_SECONDS = 5.0  # a requeued job may begin while its predecessor is still ending

    def __init__(self) -> None:
        self.file: IO[bytes] | None = None

    def acquire(self, folder: Path) -> None:
        """Lock a folder, making it if needed.

        Raises:
            RunLocked: another process holds the lock.
            RunFolderUnwritable: the folder cannot be made or written.
        """
        self.close()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / "run.lock").open("a+b")
            deadline = time.monotonic() + self.WAIT_SECONDS
            while not take(file, fcntl.lockf):
                if time.monotonic() > deadline:
                    file.seek(0)
                    owner = file.read(500).decode(errors="replace").strip()
                    file.close()
                    raise RunLocked(f"{folder}: another job is writing this run ({owner}); wait for it, or choose another run_name")
                time.sleep(0.1)
        except OSError as error:
            raise RunFolderUnwritable(
                f"{folder}: cannot be written ({error.filename or 'run.lock'}: {error.strerror}); choose another out_dir"
            ) from None
        self.file = file

    def close(self) -> None:
        if self.file:
            release(self.file)
            self.file = None


def take(file: IO[bytes], lock: Callable[[IO[bytes], int], Any], holder: IO[bytes] | None = None) -> bool:
    """Lock an open file and write down who holds it; return False if another process does.

    Where the file system has no locks, a warning says so, and a process of this host that is written down and lives counts as
    holding the lock. A process of another host cannot be seen.

    Args:
        lock: fcntl.lockf, which NFS knows, or fcntl.flock, which child processes inherit.
        holder: the file, opened "a+b", to write the holder into; the locked file itself if None.

    Raises:
        OSError: the file cannot be locked for another reason.
    """
    text = holder or file
    try:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        text.seek(0)
        if is_running(text.read(500)):
            return False
        if holder is None:  # else the lock of that file says it
            warn(f"{file.name}: a file system without locks ({error.strerror}); a second job is noticed only on this host")
    write_down(text, json.dumps(describe_this_process()))
    return True


def release(file: IO[bytes]) -> None:
    """Close a lock's file; its text no longer names this process, which may live on."""
    write_down(file, "")
    file.close()


def write_down(file: IO[bytes], text: str) -> None:
    """Replace the text of a lock; a full disk is no reason to stop."""
    try:
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), text.encode())
    except OSError as error:
        warn(f"{file.name}: {error.strerror}")


def describe_this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": start_time(os.getpid()),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
    }


def is_running(holder: bytes) -> bool:
    """Return whether the text of a lock names another living process of this host."""
    try:
        node = json.loads(holder)
        host, pid, started = node["host"], int(node["pid"]), node.get("started")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
    if host != socket.gethostname() or pid == os.getpid() or pid <= 0:
        return False
    if Path("/proc/self/stat").exists():
        return started == start_time(pid) is not None  # another start: the number was given to another process
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it lives, and is another user's
        pass
    return True


def start_time(pid: int) -> int | None:
    """Return when a living process started, in clock ticks since the machine did; None where /proc does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
