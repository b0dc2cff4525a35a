"""What a run's folder says of itself, the micro batch that fits, and what a plan costs."""

import json
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from training import SMALL, composed

import engine.environment
from cli.composition import ConfigError
from engine.accounting import h100_hours
from engine.checks import check_batch, check_config
from engine.dry_run import print_plan
from engine.environment import current_commit
from engine.micro_batch import with_micro_batch
from engine.session import train
from runfolder.status import read_status, write_status

ROOT = Path(__file__).resolve().parent.parent
CODE = Path(engine.environment.__file__).resolve()


def test_the_folder_says_who_where_when_and_how_it_ended(docs, tmp_path, monkeypatch, capsys):
    overrides = [*SMALL, "max_steps=4", "eval_interval=4", f"data.dir={docs}", f"out_dir={tmp_path}", "run_name=x", "device=cpu"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/train.py", *overrides])
    train(composed(*overrides))
    folder = tmp_path / "x"
    status, environment = read_status(folder), json.loads((folder / "environment.json").read_text())
    last = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][-1]
    assert status["state"] == "done" and status["step"] == 4 and status["val_loss"] == last["val/loss"]
    started, finished = (datetime.fromisoformat(status[key]) for key in ("started", "finished"))
    assert started <= finished
    assert environment["command"].startswith("python train.py size=tiny") and environment["host"]
    assert environment["device"]["name"] not in ("", "x86_64")
    console, printed = (folder / "console.log").read_text(), capsys.readouterr().out
    assert console.startswith("--- ") and environment["command"] in console.splitlines()[0]
    assert console.split("\n", 1)[1] == printed
    train(composed(*overrides))  # all is done: nothing is written anew
    assert read_status(folder) == status and (folder / "console.log").read_text() == console


def test_a_status_keeps_the_start_and_the_last_validation(tmp_path):
    write_status(tmp_path, "running", 0)
    begun = read_status(tmp_path)
    assert begun["finished"] is None and begun["val_loss"] is None
    write_status(tmp_path, "running", 5, val_loss=3.5)
    write_status(tmp_path, "failed", 7, "OSError: no")
    ended = read_status(tmp_path)
    assert (ended["started"], ended["val_loss"], ended["state"]) == (begun["started"], 3.5, "failed") and ended["finished"]


def test_code_inside_a_foreign_repository_has_no_commit(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "theirs")
    copy = tmp_path / "copied/engine/environment.py"
    copy.parent.mkdir(parents=True)
    shutil.copyfile(CODE, copy)
    monkeypatch.setattr(engine.environment, "__file__", str(copy))
    commit_now = current_commit.__wrapped__  # not as it was found once
    assert commit_now() is None
    git("add", "copied")
    git("commit", "-q", "-m", "taken over")
    assert len(commit_now()) == 40  # now their history says which code it was
    copy.write_text("changed")
    assert commit_now().endswith("+")


@pytest.mark.parametrize("world_size, expected", [(1, 16), (2, 8), (4, 4), (16, 1)])
def test_the_quickstart_runs_on_any_number_of_ranks(world_size, expected):
    config = with_micro_batch(composed("experiment=quickstart"), world_size, memory_gib=8.0, use_compile=False)
    check_batch(config, world_size)
    assert config.micro_batch_size == expected


def test_the_micro_batch_is_the_largest_divisor_that_fits():
    big = composed("size=0.5b", "context=1k", "global_batch_size=48", "micro_batch_size=null")
    sizes = [with_micro_batch(big, 1, gib, use_compile=True).micro_batch_size for gib in (24, 45, 1000)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3 and sizes[-1] == 48 and all(48 % size == 0 for size in sizes)
    with pytest.raises(ConfigError, match="one sequence needs about"):
        with_micro_batch(big, 1, 4.0, use_compile=True)
    assert with_micro_batch(composed("micro_batch_size=3"), 1, 0.001, True).micro_batch_size == 3  # a number is taken as it is


def test_a_plan_for_more_gpus_than_there_are(capsys):
    print_plan(composed("size=0.5b", "context=1k", "dry_run=8"))
    plan = json.loads(capsys.readouterr().out)
    assert plan["world_size"] == 8
    assert plan["h100_hours_at_40_percent_mfu"] == h100_hours(plan["flops"], 0.4)
    assert plan["h100_hours_at_40_percent_mfu"] == pytest.approx(plan["flops"] / 0.4 / 989e12 / 3600, rel=0.005)
    for wrong in ("dry_run=-1", "dry_run=maybe", "dry_run=1.5"):
        with pytest.raises(ConfigError, match="must be true, false or a number of GPUs"):
            check_config(composed(wrong))
