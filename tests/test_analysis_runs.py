"""Test the reading of run folders, whole and damaged."""

import pytest
from synthetic_runs import final_loss, make_run

from lab.runs import RunFolderError, read_run, read_runs


def test_a_line_being_written_is_tolerated(tmp_path):
    folder = make_run(tmp_path, "a")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 110, "val/lo')
    assert read_run(folder).final.loss == pytest.approx(final_loss(100 * 4096)) and not read_run(folder).warnings


def test_a_broken_middle_line_is_a_warning_and_the_later_record_holds(tmp_path):
    folder = make_run(tmp_path, "a")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('garbage\n{"step": 100, "tokens": 409600, "train_seconds": 9.0, "val/loss": 1.25}\n')
    run = read_run(folder)
    assert run.final.loss == 1.25 and len(run.warnings) == 1


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "metrics.jsonl", "status.json"])
def test_missing_files_are_named_in_one_line(tmp_path, name):
    folder = make_run(tmp_path, "a")
    (folder / name).unlink()
    with pytest.raises(RunFolderError) as error:
        read_run(folder)
    assert name in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "model: {name: gpt}\nmax_steps: many\n"])
def test_a_broken_config_is_refused_in_one_line(tmp_path, text):
    folder = make_run(tmp_path, "a")
    (folder / "config.yaml").write_text(text)
    with pytest.raises(RunFolderError) as error:
        read_run(folder)
    assert "config.yaml" in str(error.value) and len(str(error.value).splitlines()) == 1


def test_runs_of_the_same_folder_name_are_told_apart(tmp_path):
    folders = [make_run(tmp_path / "x", "run"), make_run(tmp_path / "y", "run", "ngpt")]
    assert len({run.name for run in read_runs(folders + folders[:1])}) == 2
