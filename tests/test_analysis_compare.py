"""Test the comparison end to end on run folders whose speedup is known."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_runs import make_ladders, make_run

from lab.runs import read_runs
from lab.speedup.comparable import IncomparableError
from lab.speedup.record import to_mapping
from lab.speedup.report import analyze_runs, build_report
from lab.speedup.text import render_section
from lab.speedup.write import render_report, write_report

ROOT = Path(__file__).resolve().parents[1]


def analyze(folders, **options):
    return analyze_runs(read_runs(folders), **options)


def report_on(folders):
    return build_report(read_runs(folders))


def render_text(section):
    return "\n\n".join(render_section(section))


def say(section):
    """Return a section's headlines as text."""
    return [" ".join((line.claim, line.basis, line.time)) for line in section.headlines]


def run_cli(*arguments, cwd):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "compare.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
    )


@pytest.mark.parametrize("advantage", [1.0, 1.3, 1.63, 2.3, 4.0])
def test_known_speedup_is_found(tmp_path, advantage):
    comparison = analyze(make_ladders(tmp_path, advantage)).comparisons[0]
    assert comparison.token_headline.relation == "="
    assert comparison.token_headline.ratio == pytest.approx(advantage, rel=0.02)
    for row in comparison.token_rows:
        if row.relation == "=":
            assert row.ratio == pytest.approx(advantage, rel=0.02)
        else:
            assert row.ratio < advantage * 1.0001 if row.relation == ">" else row.ratio > advantage


def test_worse_challenger_is_reported_as_worse(tmp_path):
    analysis = analyze(make_ladders(tmp_path, 0.7))
    assert analysis.comparisons[0].token_headline.ratio == pytest.approx(0.7, rel=0.02)
    assert re.search(r"nGPT needed 1\.4\d times MORE tokens than GPT", say(analysis)[0])


def test_time_uses_the_seconds_ladder(tmp_path):
    analysis = analyze(make_ladders(tmp_path, 2.0, step_ratio=1.25))
    comparison = analysis.comparisons[0]
    assert comparison.time_headline.ratio == pytest.approx(2.0 / 1.25, rel=0.02)
    assert comparison.step_time_ratio == pytest.approx(1.25)
    assert analysis.headlines[0].time.startswith("Wall-clock") and "1.25 times as long" in analysis.headlines[0].time


@pytest.mark.parametrize("advantage, expected", [(8.0, ">2.00x"), (1 / 8, "<0.50x")])
def test_outside_the_range_is_a_bound(tmp_path, advantage, expected):
    analysis = analyze(make_ladders(tmp_path, advantage, budgets=(100, 200)))
    text = render_text(analysis)
    assert expected in say(analysis)[0] and "bound" in say(analysis)[0]
    assert "smallest budget is already better" in text and "never reached it in the budgets run" in text
    assert analysis.comparisons[0].interval is None


def test_learning_rate_is_chosen_by_the_mean_over_seeds(tmp_path):
    losses = {1e-3: (1.50, 1.90), 3e-3: (1.60, 1.62), 9e-3: (1.65, 1.66)}
    folders = [
        make_run(tmp_path, f"gpt-{lr}-{seed}", lr=lr, seed=seed, loss=values[seed])
        for lr, values in losses.items()
        for seed in (0, 1)
    ]
    point = analyze(folders).ladders["gpt"].points[0]
    assert point.best.learning_rate == 3e-3 and point.best.loss == pytest.approx(1.61) and point.edge is None


def test_edge_of_the_grid_and_a_diverged_rate(tmp_path):
    folders = [make_run(tmp_path, "low", lr=1e-3, loss=1.7), make_run(tmp_path, "high", lr=3e-3, loss=1.6)]
    assert any("highest tried" in warning for warning in analyze(folders).caveats.warnings)
    folders.append(make_run(tmp_path, "lost", lr=1e-2, state="diverged", stop_at=50))
    analysis = analyze(folders)
    assert analysis.ladders["gpt"].points[0].edge is None
    assert "left out: lost (GPT): diverged at step 50 of 100" in render_text(analysis)


def test_runs_that_differ_in_more_than_the_seed_are_not_seeds(tmp_path):
    folders = [
        make_run(tmp_path, "a", seed=0, loss=1.6, config={"weight_decay": 0.0}),
        make_run(tmp_path, "b", seed=1, loss=1.7, config={"weight_decay": 0.1}),
    ]
    point = analyze(folders).ladders["gpt"].points[0]
    assert [candidate.variant for candidate in point.candidates] == ["weight_decay=0.0", "weight_decay=0.1"]
    assert point.best.loss == 1.6


