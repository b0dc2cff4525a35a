"""Test that a speedup made of known parts is taken apart into them."""

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import TOKENS_PER_STEP, final_loss, make_run

from lab.runs import read_runs
from lab.speedup.comparable import IncomparableError
from lab.speedup.decomposition import measure_parts
from lab.speedup.ladder import Endpoint, build_ladder
from lab.speedup.report import build_report
from lab.speedup.text import render_text
from lab.speedup.write import write_report

# Arm: model, precision, token advantage over GPT with fp32 weights, learning rates run, best one.
ARMS = {
    "gpt": ("gpt", "bf16", 1.0, (1.5e-3, 3e-3, 6e-3), 3e-3),
    "gpt_bf16_weights": ("gpt", "bf16_weights", 0.6, (1.5e-3, 3e-3, 6e-3), 3e-3),
    "gpt_qknorm": ("gpt_qknorm", "bf16", 1.3, (1.5e-3, 3e-3, 6e-3), 3e-3),
    "ngpt": ("ngpt", "bf16", 1.9, (6e-3, 1.2e-2, 2.4e-2), 1.2e-2),
    "ngpt_bf16_weights": ("ngpt", "bf16_weights", 1.5, (6e-3, 1.2e-2, 2.4e-2), 1.2e-2),
}
# What the rate nearest to nGPT's, one octave above the best, costs: as if the arm had this fraction of the tokens.
UNTUNED = 0.8


BUDGETS = (100, 200, 400, 800, 1600)


def make_losses(generator, arms=tuple(ARMS), seeds=(1,), noise=0.0, budgets=BUDGETS):
    losses = {}
    for arm in arms:
        _, _, advantage, rates, best = ARMS[arm]
        for steps in budgets:
            for seed in seeds:
                for rate in rates:
                    worth = advantage * UNTUNED ** (math.log2(rate / best) ** 2)
                    losses[arm, steps, seed, rate] = final_loss(steps * TOKENS_PER_STEP, worth) + noise * generator.normal()
    return losses


def make_arms(root, arms=tuple(ARMS), seeds=(1,), noise=0.0, budgets=BUDGETS):
    folders = []
    losses = make_losses(np.random.default_rng(0), arms, seeds, noise, budgets)
    for (arm, steps, seed, rate), loss in losses.items():
        model, precision = ARMS[arm][:2]
        stored = "bfloat16" if precision == "bf16_weights" else "float32"
        settings = {"precision": {"name": precision, "matmul": "bfloat16", "matrices": stored}}
        name = f"{arm}-{steps}-{rate}-{seed}"
        folders.append(make_run(root, name, model, steps, lr=rate, seed=seed, loss=loss, config=settings))
    return folders


def decompose(folders, **options):
    return build_report(read_runs(folders), with_parts=True, **options).sections[0].decomposition


WANTED = {"untuned": 1 / UNTUNED, "gpt_bf16": 1 / 0.6, "gpt": 1.3, "gpt_qknorm": 1.9 / 1.3}


def test_known_parts_are_found_and_multiply_to_the_whole(tmp_path):
    parts = decompose(make_arms(tmp_path))
    assert [row.key for row in parts.rows] == [*WANTED, "ngpt"]
    for row in parts.rows[:-1]:
        assert row.part.value == pytest.approx(WANTED[row.key], rel=0.02), row.words
        assert row.speedup.relation == "="
    product = math.prod(row.part.value for row in parts.rows[:-1])
    assert product == pytest.approx(parts.rows[0].speedup.value) == pytest.approx(1.9 / 0.6 / UNTUNED, rel=0.02)
    checks = dict(parts.checks)
    assert checks["bf16-stored matrices, in nGPT itself"].value == pytest.approx(1.9 / 1.5, rel=0.02)
    assert any("6e-3 at 410k" in note for note in parts.notes)


def test_the_interval_of_each_part_covers_the_truth_in_ninety_of_a_hundred_draws():
    generator, covered = np.random.default_rng(11), dict.fromkeys(WANTED, 0)
    following = dict(zip(WANTED, [*list(WANTED)[1:], "ngpt"], strict=True))
    roles = {"gpt_bf16_weights": "gpt_bf16"}
    for _ in range(100):
        losses = make_losses(generator, list(ARMS)[:4], (1, 2, 3), noise=0.003, budgets=(100, 400, 1600))
        endpoints = [
            Endpoint("", arm, steps * TOKENS_PER_STEP, steps, rate, seed, loss) for (arm, steps, seed, rate), loss in losses.items()
        ]
        ladders = {roles.get(arm, arm): build_ladder(arm, endpoints) for arm in list(ARMS)[:4]}
        ratios = measure_parts(ladders, None)[0]
        for key in WANTED:
            interval = ratios[key, following[key]].interval
            covered[key] += interval.low <= WANTED[key] <= interval.high
    assert min(covered.values()) >= 90, covered


def test_the_untuned_rate_can_be_given(tmp_path):
    folders = make_arms(tmp_path, budgets=(100, 400, 1600))
    parts = decompose(folders, untuned_rate=1.5e-3)
    assert parts.rows[0].part.value == pytest.approx(1 / UNTUNED, rel=0.05)
    assert parts.rows[0].part.interval is None and any("one seed only" in note for note in parts.notes)
    with pytest.raises(IncomparableError, match="untuned_rate=1e-2.*ran only 1.5e-3"):
        decompose(folders, untuned_rate=1e-2)


