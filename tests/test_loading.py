"""Imports without looks for garbage (cli/loading.py), in processes of their own: a process does it once."""

import subprocess
import sys

import pytest
from training import ROOT, environment

BEGIN = "import gc, weakref; from cli.loading import loading\n"
CYCLE = "class Node: pass\ndef cycle(): n = Node(); n.me = n; return weakref.ref(n)\n"


def check(program: str) -> None:
    command = [sys.executable, "-c", BEGIN + CYCLE + program]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_garbage_is_looked_for_afterwards_and_not_among_what_was_loaded():
    check(
        """
with loading():
    assert not gc.isenabled()
    loaded = cycle()
later = cycle()
gc.collect()
assert gc.isenabled() and gc.get_freeze_count() and loaded() and not later()
"""
    )


@pytest.mark.parametrize("before", ["enable", "disable"])
def test_an_import_that_fails_leaves_all_as_it_was(before):
    check(
        f"""
gc.{before}()
try:
    with loading():
        import nothing_of_this_name
except ImportError:
    pass
assert gc.isenabled() == ({before!r} == "enable")
"""
    )


def test_a_second_time_keeps_nothing_more():
    check(
        """
with loading():
    pass
between = cycle()
with loading():
    pass
gc.collect()
assert not between()
"""
    )
