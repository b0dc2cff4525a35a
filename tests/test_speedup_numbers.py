"""Numbers that were wrong once: each situation has a known answer, and the report must give it or say why not."""

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import TOKENS_PER_STEP, final_loss, make_ladders, make_losses, make_run

from lab.runs import RunFolderError, find_runs, read_runs
from lab.speedup.cli import Settings, choose_folder
from lab.speedup.comparable import reason_left_out
from lab.speedup.ladder import Endpoint, build_ladder, choose_best
from lab.speedup.plots import draw_section
from lab.speedup.record import Made
from lab.speedup.report import analyze_runs, build_report
from lab.speedup.sentences import CANNOT_BE_TOLD
from lab.speedup.speedup import compare_ladders
from lab.speedup.text import render_section
from lab.speedup.write import render_report, write_report


def list_endpoints(losses, step_seconds=None):
    return [
        Endpoint("", model, steps * TOKENS_PER_STEP, steps, rate, seed, loss, step_seconds=step_seconds and step_seconds(model))
        for (model, steps, seed, rate), loss in losses.items()
    ]


def compare(endpoints):
    return compare_ladders(build_ladder("gpt", endpoints), build_ladder("ngpt", endpoints))


def headline(folders, **options):
    return analyze_runs(read_runs(folders), **options).comparisons[0].token_headline


# D5, D1: rates are compared over shared seeds, and a rate with fewer seeds leaves the choice among the others as it was.


def test_a_hopeless_rate_of_one_seed_does_not_decide_between_the_others():
    full = {"a": {1: [1.50], 2: [1.70], 3: [1.70]}, "b": {1: [1.55], 2: [1.56], 3: [1.57]}}
    assert choose_best(full, ()) == "b"
    assert choose_best({**full, "hopeless": {1: [3.0]}}, ()) == "b"
    assert choose_best({**full, "better": {1: [1.40]}}, ()) == "better"  # than b with the seed they share
    assert choose_best({**full, "lucky": {2: [1.60]}}, ()) == "b"
    assert choose_best(full, ("b",)) == "a"


# D2: a run that blew up without a number that is not finite.


def test_a_run_that_ends_where_it_began_has_diverged(tmp_path):
    folders = make_ladders(tmp_path, 1.0, budgets=(100, 200, 400), seeds=(0, 1, 2), noise=0.002)
    ends = make_run(tmp_path, "blown", steps=400, seed=9, loss=math.log(256) - 0.01)
    assert reason_left_out(read_runs([ends])[0]).startswith("diverged: its final loss, 5.535, is that of guessing (5.545)")
    section = analyze_runs(read_runs([*folders, ends]))
    assert section.comparisons[0].token_headline.ratio == pytest.approx(1.0, abs=0.1)
    assert "left out: blown (GPT): diverged" in "\n".join(render_section(section))


def test_a_run_that_loses_most_of_what_it_had_learned_has_diverged(tmp_path):
    folder = make_run(tmp_path, "lost", loss=1.7)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 100, "tokens": 409600, "train_seconds": 9.0, "val/loss": 4.9}\n')
        file.write('{"step": 90, "tokens": 368640, "train_seconds": 8.0, "val/loss": 1.8}\n')
    assert "its loss was 1.800 at step 90 and ended at 4.900" in reason_left_out(read_runs([folder])[0])


def test_a_seed_far_from_its_siblings_is_said(tmp_path):
    folders = make_ladders(tmp_path, 1.0, budgets=(100, 200, 400), seeds=(0, 1), noise=0.002)
    folders += [make_run(tmp_path, f"{arm}-far", arm, 400, seed=2, loss=2.6 if arm == "gpt" else 1.6) for arm in ("gpt", "ngpt")]
    cautions = analyze_runs(read_runs(folders)).caveats.cautions
    assert len(cautions) == 1 and "seed 2 ended at 2.6000, far above its siblings" in cautions[0]
    quiet = make_ladders(tmp_path / "quiet", 1.5, seeds=(0, 1, 2), noise=0.01)
    assert not analyze_runs(read_runs(quiet)).caveats.cautions


# D3: reading between budgets that lie far apart.


