"""Test what the seeds allow to say: intervals that cover, learning rates chosen anew in every draw, p-values."""

import math

import numpy as np
import pytest
from synthetic_runs import TOKENS_PER_STEP, final_loss, make_ladders, make_losses, make_run

from lab.runs import read_runs
from lab.speedup.curve import Curve
from lab.speedup.ladder import Endpoint, build_ladder
from lab.speedup.report import analyze_runs
from lab.speedup.seeds import compare_means, resample_seeds, student_quantile
from lab.speedup.speedup import compare_ladders
from lab.speedup.text import render_section

RATES = (1.5e-3, 3e-3, 6e-3)


def list_endpoints(losses):
    return [
        Endpoint("", model, steps * TOKENS_PER_STEP, steps, rate, seed, loss) for (model, steps, seed, rate), loss in losses.items()
    ]


def compare(endpoints):
    return compare_ladders(build_ladder("gpt", endpoints), build_ladder("ngpt", endpoints))


@pytest.mark.parametrize("advantage, noise, rates", [(1.0, 0.01, (3e-3,)), (1.63, 0.01, RATES), (3.0, 0.003, RATES)])
def test_the_interval_covers_the_truth_in_ninety_of_a_hundred_draws(advantage, noise, rates):
    generator = np.random.default_rng(7)
    covered, errors = 0, []
    for _ in range(100):
        losses = make_losses(generator, advantage, seeds=(1, 2, 3), rates=rates, noise=noise, curvature=0.01)
        comparison = compare(list_endpoints(losses))
        covered += comparison.interval.low <= advantage <= comparison.interval.high
        errors.append(math.log(comparison.token_headline.ratio / advantage))
    assert covered >= 90
    assert abs(np.mean(errors)) < 0.02


def test_an_interval_is_no_wider_than_the_noise_asks_for():
    widths = []
    for noise in (0.002, 0.02):
        losses = make_losses(np.random.default_rng(3), 1.63, seeds=(1, 2, 3), rates=RATES, noise=noise)
        interval = compare(list_endpoints(losses)).interval
        widths.append(math.log(interval.high / interval.low))
    assert widths[0] < 0.4 * widths[1] and widths[0] < 0.25


def test_run_folders_of_a_noisy_grid_give_the_known_speedup(tmp_path):
    folders = make_ladders(tmp_path, 1.63, seeds=(1, 2, 3), rates=RATES, noise=0.0005, curvature=0.03)
    comparison = analyze_runs(read_runs(folders)).comparisons[0]
    assert comparison.token_headline.ratio == pytest.approx(1.63, rel=0.02)
    assert comparison.interval.low <= 1.63 <= comparison.interval.high
    assert comparison.interval.seeds == 3 and comparison.interval.paired and comparison.interval.bounded == 0
    assert comparison.time_headline.interval.low == pytest.approx(comparison.interval.low)


def test_the_learning_rate_is_chosen_anew_in_every_draw():
    # Two rates, each the better one with one of the seeds: which is best is luck, and the interval must know it.
    losses = {}
    for model in ("gpt", "ngpt"):
        for steps, level in ((100, 2.0), (200, 1.8), (400, 1.6)):
            for seed in (1, 2):
                for rate in (1e-3, 3e-3):
                    hurt = 0.05 if model == "gpt" and (seed == 1) == (rate == 1e-3) else 0.0
                    losses[model, steps, seed, rate] = level + hurt
    ladders = [build_ladder(model, list_endpoints(losses)) for model in ("gpt", "ngpt")]
    resamples, note = resample_seeds(ladders)
    assert note == "" and sum(draw.probability for draw in resamples.draws) == pytest.approx(1)
    chosen = {draw.ladders["gpt"].points[0].best.learning_rate for draw in resamples.draws}
    best = {round(draw.ladders["gpt"].points[0].best.loss, 6) for draw in resamples.draws}
    assert chosen == {1e-3, 3e-3} and best == {2.0, 2.025}
    assert compare(list_endpoints(losses)).interval.high > 1.05  # with the rates fixed it would be a point


def test_all_draws_of_three_seeds_are_enumerated_with_their_probabilities():
    losses = make_losses(np.random.default_rng(0), 1.5, seeds=(1, 2, 3), noise=0.01)
    resamples, _ = resample_seeds([build_ladder(model, list_endpoints(losses)) for model in ("gpt", "ngpt")])
    assert resamples.paired and len(resamples.draws) == 10
    assert sorted(round(draw.probability * 27) for draw in resamples.draws) == [1] * 3 + [3] * 6 + [6]


def test_arms_with_seeds_of_their_own_are_drawn_apart():
    ours = make_losses(np.random.default_rng(0), 1.5, seeds=(1, 2, 3), noise=0.01)
    theirs = make_losses(np.random.default_rng(1), 1.5, seeds=(4, 5, 6), noise=0.01)
    losses = {key: loss for key, loss in (ours | theirs).items() if (key[0] == "gpt") == (key[2] <= 3)}
    comparison = compare(list_endpoints(losses))
    assert not comparison.interval.paired and {gap.test for gap in comparison.gaps} == {"Welch t"}


def test_a_gap_is_between_the_seeds_that_both_arms_ran():
    # A seed's luck (the data order) is worth ten times the gap, and the challenger has only the unlucky ones.
    luck = {1: 0.2, 2: 0.1, 3: -0.3}
    losses = {("gpt", 100, seed, 1e-3): 2.0 + shift for seed, shift in luck.items()}
    one = compare(list_endpoints(losses | {("ngpt", 100, 1, 1e-3): 2.18})).gaps[0]
    two = compare(list_endpoints(losses | {("ngpt", 100, seed, 1e-3): 1.98 + luck[seed] for seed in (1, 2)})).gaps[0]
    assert one.nats_per_token == pytest.approx(-0.02) and (one.baseline_seeds, one.challenger_seeds) == (1, 1)
    assert two.nats_per_token == pytest.approx(-0.02) and two.paired and two.better_seeds == two.baseline_seeds == 2