def test_regression_is_said_and_the_running_minimum_used(tmp_path):
    folders = [
        make_run(tmp_path, f"gpt-{steps}", steps=steps, loss=loss)
        for steps, loss in ((100, 1.8), (200, 1.6), (400, 1.65), (800, 1.5))
    ]
    folders += [make_run(tmp_path, f"ngpt-{steps}", "ngpt", steps, loss=loss) for steps, loss in ((100, 1.6), (200, 1.4))]
    analysis = analyze(folders)
    assert any("more tokens gave no lower loss" in warning for warning in analysis.caveats.warnings)
    row = next(row for row in analysis.comparisons[0].token_rows if row.loss == 1.6 and row.at_arm == "ngpt")
    assert row.ratio == pytest.approx(2.0)
    assert not any(row.loss == 1.65 for row in analysis.comparisons[0].token_rows)


@pytest.mark.parametrize(
    "where, key, value, words",
    [
        ("environment", "data.digest", "data-2", "data digest"),
        ("environment", "data.tokenizer.digest", "gpt2-1", "tokenizer digest"),
        ("environment", "evaluation.digest", "eval-2", "evaluation digest"),
        ("config", "model.sequence_length", 256, "context"),
        ("config", "global_batch_size", 64, "global_batch_size"),
        ("config", "model.n_layer", 6, "n_layer"),
        ("config", "model.n_head", 8, "n_head"),
        ("config", "model.n_embd", 256, "n_embd"),
        ("config", "model.vocab_size", 257, "vocab_size"),
        ("config", "precision.name", "fp32", "precision"),
    ],
)
def test_incomparable_runs_are_refused(tmp_path, where, key, value, words):
    folders = [make_run(tmp_path, "first"), make_run(tmp_path, "second", "ngpt", **{where: {key: value}})]
    with pytest.raises(IncomparableError) as refusal:
        analyze(folders)
    message = str(refusal.value)
    assert words in message and str(value) in message and "first" in message and "second" in message
    assert len(message.splitlines()) == 2


def test_precision_can_be_the_thing_compared(tmp_path):
    folders = [make_run(tmp_path, "a", loss=1.7), make_run(tmp_path, "b", loss=1.6, config={"precision.name": "fp32"})]
    assert list(analyze(folders, across=("precision",)).ladders) == ["gpt bf16", "gpt fp32"]


def test_an_ablation_is_no_seed_and_can_be_an_arm(tmp_path):
    folders = [
        make_run(tmp_path, "a", lr=1e-3, loss=1.7),
        make_run(tmp_path, "b", loss=1.6, config={"model.rope_base": 500000}),
    ]
    assert list(analyze(folders).ladders) == ["gpt", "gpt rope_base=500000"]
    assert list(analyze(folders, across=("model.rope_base",)).ladders) == ["gpt rope_base=none", "gpt rope_base=500000"]
    with pytest.raises(IncomparableError, match="model.qknorm"):
        analyze(folders, across=("model.qknorm",))


def test_unsteady_step_times_are_flagged(tmp_path):
    folders = [make_run(tmp_path, "a", step_seconds=0.1), make_run(tmp_path, "b", seed=1, step_seconds=0.2)]
    assert any("seconds per step vary" in warning for warning in analyze(folders).caveats.warnings)


def test_unfinished_runs_are_left_out(tmp_path):
    folders = make_ladders(tmp_path, 1.5, budgets=(100, 200))
    folders += [
        make_run(tmp_path, "running", loss=0.5, state="running", stop_at=60),
        make_run(tmp_path, "short", "ngpt", loss=0.5, stop_at=60),
        make_run(tmp_path, "nan", "ngpt", loss=float("nan"), lr=1e-1),
    ]
    starting = make_run(tmp_path, "starting", state="running", stop_at=10)
    (starting / "metrics.jsonl").unlink()
    analysis = analyze(folders + [starting])
    assert {run.name for run, _ in analysis.left_out} == {"running", "short", "nan", "starting"}
    assert len(analysis.runs) == 4 and analysis.comparisons[0].token_headline.ratio == pytest.approx(1.5, rel=0.02)
    assert "left out: short (nGPT): unfinished: last record at step 60 of 100" in render_text(analysis)


def test_no_finished_run_is_refused(tmp_path):
    with pytest.raises(IncomparableError, match="no finished run"):
        analyze([make_run(tmp_path, "a", state="preempted", stop_at=20)])


def test_one_arm_and_no_common_budget_say_what_is_missing(tmp_path):
    alone = analyze([make_run(tmp_path, "gpt-a")])
    assert "without a second arm" in alone.headlines[0].claim and not alone.comparisons
    apart = analyze([make_run(tmp_path, "gpt-b", steps=100), make_run(tmp_path, "ngpt-b", "ngpt", steps=200)])
    assert any("no budget in common" in warning for warning in apart.caveats.warnings)
    for name in ("gpt-a", "gpt-b"):
        write_report(report_on([tmp_path / name, *([tmp_path / "ngpt-b"] if name == "gpt-b" else [])]), tmp_path / "out")


