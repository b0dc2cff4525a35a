"""Rates that transfer: the fit of the best rate, the rules against numbers worked out by hand, a sweep of known drift."""

import json
import math

import pytest
from synthetic_runs import make_run

from cli.composition import ConfigError
from gpt.transfer import transfer as of_gpt
from lab.runs import read_runs
from lab.transfer import cli
from lab.transfer.optimum import find_optimum
from lab.transfer.series import measure_drifts, read_series
from ngpt.transfer import transfer as of_ngpt


def bowl(best, seeds=(1, 2), noise=0.0, rates=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)):
    """Losses of a parabola in octaves around `best`; the seeds' own optima lie `noise` octaves on each side of it."""
    for seed in seeds:
        shift = noise * (1 if seed % 2 else -1)
        for rate in rates:
            yield rate, seed, 2.0 + 0.05 * (math.log2(rate) - math.log2(best) - shift) ** 2


def test_a_parabola_is_found_between_the_rates_tried():
    optimum = find_optimum(bowl(3e-3))
    assert optimum.rate == pytest.approx(3e-3, rel=1e-6) and optimum.loss == pytest.approx(2.0, abs=1e-9)
    assert optimum.is_inside and optimum.error == pytest.approx(0, abs=1e-9)


def test_the_error_is_that_of_the_mean_over_seeds():
    seeds, noise = (1, 2, 3, 4), 0.3
    optimum = find_optimum(bowl(3e-3, seeds, noise))
    # each seed alone has its vertex at +-0.3 octaves; the vertex of the mean parabola is the mean of the vertices
    spread = math.sqrt(sum((noise * s) ** 2 for s in (1, -1, 1, -1)) / 3)
    assert optimum.error == pytest.approx(spread / math.sqrt(4), rel=1e-6)
    assert find_optimum(bowl(3e-3, (1,))).error is None


def test_the_end_of_the_grid_is_no_optimum():
    assert not find_optimum(bowl(5e-4)).is_inside
    assert not find_optimum(bowl(1e-1)).is_inside


def test_a_seed_that_lacks_a_rate_does_not_move_the_optimum():
    lucky = [(8e-3, 9, 1.0), (1.6e-2, 9, 1.1)]
    assert find_optimum([*bowl(3e-3), *lucky]).rate == pytest.approx(3e-3, rel=1e-6)


def test_two_rates_are_no_parabola():
    with pytest.raises(ValueError, match="three rates"):
        find_optimum(bowl(3e-3, rates=(1e-3, 2e-3)))


def test_the_rules_at_the_base_change_nothing_but_nugpts_half_rate_of_the_output():
    assert of_gpt({}, 1, 1, 1, 64).rate == {"embedding": 1, "matrices": 1, "output": 1, "scales": 1}
    assert of_gpt({}, 1, 1, 1, 64).init == {"embedding": 1, "matrices": 1, "output": 1}
    base = of_ngpt({"alpha_init": 0.25, "sz_init": 8.0}, 1, 1, 1, 64)
    assert base.rate == {"embedding": 1, "matrices": 1, "output": 0.5, "scales": 1} and not base.init
    assert base.model == {"alpha_init": 0.25, "sz_init": 8.0, "alpha_scale": 1 / 8, "sqk_scale": 1 / 8, "sz_scale": 1 / 8}


def test_the_rules_sixteen_times_as_wide_twice_as_deep_eight_times_as_long():
    gpt = of_gpt({}, 16, 2, 8, 64)
    assert gpt.rate == {"embedding": 1, "matrices": 1 / 16, "output": 1 / 16, "scales": 1}
    assert gpt.init == {"embedding": 1, "matrices": 1 / 4, "output": 1 / 16}
    ngpt = of_ngpt({"alpha_init": 0.25, "sz_init": 8.0, "alpha_scale": 0.1}, 16, 2, 8, 64)
    expected = {"embedding": 0.5 / 4, "matrices": 0.5 / 8, "output": 0.5 / 16, "scales": 0.5}
    assert ngpt.rate == pytest.approx(expected)
    assert ngpt.model == {"alpha_init": 0.125, "sz_init": 32.0, "sqk_scale": 1 / 8, "sz_scale": 1 / 8}


RATES = [1e-3 * 2**power for power in range(6)]
DRIFTS = {"gpt": -1.0, "ngpt": -0.75}  # octaves per doubling of the width, of the standard parametrization


def make_sweep(root, seeds=(1, 2), widths=(64, 128, 256), best=8e-3):
    """Write a sweep of known drift: none under transfer; of GPT's base the standard runs are transfer's too."""
    for model in DRIFTS:
        for parametrization in ("standard", "transfer"):
            for width in widths[(model, parametrization) == ("gpt", "transfer") :]:
                moved = 0.0 if parametrization == "transfer" else DRIFTS[model] * math.log2(width / widths[0])
                for rate, seed, loss in bowl(best * 2**moved, seeds, 0.1, RATES):
                    make_run(
                        root,
                        f"{model}-{parametrization}-{width}-{rate}-{seed}",
                        model,
                        lr=rate,
                        seed=seed,
                        loss=loss,
                        config=settings(model, parametrization, width, widths[0]),
                    )
    return root