@pytest.mark.parametrize("budgets", [(100, 800), (100, 400, 1600), (100, 200, 400, 800)])
def test_intervals_cover_the_truth_on_coarse_ladders_too(budgets):
    generator, covered = np.random.default_rng(3), 0
    for _ in range(40):
        losses = make_losses(generator, 1.5, budgets=budgets, seeds=(1, 2, 3), noise=0.0005)
        interval = compare(list_endpoints(losses)).interval
        covered += interval.low <= 1.5 <= interval.high
    assert covered >= 36


@pytest.mark.parametrize(("budgets", "said"), [((100, 800), True), ((100, 400, 1600), True), ((100, 200, 400, 800), False)])
def test_a_coarse_ladder_gets_a_caution(tmp_path, budgets, said):
    cautions = analyze_runs(read_runs(make_ladders(tmp_path, 1.5, budgets=budgets))).caveats.cautions
    assert bool([line for line in cautions if "x apart" in line]) is said


# D4: settings that leave the result alone move no run, and make no candidate.


NEUTRAL = [
    {"size": "other", "context": "other"},
    {"data.name": "renamed", "data.source": "local", "data.repo": "x/y", "data.tokenizer": "other", "data.split_seed": 7},
    {"data.val_fraction": 0.1, "data.vocab_size": 300, "data.expected": {"documents": 3}},
    {"timeout_seconds": 1800.0, "recompute_layers": 0, "parallel": "ddp", "tensorboard": False},
    {"model.qk_norm": True},  # retired: the only value there is
    {"model.norm_eps": 1e-6, "model.init_std": 0.02},  # the defaults, which an older folder may lack
    {"on_nonfinite": "skip", "max_nonfinite": 9},
]


@pytest.mark.parametrize("config", NEUTRAL)
def test_a_neutral_setting_makes_a_seed_and_no_candidate(tmp_path, config):
    folders = [make_run(tmp_path, "a", seed=0, loss=1.6), make_run(tmp_path, "b", seed=1, loss=1.7, config=config)]
    report = build_report(read_runs([*folders, make_run(tmp_path, "n", "ngpt")]))
    (section,) = report.sections
    (candidate,) = section.ladders["gpt"].points[0].candidates
    assert candidate.seeds == (0, 1) and candidate.loss == pytest.approx(1.65)


def test_the_policy_for_nonfinite_numbers_counts_where_there_were_some(tmp_path):
    folders = [make_run(tmp_path, "a", seed=0), make_run(tmp_path, "b", seed=1, config={"on_nonfinite": "skip"})]
    (folders[1] / "events.jsonl").write_text('{"time": "x", "step": 3, "event": "nonfinite"}\n')
    assert len(analyze_runs(read_runs(folders)).ladders["gpt"].points[0].candidates) == 2


# D6: a run under two names is one seed.


def test_a_copy_of_a_run_is_no_further_seed(tmp_path):
    folders = make_ladders(tmp_path, 1.5, budgets=(100, 200), seeds=(0, 1), noise=0.003)
    losses = make_losses(np.random.default_rng(0), 1.5, budgets=(100, 200), seeds=(0, 1), noise=0.003)
    copies = [
        make_run(tmp_path, f"copy-{model}-{steps}-{seed}", model, steps, seed=seed, loss=loss)
        for (model, steps, seed, _), loss in losses.items()
    ]
    alone, doubled = (analyze_runs(read_runs(runs)) for runs in (folders, folders + copies))
    assert [gap.p_value for gap in alone.comparisons[0].gaps] == [gap.p_value for gap in doubled.comparisons[0].gaps]
    assert len(doubled.left_out) == 8 and "the same setting and seed as gpt-100" in doubled.left_out[0][1]


# D7, D8: differences of speed, and what the arms differ in beside the model.


@pytest.mark.parametrize(
    ("config", "environment", "words"),
    [({"recompute_layers": 4}, {}, "recompute_layers differs (0 / 4)"), ({}, {"versions.torch": "2.11.0"}, "torch differs")],
)
def test_what_changes_the_speed_of_a_step_is_said(tmp_path, config, environment, words):
    plain = {"recompute_layers": 0}
    folders = [
        make_run(tmp_path, "a", config=plain),
        make_run(tmp_path, "b", "ngpt", config=plain | config, environment=environment),
    ]
    assert words in analyze_runs(read_runs(folders)).headlines[0].time


