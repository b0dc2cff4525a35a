"""Rates that transfer: the fit of the best rate, and the rules, each against numbers worked out by hand."""

import math

import pytest

from gpt.transfer import transfer as of_gpt
from lab.transfer.optimum import find_optimum
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
