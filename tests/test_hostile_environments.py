"""Every entry point, started for real where much is wrong: it goes on, or one clear line says why not; nothing is damaged.

What is wrong comes together, for every start of Python costs: each program is started three times.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
from test_run_lock import NO_LOCKS
from training import ROOT, SMALL

pytestmark = pytest.mark.slow
ENTRIES = [
    "train.py",
    "sample.py",
    "prepare_owt.py",
    *sorted(f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py") if path.is_file()),
]
NOT_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LEFT_OVER = {"RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "nowhere.invalid", "SLURM_PROCID": "3", "SLURM_NTASKS": "4"}


def start(folder, line, *words, **changes):
    """Run `exec python WORDS` in bash with redirections or what else a line of shell can spoil; HOME is not set."""
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "LANG", "LC_ALL")}
    return subprocess.run(
        ["bash", "-c", line, sys.executable, *map(str, words)],
        cwd=folder,
        env=kept | {"OMP_NUM_THREADS": "1"} | changes,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=400,
    )


def assert_one_line(done, code=2):
    lines = done.stderr.splitlines()
    assert done.returncode == code and len(lines) == 1 and lines[0].startswith("error: "), (done.returncode, done.stderr[-2000:])


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_refusal_is_one_line_whatever_the_surroundings(entry, tmp_path):
    """No HOME, an ASCII locale and an argument beyond it, variables of another launcher, no standard input and output."""
    done = start(tmp_path, 'exec "$0" "$@" <&- >&-', ROOT / entry, "zürich=1", "and=2", **NOT_UTF8, **LEFT_OVER)
    assert_one_line(done)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("entry", ENTRIES)
def test_help_without_docstrings_and_standard_error(entry, tmp_path):
    done = start(tmp_path, 'exec "$0" "$@" 2>&-', "-OO", ROOT / entry, "--help", **LEFT_OVER)
    assert done.returncode == 0 and len(done.stdout) > 20, done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_deleted_working_folder_is_one_line(entry, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    assert_one_line(start(gone, f'rmdir "{gone}"; exec "$0" "$@"', ROOT / entry, "runs/x"))


def test_preparing_and_training_where_everything_is_wrong_at_once(tmp_path):
    """No locks, no streams, no HOME, an ASCII locale; then folders that cannot be written, which stay as they are."""
    settings = dict(NOT_UTF8)
    if shutil.which("gcc"):
        (tmp_path / "no_locks.c").write_text(NO_LOCKS)
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "no_locks.so", tmp_path / "no_locks.c"], check=True)
        settings["LD_PRELOAD"] = str(tmp_path / "no_locks.so")
    closed = 'exec "$0" "$@" <&- >&- 2>&-'
    data = f"data.dir={tmp_path}/dätä"
    assert start(tmp_path, closed, ROOT / "prepare_owt.py", "data=docs", data, "num_proc=1", **settings).returncode == 0
    words = [*SMALL, "max_steps=2", data, f"out_dir={tmp_path}/läufe", "run_name=x"]
    assert start(tmp_path, closed, ROOT / "train.py", *words, **settings, SLURM_PROCID="3").returncode == 0
    assert json.loads((tmp_path / "läufe/x/status.json").read_text())["state"] == "done"
    (tmp_path / "file").write_text("mine")
    for place in ("file", "/proc/nowhere"):
        refused = start(tmp_path, 'exec "$0" "$@"', ROOT / "train.py", *words, f"out_dir={place}")
        assert_one_line(refused)
        assert "cannot be written" in refused.stderr
    assert_one_line(start(tmp_path, 'exec "$0" "$@"', ROOT / "prepare_owt.py", "data=docs", "data.dir=file/x"), code=3)
    assert (tmp_path / "file").read_text() == "mine"