def test_an_older_folder_without_a_key_of_speed_has_its_default(tmp_path):
    folders = [make_run(tmp_path, "a", config={"recompute_layers": 0}), make_run(tmp_path, "b", "ngpt")]
    assert "recompute_layers" not in analyze_runs(read_runs(folders)).headlines[0].time


@pytest.mark.parametrize("key", ["model.rope_base", "beta1", "beta2", "adam_epsilon", "grad_clip", "min_learning_rate"])
def test_what_differs_beside_the_model_is_said_in_the_terminal(tmp_path, key):
    folders = [make_run(tmp_path, arm, arm, config={key: value}) for arm, value in (("gpt", 0.5), ("ngpt", 0.25))]
    text = " ".join("\n".join(render_section(analyze_runs(read_runs(folders)))).split())
    assert f"{key.removeprefix('model.')} GPT 0.5, nGPT 0.25" in text.partition("Beside the model the arms differ in:")[2]


# D9: the interval of the time speedup knows that timings are noisy.


def test_the_interval_of_time_holds_the_noise_of_timings():
    generator, covered = np.random.default_rng(5), 0
    for _ in range(80):
        losses = make_losses(generator, 1.5, seeds=(1, 2, 3), noise=0.0005)
        noisy = list_endpoints(losses, lambda model: (0.1 if model == "gpt" else 0.12) * math.exp(0.08 * generator.normal()))
        interval = compare(noisy).time_headline.interval
        covered += interval.low <= 1.5 * 0.1 / 0.12 <= interval.high
    assert covered >= 72


# The headline claims what its seeds allow.


def test_one_seed_or_an_interval_around_one_cannot_be_told_from_one(tmp_path):
    one = analyze_runs(read_runs(make_ladders(tmp_path / "one", 1.6)))
    none = analyze_runs(read_runs(make_ladders(tmp_path / "none", 1.0, seeds=(0, 1, 2), noise=0.01)))
    bound = analyze_runs(read_runs(make_ladders(tmp_path / "bound", 9.0, budgets=(100, 200))))
    for section in (one, none, bound):
        assert f"nGPT's token speedup over GPT {CANNOT_BE_TOLD}" in section.headlines[0].claim
        first = " ".join(render_section(section)[0].split())
        said = "nGPT's token speedup over GPT cannot be told from 1 at this size"
        assert first.startswith(f"Not tuned (one learning rate for GPT and nGPT): {said}")
    assert "one seed" in one.headlines[0].claim and "interval" in none.headlines[0].claim


def test_the_first_words_say_which_arm_had_one_learning_rate(tmp_path):
    options = {"seeds": (0, 1, 2), "noise": 0.002}
    tuned = make_ladders(tmp_path, 1.8, rates=(1e-3, 2e-3, 4e-3), budgets=(100, 200, 400), **options)
    for names, words in {
        "ngpt-*-0.001-* gpt-*": "Not tuned (one learning rate for nGPT): nGPT reached",
        "ngpt-100-0.001-* ngpt-[24]00-* gpt-*": "Not tuned (one learning rate for nGPT at some budgets): nGPT reached",
        "ngpt-* gpt-*": "nGPT reached",
    }.items():
        section = analyze_runs(read_runs([run for run in tuned if any(run.match(name) for name in names.split())]))
        assert section.headlines[0].claim.startswith(words)
        assert "learning rates chosen anew in every draw" in section.headlines[0].basis
    single = analyze_runs(read_runs(make_ladders(tmp_path / "single", 1.8, **options))).headlines[0]
    assert "bootstrap over 3 seeds" in single.basis and "chosen anew" not in single.basis


