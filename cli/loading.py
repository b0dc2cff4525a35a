"""Import what is large, quickly."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Look for no garbage while modules are imported, and never again among what they have made.

    An import leaves next to none, and Python's looks go over all that is loaded: a million objects with torch. A run's start on
    a CPU takes 2.3 s so, and 3.2 s without. What exists at the end is kept for good: only imports belong inside.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # once in a process
            gc.freeze()
        if was_enabled:
            gc.enable()
