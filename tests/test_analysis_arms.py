"""What makes an arm of its own, how it is called, and that one arm has one schedule."""

import pytest
from synthetic_runs import make_run

from cli.composition import ConfigError
from lab.runs import read_runs
from lab.speedup import cli
from lab.speedup.arms import label_arms
from lab.speedup.report import build_report
from lab.words import display_arm

TRANSFER = {"parametrization": "transfer", "base.n_embd": 64, "base.applied": True, "model.sz_init": 16.0}


def test_update_rules_and_parametrizations_are_arms_and_not_candidates(tmp_path):
    folders = [
        make_run(tmp_path, "gpt", "gpt"),
        make_run(tmp_path, "muon", "gpt", loss=1.5, config={"update": "muon"}),
        make_run(tmp_path, "adamh", "gpt", config={"update": "adamh"}),
        make_run(tmp_path, "ngpt", "ngpt", config={"model.sz_init": 8.0}),
        make_run(tmp_path, "other", "ngpt", config={"model.sz_init": 8.0, "update": "adamw", "rate_multiplier.output": 0.5}),
        make_run(tmp_path, "carried", "ngpt", config=TRANSFER),
    ]
    runs = read_runs(folders)
    assert list(label_arms(runs).values()) == [
        "gpt",
        "gpt update=muon",
        "gpt update=adamh",
        "ngpt",
        "ngpt",  # a rate's factor is tuned like the rate
        "ngpt parametrization=transfer",  # what follows from it, as s_z, is not named again
    ]
    section = build_report(runs).sections[0]
    assert section.ladders["gpt"].points[0].best.loss > 1.5 == section.ladders["gpt update=muon"].points[0].best.loss
    assert [len(point.candidates) for point in section.ladders["ngpt"].points] == [2]
    assert display_arm("gpt_qknorm update=muon sz_init=8") == "GPT+QK-norm+Muon sz_init=8"


def test_the_multipliers_stand_among_what_differs(tmp_path):
    folders = [make_run(tmp_path, "gpt", "gpt"), make_run(tmp_path, "ngpt", "ngpt", config={"rate_multiplier.output": 0.5})]
    section = build_report(read_runs(folders)).sections[0]
    assert section.settings.per_arm["rate_multiplier.output"] == {"gpt": 1.0, "ngpt": 0.5}
    assert any("rate_multiplier.output" in line for line in section.caveats.conditions)


WSD = {"schedule": "wsd", "decay_fraction": 0.2}


@pytest.mark.parametrize(
    ("first", "second", "key"),
    [({}, WSD, "schedule"), (WSD, WSD | {"decay_fraction": 0.1}, "decay_fraction"), (WSD, WSD | {"decay": "sqrt"}, "decay")],
)
def test_an_arm_of_mixed_schedules_is_one_line_and_across_makes_two_of_it(tmp_path, first, second, key):
    folders = [
        make_run(tmp_path, "short", "gpt", 100, config=first),
        make_run(tmp_path, "long", "gpt", 200, config=second),
        make_run(tmp_path, "ngpt", "ngpt", 100, config=first),
    ]
    with pytest.raises(ConfigError, match=rf"gpt mixes schedules: {key}=\S+ in short, {key}=\S+ in long\n.*across="):
        cli.PROGRAM.main(cli.PROGRAM.parse([*map(str, folders), f"out={tmp_path / 'out'}"]))
    assert len(build_report(read_runs(folders), across=(key,)).sections[0].ladders) == 3
    without_wsd = [{k: v for k, v in one.items() if k != "schedule"} for one in (first, second)]
    folders = [make_run(tmp_path / "cosine", str(i), "gpt", 100 * (i + 1), config=one) for i, one in enumerate(without_wsd)]
    assert len(build_report(read_runs(folders)).sections[0].ladders) == 1  # the decay's keys mean nothing to a cosine


def test_two_arms_of_different_schedules_are_compared_and_the_difference_is_said(tmp_path):
    folders = [make_run(tmp_path, "gpt", "gpt"), make_run(tmp_path, "ngpt", "ngpt", config=WSD)]
    section = build_report(read_runs(folders)).sections[0]
    assert any("GPT cosine, nGPT wsd" in line for line in section.caveats.conditions)
    section = build_report(read_runs([make_run(tmp_path, "also", "gpt", config=WSD), folders[1]])).sections[0]
    assert any("the peak rate, then a decay over the last 0.2 of the steps (linear)" in line for line in section.caveats.conditions)