@pytest.mark.slow
def test_pictures_show_and_name_only_what_there_is(tmp_path):
    def draw(name, **options):
        section = analyze_runs(read_runs(make_ladders(tmp_path / name, 1.3, **options)))
        (tmp_path / name / "out").mkdir()
        return {plot.path.stem: plot for plot in draw_section(section, tmp_path / name / "out")}

    one, several = draw("one"), draw("several", seeds=(0, 1, 2), noise=0.01)
    assert "Bars" not in one["gap"].caption + one["speedup"].caption + one["loss_by_tokens"].caption
    assert all("Bars" in several[name].caption for name in ("gap", "speedup", "loss_by_tokens"))
    assert "single runs" in one["loss_by_tokens"].alt and "headline_pair" in one
    for run in read_runs(sorted((tmp_path / "one").glob("*gpt-*"))):  # as in the quickstart: validated at the end alone
        metrics = Path(run.path) / "metrics.jsonl"
        lines = metrics.read_text().splitlines()
        kept = [line for line in lines[:-1] if "val/loss" not in line]
        metrics.write_text("\n".join([*kept, lines[-1]]) + "\n")
    section = analyze_runs(read_runs(sorted((tmp_path / "one").glob("*gpt-*"))))
    ends = {plot.path.stem: plot for plot in draw_section(section, tmp_path)}
    assert "headline_pair" not in ends and "single runs" not in ends["loss_by_tokens"].alt
    assert "Thin" not in ends["loss_by_tokens"].caption + ends["loss_by_seconds"].caption
    slow = make_run(tmp_path / "one", "gpt-slow", steps=400, seed=9, loss=3.0, step_seconds=0.4)
    section = analyze_runs(read_runs([*sorted((tmp_path / "one").glob("*gpt-*-*")), slow]))
    stems = {plot.path.stem: plot for plot in draw_section(section, tmp_path)}
    assert "loss_by_seconds" not in stems and "training time" not in stems["speedup"].caption + stems["speedup"].alt


def test_a_file_and_a_folder_of_one_name_are_one_part_of_the_page(tmp_path):
    report = build_report(read_runs(make_ladders(tmp_path / "runs", 1.3)))
    (tmp_path / "extrapolation.txt").write_text("length  loss\n   256  1.25\n")
    (tmp_path / "extrapolation").mkdir()
    (tmp_path / "extrapolation/table.csv").write_text("length,loss\n")
    page = render_report(report, made=Made(beside=(tmp_path / "extrapolation.txt", tmp_path / "extrapolation")), folder=tmp_path)
    assert page.count('<h1 class="section">extrapolation</h1>') == 1
    assert "   256  1.25" in page and '<a href="extrapolation/table.csv">' in page


def test_the_command_on_the_page_breaks_between_its_paths(tmp_path):
    made = Made(command="python scripts/compare.py a beside=x.txt,y<z 1,024")
    page = render_report(build_report(read_runs(make_ladders(tmp_path, 1.3, budgets=(100, 200)))), made=made)
    assert "python scripts/<wbr>compare.py a beside=x.txt,<wbr>y&lt;z 1,024" in page


def test_a_speedup_that_the_seeds_show_is_claimed(tmp_path):
    sure = analyze_runs(read_runs(make_ladders(tmp_path / "sure", 1.8, seeds=(0, 1, 2), noise=0.002)))
    assert sure.comparisons[0].told_from_one and "times fewer tokens" in sure.headlines[0].claim
    assert "95% interval 1." in sure.headlines[0].claim
    bound = analyze_runs(read_runs(make_ladders(tmp_path / "bound", 9.0, budgets=(100, 200), seeds=(0, 1, 2), noise=0.002)))
    assert bound.comparisons[0].told_from_one and ">2.00x" in bound.headlines[0].claim


def test_the_headlines_row_has_the_headlines_interval(tmp_path):
    item = analyze_runs(read_runs(make_ladders(tmp_path, 1.1, seeds=(0, 1, 2), noise=0.02))).comparisons[0]
    row = next(
        row for row in item.token_rows if (row.at_arm, row.at_tokens) == (item.token_headline.at_arm, item.token_headline.at_tokens)
    )
    assert row.interval == item.interval is not None


# Arms are told apart by every setting of the model.


def test_an_ablation_sweep_is_not_merged_into_one_arm(tmp_path):
    changes = {"": {}, "scalar": {"model.scalar": ["sqk"]}, "noqk": {"model.normalize_qk": False}, "init": {"model.sz_init": 8.0}}
    plain = {"model.scalar": [], "model.normalize_qk": True, "model.sz_init": 1.0}
    folders = [
        make_run(
            tmp_path, f"{name}-{seed}", "ngpt_ablation", seed=seed, loss=final_loss(409600) + 0.1 * index, config=plain | config
        )
        for index, (name, config) in enumerate(changes.items())
        for seed in (0, 1)
    ]
    assert set(analyze_runs(read_runs(folders)).ladders) == {
        "ngpt_ablation",
        "ngpt_ablation scalar=['sqk']",
        "ngpt_ablation normalize_qk=False",
        "ngpt_ablation sz_init=8",
    }


