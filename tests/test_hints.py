"""Names of other programs lead to a key that exists; a refusal does not wait for torch."""

import re
import subprocess
import sys

import pytest
from training import ROOT, composed

from cli.composition import key_names, unknown_key
from cli.hints import OTHER_NAMES
from corpus.plan import PrepareConfig
from engine.config import Config

REFUSED = ("lr=1", "context=1024", "max_steps=0", "model.alpha_int=1", "lerning_rate=1", "--lr", "device=gpu", "-m", "max_steps=x")
WITHOUT_TORCH = """
import sys, train
from cli.entry import run_entry
for argument in sys.argv[1:]:
    sys.argv[1:] = [argument]
    try:
        run_entry(train.main, train.Config, "train", has_ranks=True)
    except SystemExit as stopped:
        assert stopped.code == 2
assert not {"torch", "pyarrow", "matplotlib"} & set(sys.modules)
"""


def test_every_hint_names_a_key_and_no_key_has_a_hint():
    known = {*key_names(Config), *(f"model.{key}" for key in composed("data=docs").model)}
    for name, hint in OTHER_NAMES.items():
        assert re.split("[ =;]", hint)[0] in known, name
        assert name not in known, f"{name} is a key itself"
        assert hint in unknown_key(name, Config, "train")


@pytest.mark.parametrize("name", ["lr", "block_size"])
def test_a_program_without_that_key_does_not_propose_it(name):
    assert OTHER_NAMES[name] not in unknown_key(name, PrepareConfig, "prepare")


def test_refusals_come_before_torch():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *REFUSED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(REFUSED) and all(line.startswith("error: ") for line in lines), done.stderr
