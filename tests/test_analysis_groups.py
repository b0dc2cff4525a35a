"""Test several sizes and contexts in one call, and the published results beside them."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_runs import final_loss, make_ladders, make_run

from lab.runs import read_run, read_runs
from lab.speedup.comparable import IncomparableError
from lab.speedup.curve import Curve
from lab.speedup.published import (
    VOCABULARIES,
    describe_setting,
    find_series,
    list_series,
    read_published,
)
from lab.speedup.report import build_report
from lab.speedup.speedup import compute_speedup
from lab.speedup.text import render_text
from lab.speedup.write import write_report

BIG = {
    "model.n_layer": 24,
    "model.n_embd": 1024,
    "model.n_head": 16,
    "model.sequence_length": 1024,
    "model.vocab_size": 50304,
    "size": "0.5b",
    "data.name": "openwebtext",
}
TEXT = {"data.name": "openwebtext", "data.tokenizer.name": "gpt2", "data.digest": "owt", "evaluation.digest": "owt-val"}


def make_pair(root, prefix, advantage, config, environment):
    return [
        make_run(
            root,
            f"{prefix}-{model}-{steps}",
            model,
            steps,
            loss=final_loss(steps * 4096, factor),
            config=config,
            environment=environment,
        )
        for model, factor in (("gpt", 1.0), ("ngpt", advantage))
        for steps in (100, 200, 400)
    ]


def change(mapping, **changes):
    return {**mapping, **{key.replace("__", "."): value for key, value in changes.items()}}


@pytest.mark.slow
def test_every_setting_gets_a_section_with_its_own_speedup(tmp_path):
    longer = change(BIG, model__sequence_length=4096)
    folders = make_pair(tmp_path, "1k", 1.5, BIG, TEXT)
    folders += make_pair(tmp_path, "4k", 1.9, longer, change(TEXT, evaluation__digest="owt-val-4k"))
    folders += make_ladders(tmp_path, 1.2, budgets=(100, 200, 400))
    report = build_report(read_runs(folders))
    found = {(section.size, section.context): section.comparison.token_headline.ratio for section in report.sections}
    assert found == {
        ("tiny", 128): pytest.approx(1.2, rel=0.02),
        ("0.5b", 1024): pytest.approx(1.5, rel=0.02),
        ("0.5b", 4096): pytest.approx(1.9, rel=0.02),
    }
    papers = {(section.size, section.context): section.paper for section in report.sections}
    assert papers == {("tiny", 128): None, ("0.5b", 1024): "4x", ("0.5b", 4096): "10x"}
    text = render_text(report)
    assert max(map(len, text.splitlines())) <= 100 and "== 0.5b at context 4k, openwebtext, gpt2 tokens ==" in text
    written = write_report(report, tmp_path / "out")
    numbers = json.loads((tmp_path / "out" / "speedup.json").read_text())
    page = (tmp_path / "out" / "report.html").read_text()
    assert numbers["format"] == 2 and len(numbers["sections"]) == 3
    assert any(path.name == "overview.png" for path in written) and page.count("<img") == len(written) - 3


def test_within_a_setting_different_validation_text_is_still_refused(tmp_path):
    folders = make_pair(tmp_path, "1k", 1.5, BIG, TEXT) + make_ladders(tmp_path, 1.2, budgets=(100, 200))
    other = make_run(tmp_path, "other", "ngpt", 200, config=BIG, environment=change(TEXT, evaluation__digest="other-val"))
    with pytest.raises(IncomparableError, match="0.5b at context 1k.*\n.*evaluation digest"):
        build_report(read_runs([*folders, other]))


def test_settings_that_share_no_arm_pair_are_refused_in_words(tmp_path):
    folders = [
        make_run(tmp_path, "a", config=BIG, environment=TEXT),
        make_run(tmp_path, "b", "ngpt", config=change(BIG, model__sequence_length=4096), environment=TEXT),
    ]
    with pytest.raises(IncomparableError, match="context .sequence_length. differs: 1024 in a, 4096 in b"):
        build_report(read_runs(folders))


def test_a_setting_without_finished_runs_is_named_not_fatal(tmp_path):
    folders = make_ladders(tmp_path, 1.2, budgets=(100, 200))
    folders.append(make_run(tmp_path, "started", state="running", stop_at=50, config=BIG, environment=TEXT))
    report = build_report(read_runs(folders))
    assert len(report.sections) == 1 and "0.5b at context 1k: no finished run: started" in report.notes[0]
    assert "left out: 0.5b at context 1k" in render_text(report)


def test_vocabularies_are_sections_and_share_a_picture_in_bits_per_byte(tmp_path):
    llama = change(TEXT, data__tokenizer__name="llama-2", data__tokenizer__digest="l", data__digest="owt-l")
    folders = make_pair(tmp_path, "a", 1.5, BIG, TEXT)
    folders += make_pair(tmp_path, "b", 1.5, change(BIG, model__vocab_size=32000), llama)
    report = build_report(read_runs(folders))
    assert [section.tokenizer for section in report.sections] == ["gpt2", "llama-2"]
    assert all(section.comparison.token_headline.bits_per_byte for section in report.sections)
    overview = next(path for path in write_report(report, tmp_path / "out") if path.name == "overview.png")
    assert overview.stat().st_size > 10_000


@pytest.mark.slow
def test_names_from_run_folders_are_escaped_in_every_section(tmp_path):
    evil = "<script>alert(1)</script>$x_{"
    folders = make_pair(tmp_path, "a", 1.5, {"data.name": evil, "size": evil}, {"data.tokenizer.name": evil})
    write_report(build_report(read_runs(folders + make_pair(tmp_path, "b", 1.5, BIG, TEXT))), tmp_path / "out")
    assert "<script" not in (tmp_path / "out" / "report.html").read_text()
    assert all(re.fullmatch(r"section-\d", path.name) for path in (tmp_path / "out").iterdir() if path.is_dir())


@pytest.mark.parametrize(
    "config, environment, sources",
    [
        ({}, {}, {"HY", "NV"}),
        ({"model.sequence_length": 4096}, {}, {"NV"}),
        ({"model.vocab_size": 32000}, {"data.tokenizer.name": "meta-llama/Llama-2-7b-hf"}, {"JL", "P1"}),
        ({"model.vocab_size": 32000, "model.sequence_length": 4096}, {"data.tokenizer.name": "llama2"}, {"JL"}),
        (
            {"model.vocab_size": 32000, "data.name": "openwebtext_llama2"},
            {"data.tokenizer.name": "llama2", "data.name": "openwebtext_llama2"},
            {"JL", "P1"},
        ),
        ({"model.n_layer": 12, "model.n_embd": 768, "model.n_head": 12}, {}, {"NK"}),
        ({"model.sequence_length": 8192}, {}, set()),
        ({"model.n_layer": 12}, {}, set()),
        ({"model.n_head": 8}, {}, set()),
        ({"model.vocab_size": 32000}, {}, set()),  # GPT-2's name with another size
        ({"model.vocab_size": 32000}, {"data.tokenizer.name": "mistral-32k"}, set()),
        ({}, {"data.tokenizer.name": None}, set()),
        ({"data.name": "local"}, {}, set()),
        ({}, {"data.name": "local"}, set()),  # the configuration says one thing, what was recorded another
        ({"model.n_layer": [24], "model.sequence_length": {"a": 1}}, {}, set()),
    ],
)
def test_published_losses_are_shown_only_where_the_setting_agrees(tmp_path, config, environment, sources):
    run = read_run(make_run(tmp_path, "a", config={**BIG, **config}, environment={**TEXT, **environment}))
    assert {series.source for series in find_series([run])} == sources


def test_published_losses_are_not_shown_for_mixed_runs(tmp_path):
    folders = [
        make_run(tmp_path, "a", config=BIG, environment=TEXT),
        make_run(tmp_path, "b", config={**BIG, "data.name": "docs"}, environment={**TEXT, "data.name": "docs"}),
    ]
    assert find_series(read_runs(folders)) == () and describe_setting(read_run(folders[0])) is not None


def test_the_published_data_is_whole():
    published = read_published()
    for entry in published["ladders"] + published["curves"]:
        assert entry["source"] in published["sources"] and entry["weights"] in ("float32", "bfloat16", None)
        assert isinstance(entry["digitized"], bool) and entry["vocabulary"] in (*VOCABULARIES, "mistral")
        rates = entry.get("learning_rate")
        for tokens, loss in entry["points"]:
            losses = loss if isinstance(loss, list) else [loss]
            assert 1e8 < tokens < 1e12 and all(2 < value < 4 for value in losses)
            assert not isinstance(loss, list) or len(loss) == len(rates)
    assert not any("defect" in vars(anchor) for anchor in list_series())
    paper = [anchor for anchor in list_series() if anchor.source == "P1"]
    assert [anchor.points for anchor in paper] == [((100_000 * 524_288, 2.252),)]


def test_the_method_on_published_points_gives_the_table_in_the_document():
    series: dict = {}
    for item in list_series():
        if item.setting and not item.is_curve and item.weights:
            key = item.source, item.weights, item.setting.context, item.size
            series.setdefault(key, {}).setdefault(item.arm, []).extend(item.points)
    found = {}
    for (source, weights, context, _), arms in series.items():
        if {"gpt", "ngpt"} <= arms.keys():
            gpt, ngpt = (Curve.through(*zip(*arms[arm], strict=True)) for arm in ("gpt", "ngpt"))
            found[source, weights, context] = compute_speedup(max(gpt.losses[-1], ngpt.losses[-1]), gpt, ngpt, "", 0).ratio
    # Two budgets of HY's nGPT: 2.7453 at 5.24B, 2.6124 at 26.2B; GPT's last loss, 2.6617 at 26.2B, lies between them.
    share = (2.7453 - 2.6617) / (2.7453 - 2.6124)
    assert found["HY", "float32", 1024] == pytest.approx(5 / math.exp(share * math.log(5)), rel=1e-6)
    document = (Path(__file__).resolve().parents[1] / "docs" / "method.md").read_text()
    assert all(f"| {ratio:.3g}x |" in document for ratio in found.values()), found


@pytest.mark.slow
def test_command_line_over_several_settings(tmp_path):
    folders = make_pair(tmp_path, "1k", 1.5, BIG, TEXT) + make_ladders(tmp_path, 1.2, budgets=(100, 200))
    script = Path(__file__).resolve().parents[1] / "scripts" / "compare.py"
    done = subprocess.run([sys.executable, script, *folders], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^0\.5b +1k +openwebtext \(gpt2\) +4x +1\.\d\dx", done.stdout, re.MULTILINE)
    assert next(tmp_path.glob("report/*/section-2/loss_by_tokens.png")).exists()
    bad = subprocess.run([sys.executable, script, *folders, "--untuned-rate", "-1"], capture_output=True, text=True)
    assert bad.returncode == 2 and "Traceback" not in bad.stderr
