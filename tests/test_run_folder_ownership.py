"""A folder of the user's is no run folder: train.py writes nothing into it."""

import pytest

from cli.composition import ConfigError
from engine.run_folder import refuse_foreign_files


@pytest.mark.parametrize("name", ["tokenizer.json", "metrics.jsonl", "status.json", "checkpoints", "notes.txt"])
def test_a_folder_with_files_of_others_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=rf"{name}: not written by train.py.*choose another run_name"):
        refuse_foreign_files(tmp_path)


def test_a_run_and_what_an_early_end_left_are_not(tmp_path):
    refuse_foreign_files(tmp_path / "missing")
    refuse_foreign_files(tmp_path)
    (tmp_path / "run.lock").write_text("")
    (tmp_path / ".config.yaml.1234.tmp").write_text("")
    refuse_foreign_files(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "tokenizer.json").write_text("")
    refuse_foreign_files(tmp_path)
