"""Schedules, update rules and transfer as a whole: what a run with them does, and what a branch saves."""

import math
import shutil

import pytest
import torch
from training import SMALL, assert_same, composed, metrics

from cli.composition import ConfigError
from engine import session
from engine.models import build_model, parameters_by_kind
from engine.optimization import build_optimizer, learning_rate_at

BASE = ("parametrization=transfer", "base.n_embd=16", "base.n_layer=1", "base.max_steps=6")


def config(*overrides):
    return composed(*SMALL, "model=gpt", *overrides)


def test_wsd_warms_up_stays_and_decays_to_the_minimum():
    c = config("schedule=wsd", "max_steps=20", "warmup_steps=4", "decay_fraction=0.25", "min_learning_rate=0.001")
    rates = [learning_rate_at(step, c) for step in range(20)]
    assert c.decay_start == 15
    assert rates[:4] == pytest.approx([0.01 * (i + 1) / 5 for i in range(4)])
    assert rates[4:15] == [0.01] * 11  # exactly: a branch depends on it
    assert rates[15:] == pytest.approx([0.001 + 0.009 * (1 - i / 5) for i in range(5)])
    c.decay = "sqrt"
    assert [learning_rate_at(s, c) for s in (16, 19)] == pytest.approx([0.001 + 0.009 * (1 - math.sqrt(i / 5)) for i in (1, 4)])


def test_the_stable_part_does_not_depend_on_the_length():
    long, short = (config("schedule=wsd", f"max_steps={n}", "warmup_steps=3") for n in (100, 30))
    assert [learning_rate_at(s, long) for s in range(24)] == [learning_rate_at(s, short) for s in range(24)]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["schedule=wsd", "warmup_steps=11"], "reaches into the decay"),
        (["branch_from=x"], "needs schedule=wsd"),
        (["update=muon", "parallel=fsdp"], "parallel=ddp"),
        (["update=moun"], "muon"),
        (["decay_fraction=0"], "decay_fraction"),
        (["rate_multiplier.output=0"], "rate_multiplier.output"),
        (["parametrization=transfer"], "base.n_embd, base.n_layer, base.max_steps"),
        (
            [*BASE, "rate_multiplier.output=2"],
            "leave them out",
        ),
        (
            ["model=angpt", *BASE],
            "none for model=angpt",
        ),
    ],
)
def test_what_cannot_be_combined_is_one_line(overrides, words):
    with pytest.raises(ConfigError, match=words):
        composed(*SMALL, "model=gpt", *overrides)


def test_transfer_fills_in_the_config_once_and_the_optimizer_uses_it():
    c = composed(*SMALL, "model=ngpt", "learning_rate=0.01", *BASE, "model.alpha_init=0.4", "model.sz_init=8")
    budget = 2 ** (-1 / 3)
    assert vars(c.rate_multiplier) == pytest.approx(
        {"embedding": budget * 2**-0.5, "matrices": budget * 2**-0.75, "output": budget / 2 * 2**-0.75, "scales": budget}
    )
    assert c.model["alpha_init"] == 0.2 and c.model["sz_init"] == pytest.approx(8 * 2**0.5) and c.model["sqk_scale"] == 0.25
    from engine.checks import check_config

    before = (dict(c.model), vars(c.rate_multiplier).copy())
    check_config(c)  # a run's own config.yaml is checked again when it is read
    assert (c.model, vars(c.rate_multiplier)) == before
    model = build_model(c.model)
    optimizer = build_optimizer(model, c)
    optimizer.set_learning_rate(0.01)
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rate_of) == len(list(model.parameters()))
    for kind, parameters in parameters_by_kind(model).items():
        assert {rate_of[id(p)] for p in parameters} == {0.01 * getattr(c.rate_multiplier, kind)}


def test_gpts_first_weights_follow_the_rules():
    torch.manual_seed(0)
    plain = build_model(config().model)
    torch.manual_seed(0)
    scaled = build_model(config().model, init={"embedding": 1.0, "matrices": 0.5, "output": 0.25})
    factors = {"embedding": 1, "matrices": 0.5, "output": 0.25, "scales": 1}
    for kind, parameters in parameters_by_kind(scaled).items():
        for a, b in zip(parameters, parameters_by_kind(plain)[kind], strict=True):
            assert torch.equal(a, factors[kind] * b), kind


@pytest.mark.parametrize("model", ["gpt", "ngpt"])
@pytest.mark.parametrize("update", ["muon", "adamh"])
def test_other_updates_learn_and_continue_bit_for_bit(tmp_path, docs, model, update):
    def train(name):
        where = (f"data.dir={docs}", f"out_dir={tmp_path}", f"run_name={name}")
        session.train(composed(*SMALL, f"model={model}", f"update={update}", "learning_rate=0.02", *where))

    train("whole")
    losses = metrics(tmp_path / "whole", "val/loss")
    assert losses[12] < losses[0] - 0.3
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step-00000012")  # as if killed before it
    train("cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_a_branch_equals_the_run_trained_from_its_beginning_bit_for_bit(tmp_path, docs):
    def train(name, *overrides):
        where = (f"data.dir={docs}", f"out_dir={tmp_path}", f"run_name={name}")
        session.train(composed(*SMALL, "model=ngpt", "schedule=wsd", "decay_fraction=0.25", "warmup_steps=2", *where, *overrides))

    train("trunk", "max_steps=16", "keep_steps=[9]", "keep_checkpoints=1", "checkpoint_interval=100")
    assert [p.name for p in sorted((tmp_path / "trunk/checkpoints").iterdir())] == ["step-00000009", "step-00000016"]
    train("whole")
    train("branch", f"branch_from={tmp_path / 'trunk'}")
    assert_same(tmp_path / "whole", tmp_path / "branch")
    for key in ("train/loss", "val/loss", "train/learning_rate"):
        assert metrics(tmp_path / "branch", key) == metrics(tmp_path / "whole", key), key
    trunk = f"branch_from={tmp_path / 'trunk'}"
    for overrides, words in (
        ((trunk, "seed=5"), "differs in more than max_steps .*seed: 1337 -> 5"),
        ((trunk, "max_steps=8"), r"no checkpoint at or before step 6.*keep_steps=\[6\]"),
        ((f"branch_from={tmp_path / 'nothing'}",), "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=words):
            train("refused", *overrides)
