"""Imports without looks for garbage (cli/loading.py), in processes of their own."""

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
    import colorsys
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


def test_where_nothing_new_is_loaded_nothing_more_is_kept():
    check(
        """
with loading():
    import colorsys
between = cycle()
with loading():
    import colorsys
gc.collect()
assert not between()
"""
    )


def test_what_is_refused_once_the_data_are_looked_at_does_not_wait_for_what_training_needs():
    check(
        """
import runpy, sys
sys.path.insert(0, ".")
sys.argv = ["train.py", "size=tiny", "precision=fp32", "data=docs", "data.dir=/nowhere", "device=cpu"]
try:
    runpy.run_path("train.py", run_name="__main__")
except SystemExit as error:
    assert error.code == 3
assert "torch" in sys.modules and "torch._dynamo" not in sys.modules
"""
    )
