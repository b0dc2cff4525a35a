"""Keys that leave the result alone are known as such wherever that matters, and a replaced run counts nowhere."""

from dataclasses import fields

import pytest
from synthetic_runs import final_loss, make_run

from engine.config import NEUTRAL, Config
from lab.ablations.table import analyze_ablations
from lab.runs import read_runs
from lab.speedup.comparable import read_recipe
from lab.speedup.report import analyze_runs
from runfolder.layout import is_replaced, is_run_folder, replaced_name

BUDGETS = (100, 200, 400)
LUCK = 0.03  # nats: what the second seed of the challenger is better by, and its first worse


def make_equal_arms(root, second_seed=None):
    """Write both arms, two seeds each, without a true difference; second_seed changes the config of nGPT's second seed."""
    return [
        make_run(
            root,
            f"{model}-{steps}-{seed}",
            model,
            steps,
            seed=seed,
            loss=final_loss(steps * 4096) + (LUCK * (1 - 2 * seed) if model == "ngpt" else 0.0),
            config=second_seed if model == "ngpt" and seed == 1 else None,
        )
        for model in ("gpt", "ngpt")
        for steps in BUDGETS
        for seed in (0, 1)
    ]


CHANGES = {
    "timeout_seconds": 1800.0,
    "recompute_layers": 12,
    "keep_every": 50,
    "verify_data": "full",
    "on_nonfinite": "skip",
    "max_nonfinite": 7,
    "micro_batch_size": 8,
    "log_interval": 3,
    "size": "mine",
    "data.name": "mine",
    "wandb.mode": "offline",
}


@pytest.mark.parametrize("key", CHANGES)
def test_seeds_that_differ_in_a_neutral_key_are_seeds_of_one_candidate(tmp_path, key):
    analysis = analyze_runs(read_runs(make_equal_arms(tmp_path, {key: CHANGES[key]})))
    headline = analysis.comparisons[0].token_headline
    assert headline.ratio == pytest.approx(1.0, abs=0.005)
    assert "2 seeds each" in analysis.headlines[0].claim + analysis.headlines[0].basis


def test_every_neutral_key_is_neutral_in_a_comparison(tmp_path):
    recipe = read_recipe(read_runs([make_run(tmp_path, "a")])[0])
    assert {f.name for f in fields(Config)} >= NEUTRAL
    # Of the neutral keys only these are read, and count where something was not finite.
    assert {key.partition(".")[0] for key in recipe} & NEUTRAL == {"on_nonfinite", "max_nonfinite"}
    assert {"seed", "max_steps", "learning_rate", "weight_decay", "model.n_layer", "precision.name"} <= recipe.keys()


@pytest.mark.parametrize("rate", [3e-3, 6e-3])
def test_a_replaced_run_is_neither_a_seed_nor_a_candidate(tmp_path, rate):
    folders = make_equal_arms(tmp_path)
    for steps in BUDGETS:
        folders.append(
            make_run(tmp_path, f"ngpt-{steps}-0.replaced-1", "ngpt", steps, lr=rate, loss=final_loss(steps * 4096) - 0.2)
        )
    analysis = analyze_runs(read_runs(folders))
    assert analysis.comparisons[0].token_headline.ratio == pytest.approx(1.0, abs=0.005)
    assert "2 seeds each" in analysis.headlines[0].claim + analysis.headlines[0].basis


def test_a_folder_that_only_sounds_replaced_is_a_run(tmp_path):
    for name, expected in (("x.replaced-1", True), ("x.replaced-12", True), ("x.replaced-by-y", False), ("replaced-1", False)):
        folder = make_run(tmp_path, name)
        assert is_replaced(folder) is expected and is_run_folder(folder) is not expected
    assert replaced_name(tmp_path / "x").name == "x.replaced-2"


def test_a_replaced_run_is_no_row_of_an_ablation(tmp_path):
    kept = make_run(tmp_path, "n-0", "ngpt")
    replaced = make_run(tmp_path, "n-1.replaced-1", "ngpt", seed=1)
    assert analyze_ablations(read_runs([kept, replaced])).left_out == {"n-1.replaced-1": "set aside by resume=never"}
