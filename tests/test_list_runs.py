"""scripts/runs.py: every run with its state, whoever wrote it and however it ended."""

import json
import os
import socket

import pytest
from synthetic_runs import make_run

from cli.composition import ConfigError
from lab.list_runs import PROGRAM, describe, find_runs
from runfolder.lock import describe_this_process, start_time


def listed(capsys, *arguments: str) -> dict[str, list[str]]:
    """Return the words of each line by the run's path."""
    PROGRAM.main(PROGRAM.parse(arguments))
    return {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[2:]}


def test_runs_of_folders_and_of_sweeps_are_listed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs", "one", steps=100, loss=2.5)
    make_run(tmp_path / "runs" / "sweep", "two", "ngpt", steps=200)
    make_run(tmp_path / "runs", "one.replaced-1")
    make_run(tmp_path / "runs" / ".sweep", "hidden")
    (tmp_path / "runs" / "arrays").mkdir()
    (tmp_path / "runs" / "note.txt").write_text("no run")
    lines = listed(capsys)
    assert set(lines) == {"runs/one", "runs/sweep/two"}
    assert lines["runs/one"][:3] == ["done", "100/100", "2.5000"]
    assert set(listed(capsys, "runs/sweep")) == set(listed(capsys, "runs/sweep/two")) == {"runs/sweep/two"}
    assert listed(capsys, "state=failed") == {}
    for bad in ("none", "state=dnoe"):
        with pytest.raises(ConfigError, match=bad):
            listed(capsys, bad)


def test_how_a_run_ended_is_told_also_where_it_could_not_say_so(tmp_path):
    run = make_run(tmp_path, "run", state="running")

    def state(holder: object) -> str:
        (run / "run.lock").write_text(holder if isinstance(holder, str) else json.dumps(holder))
        return describe(run)[1]

    alive = describe_this_process() | {"pid": os.getppid(), "started": start_time(os.getppid())}
    assert state(alive) == "running"
    assert state(alive | {"pid": 2**22 + 1}) == "killed" and state("") == "killed"
    assert state(alive | {"host": "elsewhere", "pid": 1}) == "running", "of another host nothing is known"
    assert state("[") == "running" and socket.gethostname() == alive["host"]
    (run / "status.json").write_text(json.dumps({"state": "failed", "step": 3, "message": "CannotRun: no\nC++ \x1b compiler"}))
    assert describe(run)[1] == "failed" and describe(run)[-1] == "CannotRun: no C++ ? compiler"


def test_what_cannot_be_read_is_a_dash(tmp_path):
    run = make_run(tmp_path, "run")
    for name, text in (("config.yaml", "[1"), ("status.json", "{"), ("metrics.jsonl", '{"step": 1, "val/loss": "x"}\n[')):
        (run / name).write_text(text)
    assert describe(run)[1:5] == ["-", "1/-", "-", "-"]
    (run / "metrics.jsonl").unlink()
    assert describe(run)[1:5] == ["-", "-/-", "-", "-"]
    assert list(find_runs(tmp_path)) == [run]
