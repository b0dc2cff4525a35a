"""A sweep with schedule: wsd: its trunks and branches, their order, and what they save."""

from collections import deque
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from training import ROOT, SMALL, metrics

from cli.composition import ConfigError
from engine import session
from lab.runs import read_runs
from lab.speedup.report import build_report
from lab.sweeps.bill import describe_bill
from lab.sweeps.branches import detach, is_ready, own_steps
from lab.sweeps.check import compose_points
from lab.sweeps.local import LocalSweep
from lab.sweeps.plan import read_sweep, sweep_from
from runfolder.layout import checkpoint_name

LADDER = """
name: x
schedule: wsd
decay_fraction: 0.25
overrides: [experiment=quickstart]
arms:
  gpt: {overrides: [model=gpt], warmup_fraction: 0.1}
  ngpt: {overrides: [model=ngpt], max_steps: 80}
max_steps: [40, 80, 160]
learning_rate: [0.01, 0.02]
seed: 1
"""


def plan(**changes):
    return sweep_from(yaml.safe_load(LADDER) | changes).points


def test_trunks_come_first_and_keep_what_their_branches_continue():
    points = {point.name: point for point in plan()}
    assert [name.removesuffix("-seed1") for name in points] == [
        "gpt-160steps-lr0.01",
        "gpt-160steps-lr0.02",
        "gpt-80steps-lr0.01",
        "ngpt-80steps-lr0.01",
        "gpt-80steps-lr0.02",
        "ngpt-80steps-lr0.02",
        "gpt-40steps-lr0.01",
        "gpt-40steps-lr0.02",
    ]
    trunk, branch, alone = (points[f"{name}-lr0.02-seed1"] for name in ("gpt-160steps", "gpt-40steps", "ngpt-80steps"))
    assert trunk.trunk is None and "keep_steps=[30,60]" in trunk.overrides
    assert (branch.trunk, branch.first_step, own_steps(branch)) == (trunk.name, 30, 10)
    assert f"branch_from=runs/x/{trunk.name}" in branch.overrides
    assert alone.trunk is None and not any(word.startswith(("keep_steps", "branch_from")) for word in alone.overrides)
    configs = compose_points(points.values(), world_size=1)
    assert configs[trunk.name].keep_steps == [30, 60] and configs[branch.name].decay_start == branch.first_step
    assert {config.schedule for config in configs.values()} == {"wsd"}
    # Trunk and branch must be equally warm: a tenth of the smallest budget.
    assert {config.warmup_steps for name, config in configs.items() if name.startswith("gpt")} == {4}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schedule": "cosine"}, "only wsd has trunks and branches"),
        ({"schedule": None}, "decay_fraction: needs schedule: wsd"),
        ({"decay_fraction": 1}, "decay_fraction: 1 is not a number above 0 and below 1"),
        ({"overrides": ["schedule=wsd"]}, "'schedule=wsd' sets a key that the sweep sets itself"),
        ({"axes": {"decay_fraction": [0.1, 0.2]}}, "the axis decay_fraction is set by the sweep's schedule"),
    ],
)
def test_mistakes_in_the_schedule(changes, says):
    with pytest.raises(ConfigError, match=says):
        plan(**changes)


def test_rates_that_follow_from_the_number_of_steps_have_no_trunk():
    base = ["parametrization=transfer", "base.n_embd=64", "base.n_layer=2", "base.max_steps=40"]
    points = plan(arms={"ngpt": {"overrides": ["model=ngpt", *base]}})
    with pytest.raises(ConfigError, match="ngpt-80steps-lr0.01-seed1: cannot branch off ngpt-160steps.*rate_multiplier.matrices"):
        compose_points(points, 1)