def test_seeds_give_errors_and_an_interval(tmp_path):
    analysis = analyze(make_ladders(tmp_path, 1.8, seeds=(0, 1, 2), noise=0.004))
    interval = analysis.comparisons[0].interval
    assert interval.seeds == 3 and interval.paired and interval.low <= interval.high
    assert interval.low < 1.95 and interval.high > 1.65
    assert all(gap.paired and gap.standard_error is not None for gap in analysis.comparisons[0].gaps)
    assert "bootstrap over 3 seeds" in say(analysis)[0] and "4 budgets, 3 seeds each" in say(analysis)[0]


def test_text_fits_a_terminal(tmp_path):
    text = render_text(analyze(make_ladders(tmp_path, 2.3, seeds=(0, 1), rates=(1e-3, 3e-3, 9e-3))))
    assert max(map(len, text.splitlines())) <= 100


def test_different_machines_are_flagged(tmp_path):
    folders = [make_run(tmp_path, "a"), make_run(tmp_path, "b", "ngpt", environment={"device.name": "other"})]
    analysis = analyze(folders)
    assert "Not a comparison of the models alone" in analysis.headlines[0].time


def test_report_is_self_contained_and_escaped(tmp_path):
    evil = "<script>alert(1)</script>$x_{\"'&"
    folders = make_ladders(tmp_path, 1.5, budgets=(100, 200), rates=(1e-3, 3e-3, 9e-3))
    folders.append(make_run(tmp_path, "gpt <img src=x onerror=alert(2)>", seed=9))
    folders.append(make_run(tmp_path, "evil", evil, config={"data.revision": evil}, environment={"commit": evil}))
    written = write_report(report_on(folders), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    pictures = [path for path in written if path.suffix == ".png"]
    assert len(pictures) == 7 and page.count('src="data:image/svg+xml;base64,') == 7 and page.count("<img") == 7
    assert "<script" not in page and "onerror=alert(2)&gt;" in page
    assert not re.search(r"https?://|url\(|<link|@import", page)
    assert "prefers-color-scheme: dark" in page and page.index("cannot be told from 1 at this size") < page.index("<table")
    for heading in ("Conditions", "Limits", "Warnings"):
        assert f"<h2>{heading}</h2>" in page
    numbers = json.loads((tmp_path / "out" / "speedup.json").read_text())
    assert numbers["format"] == 2 and numbers["sections"][0]["digests"]["data"] == "data-1"
    assert len(numbers["sections"][0]["runs"]) == len(folders)


def test_settings_are_sorted_into_equal_tuned_and_per_arm(tmp_path):
    settings = analyze(make_ladders(tmp_path, 1.5, budgets=(100, 200))).settings
    assert settings.same["global_batch_size"] == 32 and settings.same["environment.data.digest"] == "data-1"
    assert settings.per_arm["weight_decay"] == {"gpt": 0.1, "ngpt": 0.0}
    assert settings.varied["max_steps"] == {"gpt": [100, 200], "ngpt": [100, 200]}


def test_command_line(tmp_path):
    folders = make_ladders(tmp_path / "runs", 1.63, budgets=(100, 200, 400))
    done = run_cli(*folders, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"nGPT reached GPT's final loss .* with 1\.6\d times fewer", " ".join(done.stdout.split()))
    assert (tmp_path / "report" / "runs" / "report.html").stat().st_size > 50_000
    other = make_run(tmp_path / "runs", "other", "ngpt", config={"global_batch_size": 64})
    refused = run_cli(*folders, other, "--out", "elsewhere", cwd=tmp_path)
    assert refused.returncode == 2 and "global_batch_size differs: 32 in" in refused.stderr
    assert "64 in other" in refused.stderr and not (tmp_path / "elsewhere").exists()
    absent = run_cli("runs/none", cwd=tmp_path)
    assert absent.returncode == 2 and len(absent.stderr.splitlines()) == 1
    assert run_cli(cwd=tmp_path).returncode == 2


def test_analysis_does_not_load_torch(tmp_path):
    code = "import sys, lab.speedup.write; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_same_input_gives_the_same_numbers(tmp_path):
    folders = make_ladders(tmp_path, 1.5, budgets=(100, 200), seeds=(0, 1), noise=0.003)
    assert to_mapping(report_on(folders)) == to_mapping(report_on(folders))
    assert render_report(report_on(folders)) == render_report(report_on(folders))
