"""After a power cut a file is there whole or not at all: what is renamed was synced before, and its folder is synced after."""

import os
import sys
from pathlib import Path

import pytest
from corpus_support import local_config, make_texts, write_shards
from training import SMALL, composed

from corpus.prepare import prepare
from engine.session import train
from runfolder.files import write_json_atomically

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what a descriptor is")


@pytest.fixture
def renamed(monkeypatch):
    """Check at every rename that all of it was synced. Return {new name: whether its folder was synced after}."""
    synced: set[str] = set()
    renamed: dict[str, bool] = {}

    def fsync(descriptor, real=os.fsync):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.add(path)
        renamed.update({name: True for name in renamed if os.path.dirname(name) == path})
        real(descriptor)

    def noting(real):
        def rename(source, target):
            source, target = os.path.abspath(source), os.path.abspath(target)
            parts = [source, *map(str, Path(source).rglob("*"))] if os.path.isdir(source) else [source]
            assert not (missing := [part for part in parts if part not in synced]), f"{target}: not synced before: {missing}"
            real(source, target)
            renamed[target] = False
            synced.update(part.replace(source, target, 1) for part in parts)  # under its new name it is what it was

        return rename

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", noting(os.replace))
    monkeypatch.setattr(os, "rename", noting(os.rename))
    return renamed


def test_a_json_file(tmp_path, renamed):
    write_json_atomically(tmp_path / "x.json", {"a": 1})
    assert renamed == {str(tmp_path / "x.json"): True}


def test_checkpoints_and_what_a_run_writes_beside_them(docs, tmp_path, renamed):
    train(composed(*SMALL, f"data.dir={docs}", f"out_dir={tmp_path}", "run_name=x"))
    assert {f"{tmp_path}/x/checkpoints/step-{step:08d}" for step in (6, 12)} <= renamed.keys() and all(renamed.values()), renamed


def test_prepared_data(tmp_path, renamed):
    prepare(local_config(tmp_path / "out", write_shards(tmp_path / "shards", make_texts(40))))
    assert {f"{tmp_path}/out/{name}" for name in ("train.bin", "val.bin", "manifest.json")} <= renamed.keys()
    assert all(renamed.values()), renamed