def test_a_missing_arm_joins_its_parts_and_is_named(tmp_path):
    parts = decompose(make_arms(tmp_path, arms=("gpt", "gpt_bf16_weights", "ngpt")))
    last = parts.rows[-2]
    assert last.part_words == "QK normalization and the rest of nGPT" and last.part.value == pytest.approx(1.9, rel=0.05)
    assert any("no finished runs of: GPT + QK-norm" in note for note in parts.notes)


def test_a_chain_without_enough_arms_is_refused(tmp_path):
    with pytest.raises(IncomparableError, match="cannot decompose: it takes"):
        decompose(make_arms(tmp_path, arms=("gpt", "ngpt")))


def test_two_arms_for_one_row_are_refused(tmp_path):
    folders = make_arms(tmp_path, arms=("gpt", "gpt_bf16_weights", "ngpt"))
    plain = {"precision": {"name": "fp32", "matmul": "float32", "matrices": "float32"}}
    with pytest.raises(IncomparableError, match="both would be the row 'gpt'"):
        decompose([*folders, make_run(tmp_path, "plain", config=plain)])


def test_a_loss_below_the_smallest_budget_gives_bounds(tmp_path):
    parts = decompose(make_arms(tmp_path, budgets=(100, 200)))
    first, rest = parts.rows[0], parts.rows[-2]
    assert first.speedup.relation == ">" and parts.rows[-1].at_most
    assert rest.part is not None and rest.part.value is None  # both costs are bounds: nothing is known of their ratio


@pytest.mark.slow
def test_command_line_prints_the_parts_and_draws_them(tmp_path):
    folders = make_arms(tmp_path / "runs", seeds=(1, 2), noise=0.0005, budgets=(100, 400, 1600))
    script = Path(__file__).resolve().parents[1] / "scripts" / "compare.py"
    done = subprocess.run([sys.executable, script, *folders, "--decompose"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"nGPT's speedup over GPT, bf16-stored matrices, untuned rate: [34]\.\d\dx", done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert next(tmp_path.glob("report/*/decomposition.png")).stat().st_size > 10_000


def test_the_report_holds_the_decomposition(tmp_path, undrawn):
    report = build_report(read_runs(make_arms(tmp_path, budgets=(100, 400, 1600))), with_parts=True)
    write_report(report, tmp_path / "out")
    page, numbers = (tmp_path / "out" / "report.html").read_text(), (tmp_path / "out" / "speedup.json").read_text()
    assert "What the speedup is made of" in page and '"decomposition"' in numbers
    assert "Beside the chain" in render_text(report)


RULES = {  # arm: model, update rule, token advantage over GPT
    "gpt": ("gpt", "adamw", 1.0),
    "gpt update=muon": ("gpt", "muon", 1.7),
    "gpt update=adamh": ("gpt", "adamh", 1.3),
    "gpt_qknorm": ("gpt_qknorm", "adamw", 1.2),
    "gpt_qknorm update=muon": ("gpt_qknorm", "muon", 1.8),
    "ngpt": ("ngpt", "adamw", 1.5),
    "ngpt update=muon": ("ngpt", "muon", 1.1),
}


def make_rules(root, seeds=(1, 2, 3), budgets=(100, 200, 400), advantage=1.0):
    generator = np.random.default_rng(3)
    folders = []
    for number, (arm, (model, update, k)) in enumerate(RULES.items()):
        for steps in budgets:
            for seed in seeds:
                worth = k * advantage if arm != "gpt" else k
                loss = final_loss(steps * TOKENS_PER_STEP, worth) + 0.0005 * generator.normal()
                settings = {"update": update, "precision": {"name": "bf16", "matmul": "bfloat16", "matrices": "float32"}}
                folders.append(make_run(root, f"{number}-{steps}-{seed}", model, steps, seed=seed, loss=loss, config=settings))
    return folders


def test_every_arm_at_one_loss_with_intervals(tmp_path):
    runs = read_runs(make_rules(tmp_path))
    report = build_report(runs)
    found = report.sections[0].equal_loss
    needs = {need.arm: need for need in found.needs}
    assert found.baseline == "gpt" and not found.note and needs.keys() == RULES.keys()
    assert list(needs) == sorted(RULES, key=lambda arm: -RULES[arm][2]), "the thriftiest first"
    for arm, (_, _, k) in RULES.items():
        assert needs[arm].speedup.value == pytest.approx(k, rel=0.02), arm
        interval = needs[arm].speedup.interval
        assert interval is None if arm == "gpt" else interval.low <= k <= interval.high, arm
    shown = render_text(report)
    assert re.search(r"GPT\+QK-norm\+Muon +\d+k +1\.[78]\dx +1\.\d\d-\d\.\d\dx", shown)
    assert max(map(len, shown.splitlines())) <= 100
    parts = build_report(runs, with_parts=True).sections[0].decomposition
    assert [row.key for row in parts.rows] == ["gpt", "gpt_qknorm", "ngpt"]  # other rules are no rows of the chain


def test_an_arm_that_is_better_at_its_smallest_budget_is_a_bound(tmp_path, undrawn):
    report = build_report(read_runs(make_rules(tmp_path, seeds=(1,), budgets=(100, 200), advantage=3.0)))
    found = report.sections[0].equal_loss
    assert {need.speedup.relation for need in found.needs if need.arm != "gpt"} == {">"} and found.note
    write_report(report, tmp_path / "out")
    assert "Every arm at one loss" in (tmp_path / "out/report.html").read_text()
    assert '"equal_loss"' in (tmp_path / "out/speedup.json").read_text()
