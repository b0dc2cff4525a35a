"""scripts/quickstart.sh with a stub in Python's place: what it runs, what it does not run twice, what it says."""

import os
import re
import shutil
import subprocess

import pytest
from training import ROOT

from lab.sweeps.plan import read_sweep

STUB = r"""#!/bin/sh
echo "$*" >> calls
case "$1" in
  scripts/sweep.py)
    name=$(basename "$2" .yaml)
    for arm in gpt ngpt; do for seed in 1 2; do
      run=runs/$name/$arm-160steps-lr0.006-seed$seed
      [ "$name-$arm" = quickstart_careless-ngpt ] || [ -e "$run/status.json" ] || { mkdir -p "$run"; echo {} > "$run/status.json"; }
    done; done ;;
  *) [ -e fails ] && { echo "half of the output"; exit 2; }; echo "output of $1" ;;
esac
"""


@pytest.fixture
def place(tmp_path):
    """A repository with the script alone, its environment and a stub instead of Python."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/quickstart.sh", tmp_path / "scripts")
    (tmp_path / "scripts/environment.sh").write_text("")
    for path in (tmp_path / "bin/python", tmp_path / ".venv/bin/python"):
        path.write_text(STUB)
        path.chmod(0o755)
    return tmp_path


def start(place, *words):
    environment = os.environ | {"PATH": f"{place / 'bin'}:{os.environ['PATH']}"}
    script = place / "scripts/quickstart.sh"
    return subprocess.run(["bash", script, *words], cwd="/", env=environment, capture_output=True, text=True, timeout=60)


def calls(place):
    """Return the scripts called since the last time, in order."""
    lines = (place / "calls").read_text().splitlines()
    (place / "calls").unlink()
    return lines


def test_everything_once_and_what_is_shown_again_is_kept(place):
    done = start(place)
    assert done.returncode == 0, done.stderr
    first = calls(place)
    looks = ["sample.py", "scripts/extrapolate.py", "scripts/inspect_weights.py"]
    assert [line.split()[0] for line in first[:2]] == ["prepare_owt.py", "scripts/sweep.py"]
    assert sorted(line.split()[0] for line in first[2:5]) == looks and first[5].startswith("scripts/compare.py ")
    assert first[1] == f"scripts/sweep.py sweeps/quickstart.yaml jobs={len(os.sched_getaffinity(0))}"
    seeds = " ".join(f"runs/quickstart/{arm}-160steps-lr0.006-seed{seed}" for arm in ("gpt", "ngpt") for seed in (1, 2))
    assert sorted(first[2:5])[1].startswith(f"scripts/extrapolate.py {seeds} ") and seeds in first[5]
    assert "--- done: open report/quickstart/report.html" in done.stdout

    again = start(place)
    assert [line.split()[0] for line in calls(place)] == ["prepare_owt.py", "scripts/sweep.py"], "the stub made no corpus"
    assert again.stdout == done.stdout

    later = place / "runs/quickstart/gpt-160steps-lr0.006-seed1/status.json"
    os.utime(later, (later.stat().st_atime, later.stat().st_mtime + 60))
    start(place)
    assert len(calls(place)) == 6


def test_a_step_that_fails_ends_it_and_leaves_nothing_behind(place):
    (place / "fails").write_text("")
    (place / "data/docs").mkdir(parents=True)
    (place / "data/docs/manifest.json").write_text("")
    done = start(place)
    assert done.returncode == 2 and "done: open" not in done.stdout
    (place / "fails").unlink()
    assert "half of the output" not in start(place).stdout


def test_careless_compares_its_baseline_with_the_same_ngpt(place):
    done = start(place, "careless")
    assert done.returncode == 0, done.stderr
    *_, sweep, compare = calls(place)
    assert sweep.startswith("scripts/sweep.py sweeps/quickstart_careless.yaml ")
    careless, tuned = (
        [f"runs/{folder}/{arm}-160steps-lr0.006-seed{seed}" for seed in (1, 2)]
        for folder, arm in (("quickstart_careless", "gpt"), ("quickstart", "ngpt"))
    )
    assert compare == f"scripts/compare.py {' '.join(careless + tuned)} out=report/quickstart_careless"


def test_help_and_a_word_it_does_not_know(place):
    assert "bash scripts/quickstart.sh careless" in start(place, "--help").stdout
    done = start(place, "carelss")
    assert done.returncode == 2 and done.stderr.startswith("error: carelss: ") and not (place / "calls").exists()


def test_the_script_and_its_sweeps_speak_of_the_same_budgets():
    longest = int(re.search(r"(?m)^longest=(\d+)", (ROOT / "scripts/quickstart.sh").read_text())[1])
    for name in ("quickstart", "quickstart_careless"):
        assert max(point.max_steps for point in read_sweep(ROOT / f"sweeps/{name}.yaml").points) == longest