def test_a_branch_waits_until_its_trunk_has_passed_it_or_has_ended(tmp_path):
    trunk, branch = (p for p in plan(arms={"gpt": {}}, max_steps=[80, 160], learning_rate=0.01))
    trunk, branch = (replace(point, run_dir=tmp_path / point.name) for point in (trunk, branch))
    sweep = SimpleNamespace(waiting=deque([branch, trunk]), running=[])
    assert LocalSweep.take_next(sweep) is trunk, "restarted in whatever order"
    sweep.running = [SimpleNamespace(point=trunk)]
    assert LocalSweep.take_next(sweep) is None
    kept = trunk.run_dir / "checkpoints" / checkpoint_name(60)
    (kept.parent / checkpoint_name(50)).mkdir(parents=True)
    assert LocalSweep.take_next(sweep) is None, "not there yet"
    kept.mkdir()
    assert LocalSweep.take_next(sweep) is branch and not sweep.waiting

    assert is_ready(branch, set()), "the trunk goes no further"
    assert detach(branch) == branch, "it continues an earlier checkpoint if that is all there is"
    for folder in kept.parent.iterdir():
        folder.rmdir()
    (kept.parent / checkpoint_name(70)).mkdir()
    alone = detach(branch)
    assert not any(word.startswith("branch_from") for word in alone.overrides) and own_steps(alone) == 80


def test_the_ladder_of_a_sweep_is_trained_once_up_to_the_decays(docs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = [o for o in SMALL if o.split("=")[0] not in ("learning_rate", "max_steps", "checkpoint_interval")]
    common = [*kept, "checkpoint_interval=1000", "keep_checkpoints=1", "log_interval=1", f"data.dir={docs}"]
    arms = {"ngpt": {"overrides": ["model=ngpt"]}}
    trunk, branch = plan(overrides=common, arms=arms, max_steps=[8, 16], learning_rate=0.01, decay_fraction=0.5)
    for point in (trunk, branch):
        assert is_ready(point, {branch.name})
        session.train(compose_points([detach(point)], 1)[point.name])
    losses = {point.max_steps: metrics(tmp_path / point.run_dir, "train/loss") for point in (trunk, branch)}
    # From step 4 the branch's rate falls: the update 5 -> 6 is the first with a smaller one, and the loss of step 7 shows it.
    assert [losses[8][step] == losses[16][step] for step in range(1, 9)] == [True] * 6 + [False] * 2
    assert "checkpoint left it, at step 4" in (tmp_path / branch.run_dir / "console.log").read_text()
    (ladder,) = build_report(read_runs([trunk.run_dir, branch.run_dir])).sections[0].ladders.values()
    assert [point.steps for point in ladder.points] == [8, 16], "a branch is an annealed run of its own budget"


def test_the_bill_counts_a_trunks_steps_once():
    arms = {"gpt": {"overrides": ["model=gpt"], "warmup_fraction": 0.1}}
    points = plan(arms=arms, learning_rate=0.01)
    branched = describe_bill(list(compose_points(points, 1).values()), 0.4)
    tokens = 16 * 128 * (160 + 0.25 * (80 + 40))
    assert f"the bill: {tokens / 1e3:.3g}k tokens" in branched
    assert f"branches of their trunks (schedule: wsd) save {100 * 90 / 280:.0f}%:" in branched
    cosine = yaml.safe_load(LADDER) | {"arms": arms}
    del cosine["schedule"], cosine["decay_fraction"]
    said = describe_bill(list(compose_points(sweep_from(cosine).points, 1).values()), 0.4)
    # decays of a fifth, the default; two rates share nothing
    assert (
        f"the shorter runs would save {100 * 0.8 * 120 / 280:.0f}%:" in said and f"{2 * 16 * 128 * 280 / 1e6:.3g}M tokens" in said
    )


def test_the_papers_ladder_would_cost_about_sixty_percent():
    configs = list(compose_points(read_sweep(ROOT / "sweeps/paper_0.5b_1k.yaml").points, 1).values())
    *_, last = describe_bill([config for config in configs if config.model["name"] == "gpt"], 0.4).splitlines()
    assert "the shorter runs would save 39%" in last  # 50 to 800k steps: 950 of 1550 remain


@pytest.mark.slow
@pytest.mark.parametrize("name", ["baselines_124m", "one_gpu_124m_1k"])
def test_the_first_line_of_a_large_sweep_is_its_bill(name):
    file = ROOT / f"sweeps/{name}.yaml"
    stated = file.read_text().splitlines()[0].partition("peak: ")[2].split(";")
    first, second, _ = describe_bill(list(compose_points(read_sweep(file).points, 1).values()), 0.4).splitlines()
    assert second.endswith(stated[0]) and f"{stated[1].strip().rstrip('.')[:6]} of checkpoints" in first
