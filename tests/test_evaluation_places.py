"""Where an evaluation finds what it needs: the run's data from any working folder, the hub only if it answers."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from corpus.manifest import DataError
from lab.evaluation import hub, long_text
from lab.evaluation.downstream import load_tasks
from lab.evaluation.trained_run import data_folder


def test_a_runs_data_is_found_here_or_around_the_run(tmp_path, monkeypatch):
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    folder = project / "runs" / "sweep" / "run"
    for path in (folder, project / "data" / "docs", elsewhere):
        path.mkdir(parents=True)
    run = SimpleNamespace(folder=folder, config=SimpleNamespace(data=SimpleNamespace(dir="data/docs")))
    monkeypatch.chdir(elsewhere)
    with pytest.raises(DataError, match="its data, data/docs, is neither here nor beside the run; data=DIR says where it is"):
        data_folder(run)
    (project / "data" / "docs" / "manifest.json").touch()
    assert data_folder(run) == project / "data" / "docs"
    (elsewhere / "data" / "docs").mkdir(parents=True)
    (elsewhere / "data" / "docs" / "manifest.json").touch()
    assert data_folder(run) == Path("data/docs"), "what is here comes first"


def silent_hub(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    monkeypatch.setattr(hub, "hub_answers", lambda: False)

    def refuse(*_, **__):
        import os

        assert os.environ["HF_HUB_OFFLINE"] == "1"
        raise ConnectionError("five times")

    monkeypatch.setattr("datasets.load_dataset", refuse)


def test_a_silent_hub_is_not_waited_for(monkeypatch):
    silent_hub(monkeypatch)
    with pytest.raises(DataError, match="cannot be loaded .no answer from .*, and not in its cache"):
        long_text.pg19_books()
    assert hub.note_if_offline() == "", "asked once"


def test_a_task_whose_data_the_silent_hub_has_says_so(monkeypatch):
    silent_hub(monkeypatch)
    silence = hub.note_if_offline()
    manager = SimpleNamespace(task_index={"x": 1}, all_tasks=["x"], load=lambda specs: (_ for _ in ()).throw(ConnectionError("no")))
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda include_defaults: manager)
    with pytest.raises(DataError, match="x: the task cannot be loaded .no answer from"):
        load_tasks(["x"], silence)


def test_a_hub_that_answers_changes_nothing(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    assert hub.note_if_offline() == ""
