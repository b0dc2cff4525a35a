"""runfolder/files.py: a file is the old or the new one, and nothing else of the folder is touched."""

import json
import os

import pytest

from runfolder import files


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    files.write_json_atomically(path, {"b": "é\ud800", "a": 1})
    assert path.read_text(encoding="utf-8") == '{\n "a": 1,\n "b": "é\\ud800"\n}\n'
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(path, b"new")
    assert path.read_bytes().startswith(b'{\n "a"') and os.listdir(tmp_path) == ["x.json"]


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "value.json"
    files.write_json_atomically(path, {"b": 1, "a": "é"})
    first = path.read_bytes()
    assert json.loads(first) == {"a": "é", "b": 1} and first.index(b'"a"') < first.index(b'"b"')
    with pytest.raises(TypeError):
        files.write_json_atomically(path, {"a": object()})
    assert path.read_bytes() == first and list(tmp_path.iterdir()) == [path]


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
