"""What the laboratory writes replaces what it wrote before, and nothing else."""

import json

import pytest
from synthetic_runs import make_ladders, make_run
from training import refusal, run

from lab.ownership import RECORDS, refuse_foreign_folder
from lab.runs import read_runs
from lab.speedup.report import build_report
from lab.speedup.write import write_report

FOREIGN = [  # a program, the name of a file of the user's that it would write
    ("compare.py", "report.html"),
    ("compare.py", "speedup.json"),
    ("compare.py", "gap.png"),
    ("compare.py", "section-2/gap.svg"),
    ("inspect_weights.py", "inspection.html"),
    ("inspect_weights.py", "scales.png"),
    ("ablations.py", "ablations.md"),
    ("ablations.py", "ablations.svg"),
    ("transfer.py", "transfer.json"),
    ("transfer.py", "rates.png"),
    ("extrapolate.py", "extrapolation.json"),
    ("extrapolate.py", "extrapolation.png"),
]


@pytest.mark.parametrize("content", ["mine", '{"mine": 1}', "[]"])
@pytest.mark.parametrize("script, name", FOREIGN)
def test_a_file_that_is_not_ours_is_not_replaced(script, name, content, trained, tmp_path):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    line = refusal(f"scripts/{script}", trained / "gpt", trained / "ngpt", f"out={tmp_path / 'out'}", code=2)
    assert line == f"error: {path} was not written by this program and is not replaced; give another out="
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path] and path.read_text() == content


@pytest.mark.parametrize("key, name", [("json", "step.json"), ("profile", "gpt.json"), ("profile", "gpt.txt")])
def test_the_benchmark_replaces_no_file_that_is_not_its_own(key, name, tmp_path):
    path = tmp_path / name
    path.write_text("{}")
    given = path if key == "json" else tmp_path
    line = refusal("scripts/bench.py", "size=tiny", "arms=gpt", f"{key}={given}", code=2)
    assert line == f"error: {path} was not written by this program and is not replaced; give another {key}="
    assert path.read_text() == "{}"


def test_a_prediction_replaces_no_file_that_is_not_its_own(tmp_path):
    path = tmp_path / "predicted.json"
    path.write_text('{"mine": 1}')
    line = refusal("scripts/predict_gpu.py", "size=tiny", "precision=bf16", f"json={path}", code=2)
    assert line == f"error: {path} was not written by this program and is not replaced; give another json="
    assert path.read_text() == '{"mine": 1}'


def test_a_report_of_ours_is_replaced_and_what_lies_beside_it_stays(trained, tmp_path):
    for _ in range(2):
        run("scripts/compare.py", str(trained / "gpt"), str(trained / "ngpt"), f"out={tmp_path}")
        (tmp_path / "notes.txt").write_text("mine")
    assert json.loads((tmp_path / "speedup.json").read_text())[RECORDS["speedup.json"]]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_a_report_that_was_cut_off_is_ours(tmp_path, monkeypatch):
    """The record comes first, so the files after it are known to be ours."""
    ladder = make_ladders(tmp_path / "runs", 1.5, budgets=(100, 200))
    other = make_run(tmp_path / "runs", "other", config={"model.sequence_length": 4096})

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lab.speedup.write.render_report", stop)
    with pytest.raises(KeyboardInterrupt):
        write_report(build_report(read_runs([*ladder, other])), tmp_path / "out")
    refuse_foreign_folder(tmp_path / "out", "speedup.json", "*")