def settings(model, parametrization, width, base):
    shape = {"model.n_embd": width, "model.n_layer": 2, "model.n_head": width // 32}
    start = {"model.init_std": 0.125} if model == "gpt" else {"model.alpha_init": 0.5, "model.sz_init": 8.0}
    named = {"base.n_embd": base, "base.n_layer": 2, "base.max_steps": 100, "base.applied": True}
    return shape | start | {"parametrization": parametrization} | (named if parametrization == "transfer" else {})


def test_the_drift_of_each_parametrization_is_measured(tmp_path):
    series, notes = read_series(read_runs(sorted(make_sweep(tmp_path).iterdir())))
    assert not notes
    found = {(item.arm, item.parametrization): measure_drifts(item) for item in series}
    for (arm, parametrization), drifts in found.items():
        (drift,) = drifts
        assert (drift.axis, drift.values, drift.is_inside) == ("width", (64, 128, 256), True), (arm, parametrization)
        assert drift.octaves == pytest.approx(DRIFTS[arm] if parametrization == "standard" else 0, abs=1e-6)
        # each seed moves every width's optimum alike, by 0.1 octaves: the optimum has an error, its drift has none
        assert drift.error == pytest.approx(0, abs=1e-6)
    assert {round(optimum.error, 6) for item in series for optimum in item.optima.values()} == {0.1}


def test_the_command_of_the_large_run(tmp_path, capsys):
    assert cli.PROGRAM.main(cli.PROGRAM.parse([str(make_sweep(tmp_path)), "size=0.5b", "max_steps=5000"])) is None
    shown = capsys.readouterr().out
    gpt, ngpt = (line for line in shown.splitlines() if line.startswith("python train.py"))
    base = "parametrization=transfer base.n_embd=64 base.n_layer=2 base.max_steps=100 learning_rate=8e-3"
    assert gpt == f"python train.py model=gpt size=0.5b context=1k max_steps=5000 {base} model.init_std=0.125 warmup_steps=500"
    assert ngpt == f"python train.py model=ngpt size=0.5b context=1k max_steps=5000 {base} model.alpha_init=0.5 model.sz_init=8"
    assert "heads of 32 in the small run, of 64 in the large one" in " ".join(shown.split())
    assert shown.count("say nothing of depth and steps") == 1  # muP's; nuGPT's have both


def test_a_command_says_that_the_best_rate_is_the_end_of_its_grid(tmp_path, capsys):
    cli.PROGRAM.main(cli.PROGRAM.parse([str(make_sweep(tmp_path, best=1e-4))]))
    shown = " ".join(capsys.readouterr().out.split())
    assert "the best rate is the end of the grid" in shown and "not inside" in shown


def test_files_and_figure_of_a_sweep(tmp_path):
    cli.PROGRAM.main(cli.PROGRAM.parse([str(make_sweep(tmp_path / "runs", seeds=(1,))), f"out={tmp_path / 'out'}"]))
    written = json.loads((tmp_path / "out/transfer.json").read_text())
    assert len(written["optima"]) == 12 and len(written["drifts"]) == 4 and len(written["large"]) == 2
    assert {item["error"] for item in written["drifts"]} == {None}  # one seed
    assert "| nGPT | transfer | width | 64 | 256 |" in (tmp_path / "out/transfer.md").read_text()
    assert "GPT, standard" in (tmp_path / "out/rates.svg").read_text() and (tmp_path / "out/rates.png").stat().st_size > 10_000


def test_a_rate_that_diverged_is_named_and_left_out(tmp_path):
    make_sweep(tmp_path, seeds=(1,))
    make_run(tmp_path, "lost", "gpt", lr=6.4e-2, seed=1, state="diverged", stop_at=50, config=settings("gpt", "standard", 64, 64))
    series, notes = read_series(read_runs(sorted(tmp_path.iterdir())))
    assert "gpt standard, width 64, 2 layers, 100 steps: 6.4e-2 diverged" in notes
    assert len(series[0].optima[min(series[0].optima)].curve) == len(RATES)


def test_runs_that_differ_in_another_setting_are_no_sweep_of_rates(tmp_path):
    make_sweep(tmp_path, seeds=(1,), widths=(64,))
    other = settings("gpt", "standard", 64, 64) | {"weight_decay": 0.2}
    make_run(tmp_path, "other", "gpt", lr=RATES[0], seed=2, loss=2.0, config=other)
    with pytest.raises(ConfigError, match="weight_decay=0.2"):
        cli.PROGRAM.main(cli.PROGRAM.parse([str(tmp_path)]))