@pytest.mark.parametrize(
    "theirs, words", [((1, 2), "only the seeds of both count"), ((2, 4), "no comparison seed by seed"), ((1, 2, 3), None)]
)
def test_the_report_says_how_other_seeds_are_compared(tmp_path, theirs, words):
    folders = [make_run(tmp_path, f"a{seed}", "gpt", seed=seed) for seed in (1, 2, 3)]
    folders += [make_run(tmp_path, f"b{seed}", "ngpt", seed=seed) for seed in theirs]
    found = [line for line in analyze_runs(read_runs(folders)).caveats.warnings if "different seeds" in line]
    assert [words in line for line in found] == [True] * (words is not None)


def test_a_rate_that_ran_with_a_lucky_seed_only_is_not_chosen_for_it():
    endpoints = [Endpoint("", "gpt", 1000, 10, 3e-3, seed, loss) for seed, loss in ((1, 1.50), (2, 1.60), (3, 1.61))]
    endpoints.append(Endpoint("", "gpt", 1000, 10, 6e-3, 1, 1.52))
    assert build_ladder("gpt", endpoints).points[0].best.learning_rate == 3e-3


def test_a_rate_that_diverged_with_one_seed_is_not_chosen(tmp_path):
    folders = [make_run(tmp_path, f"a{seed}", lr=1e-3, seed=seed, loss=1.7) for seed in (1, 2)]
    folders += [
        make_run(tmp_path, "b1", lr=3e-3, seed=1, loss=1.5),
        make_run(tmp_path, "b2", lr=3e-3, seed=2, state="diverged", stop_at=50),
    ]
    analysis = analyze_runs(read_runs(folders))
    assert analysis.ladders["gpt"].points[0].best.learning_rate == 1e-3
    assert any("3e-3 diverged with some seeds; it was not chosen" in warning for warning in analysis.caveats.warnings)


def test_students_quantiles():
    assert student_quantile(0.975, 2) == pytest.approx(4.30265, rel=1e-4)
    assert student_quantile(0.975, 30) == pytest.approx(2.04227, rel=1e-4)


def test_the_p_value_is_one_sided_and_paired_by_seed():
    ours, theirs = [1.50, 1.70, 1.60], [1.48, 1.67, 1.59]
    paired, apart = compare_means(ours, theirs, True), compare_means(ours, theirs, False)
    # Differences -0.02, -0.03, -0.01: t = -0.02 / (0.01 / sqrt(3)) with 2 degrees of freedom.
    t = 2 * math.sqrt(3)
    assert paired.p_value == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)), rel=1e-4)
    assert apart.p_value > 0.3 and compare_means(theirs, ours, True).p_value == pytest.approx(1 - paired.p_value)
    assert compare_means([1.0], [0.9], True) is None and compare_means([1, 2], [0, 1], True).p_value is None


def test_p_values_of_equal_arms_are_small_as_often_as_they_should_be():
    generator, small = np.random.default_rng(5), 0
    for _ in range(200):
        losses = make_losses(generator, 1.0, budgets=(100,), seeds=(1, 2, 3), noise=0.01)
        small += compare(list_endpoints(losses)).gaps[0].p_value < 0.1
    assert 8 <= small <= 34  # 20 expected, within three standard deviations


def test_the_gap_table_says_which_test_it_was(tmp_path):
    text = "\n".join(render_section(analyze_runs(read_runs(make_ladders(tmp_path, 1.8, seeds=(0, 1, 2), noise=0.004)))))
    assert "3/3 paired" in text and "3 of 3" in text and "on differences seed by seed (paired)" in " ".join(text.split())


def test_the_curve_between_budgets_is_monotone_and_close_to_a_power_law():
    costs = [1e6, 4e6, 16e6, 64e6]
    curve = Curve.through(costs, [final_loss(cost) for cost in costs])
    for cost in np.geomspace(1.1e6, 60e6, 50):
        assert curve.reach(final_loss(cost)).cost == pytest.approx(cost, rel=0.02)
    for generator in map(np.random.default_rng, range(20)):
        losses = np.cumsum(-generator.exponential(size=6) * generator.choice([0.01, 1.0], 6)) + 9.0
        rough = Curve.through(np.geomspace(1, 32, 6), losses)
        reached = [rough.reach(loss).cost for loss in np.linspace(losses[0], losses[-1], 400)]
        assert all(a <= b * (1 + 1e-12) for a, b in zip(reached, reached[1:], strict=False))


def test_a_plateau_is_not_bridged():
    curve = Curve.through([1, 2, 4, 8], [1.8, 1.6, 1.65, 1.5])
    assert curve.reach(1.6).cost == 2 and 4 < curve.reach(1.599).cost < 8


def test_step_time_is_the_median_of_what_was_logged(tmp_path):
    folder = make_run(tmp_path, "a", step_seconds=0.5)  # its training time holds a slow start
    with open(folder / "metrics.jsonl", "a") as file:
        for step, speed in ((20, 409.6), (30, 40960.0), (40, 40960.0), (50, 40000.0)):
            file.write(f'{{"step": {step}, "train/tokens_per_second": {speed}}}\n')
    run = read_runs([folder])[0]
    assert run.step_seconds == pytest.approx(TOKENS_PER_STEP / 40480.0)
    assert analyze_runs([run]).ladders["gpt"].step_seconds == run.step_seconds