def test_of_two_ablations_neither_is_the_base(tmp_path):
    changes = ({"model.scalar": ["sqk"], "model.normalize_qk": True}, {"model.scalar": [], "model.normalize_qk": False})
    folders = [make_run(tmp_path, f"run{index}", "ngpt_ablation", config=config) for index, config in enumerate(changes)]
    arms = analyze_runs(read_runs(folders)).arms
    assert arms == {"run0": "ngpt_ablation scalar=['sqk']", "run1": "ngpt_ablation normalize_qk=False"}


def test_runs_are_found_one_level_down_and_what_is_none_is_noted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs", "alone")
    make_run(tmp_path / "runs/sweep", "a")
    make_run(tmp_path / "runs/sweep", "a.replaced-1")
    (tmp_path / "runs/sweep/failed").mkdir()
    (tmp_path / "runs/sweep/failed/run.lock").touch()
    (tmp_path / "runs/notes.txt").touch()
    (tmp_path / "runs/empty").mkdir()
    found, notes = find_runs(sorted(str(path) for path in (tmp_path / "runs").iterdir()))
    assert [os.path.relpath(path, tmp_path) for path in found] == ["runs/alone", "runs/sweep/a"]
    assert len(notes) == 3 and all("not a run folder" in note for note in notes)
    with pytest.raises(RunFolderError, match="no such run folder"):
        find_runs([tmp_path / "none"])
    with pytest.raises(RunFolderError, match="no run to compare"):
        find_runs([tmp_path / "runs/empty"])


def test_one_comparison_does_not_overwrite_another(tmp_path, monkeypatch, undrawn):
    monkeypatch.chdir(tmp_path)
    a, b, c = (make_run(tmp_path / "runs/tiny", name) for name in "abc")
    other = [make_run(tmp_path / "elsewhere/tiny", name) for name in "xyz"]

    def folder(runs, **settings):
        return choose_folder(Settings(runs=list(map(str, runs)), **settings), runs).as_posix()

    assert folder([a, b, c]) == "report/tiny" and folder([a, b]) == "report/a-vs-b"
    assert folder([a, b, c], decompose=True) == "report/tiny-parts"
    assert folder([a, b, c], across=["precision"], baseline="gpt bf16") == "report/tiny-precision-gpt_bf16"
    write_report(build_report(read_runs([a, b, c])), "report/tiny")
    assert folder([a, b, c]) == "report/tiny" and folder(other) == "report/tiny-2"
    d = make_run(tmp_path / "runs/tiny", "d")
    assert folder([a, b, c, d]) == "report/tiny" and folder([a, b, c]) == "report/a-vs-b-vs-c"


def test_the_ladder_is_a_table_for_other_programs(tmp_path, undrawn):
    write_report(build_report(read_runs(make_ladders(tmp_path / "runs", 1.5, seeds=(0, 1), noise=0.003))), tmp_path)
    with open(tmp_path / "ladder.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and {row["model"] for row in rows} == {"gpt", "ngpt"}
    assert float(rows[0]["loss"]) == pytest.approx(final_loss(409600), abs=0.02) and rows[0]["seeds"] == "2"
    assert {path.stem for path in tmp_path.glob("*.png")} == {path.stem for path in tmp_path.glob("*.svg")}


def test_a_page_shows_other_results(tmp_path, undrawn):
    runs = make_ladders(tmp_path / "runs", 1.5, budgets=(100, 200))
    write_report(build_report(read_runs(runs)), tmp_path / "first")
    (tmp_path / "samples.txt").write_text("gpt: <b>\x1b[31m")
    made = Made("python scripts/compare.py", "2026-01-01", (tmp_path / "first", tmp_path / "samples.txt"))
    write_report(build_report(read_runs(runs)), tmp_path / "second", made)
    page = (tmp_path / "second" / "report.html").read_text()
    assert page.count("<img") == 2 * (tmp_path / "first" / "report.html").read_text().count("<img")
    assert "gpt: &lt;b&gt;?[31m" in page and 'href="../first/report.html"' in page and "2026-01-01" in page
