"""The network namespace of another node, as `ip netns add` makes it."""

import ctypes
import os

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)


def enter(namespace: str) -> None:
    """Put this process, and all that it starts, into a network namespace (what `ip netns exec` does before the command)."""
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if LIBC.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), namespace)
    os.close(descriptor)
