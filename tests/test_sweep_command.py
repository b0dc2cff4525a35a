"""What scripts/sweep.py says before and after: the bill, why a point failed, and the script that reads the runs."""

import json

import pytest
import yaml
from training import ROOT, composed

from lab.sweeps.bill import checkpoints_kept, describe_bill
from lab.sweeps.check import compose_points
from lab.sweeps.cli import next_command
from lab.sweeps.outcome import reason_failed
from lab.sweeps.plan import Point, read_sweep

SIZE = [
    "size=124m",
    "model.n_layer=2",
    "device=cpu",
    "max_steps=10",
    "warmup_steps=0",
    "checkpoint_interval=4",
    "keep_checkpoints=2",
]


def test_the_bill_is_that_of_the_formulas():
    """124M's width, two layers: FLOPs by PaLM's formula and hours on a datasheet's peak, both by hand."""
    config = composed("model=gpt", *(o for o in SIZE if not o.startswith("max_steps=")), "max_steps=100000")
    words = describe_bill([config, config], mfu=0.5)
    C, T, V = 768, config.model["sequence_length"], config.model["vocab_size"]
    tokens = 2 * 100_000 * config.global_batch_size * T
    matrices = 2 * (4 * C * C + 3 * C * 4 * C) + V * C
    flops = tokens * (6 * matrices + 12 * 2 * T * C)
    assert f"{flops:.2e} FLOPs" in words and f"{flops / (0.5 * 989e12) / 3600:.3g} hours of one H100" in words
    assert f"{tokens / 1e9:.3g}B tokens" in words
    assert f"{flops / (0.5 * 312e12) / 3600:.3g} hours of one A100, {flops / (0.5 * 165e12) / 3600:.3g} hours of one 4090" in words
    parameters = matrices + V * C + (2 * 2 + 1) * C
    assert f"{2 * 2 * 12 * parameters / 1e9:.3g} GB of checkpoints" in words


def test_the_papers_ladder_costs_thousands_of_hours():
    points = read_sweep(ROOT / "sweeps/paper_0.5b_1k.yaml").points
    assert "6,435 hours of one H100" in describe_bill(list(compose_points(points, 1).values()), 0.4)


@pytest.mark.parametrize(
    ("overrides", "count"),
    [((), 2), (("keep_checkpoints=1",), 1), (("keep_every=4",), 3), (("checkpoint_interval=100",), 1)],
)
def test_checkpoints_that_stay_on_disk(overrides, count):
    kept = {o.split("=")[0]: o for o in (*SIZE, *overrides)}
    assert checkpoints_kept(composed("model=gpt", *kept.values())) == count


def suggested(file: str) -> str:
    points = [point for point in read_sweep(ROOT / "sweeps" / file).points if point.name.endswith("seed1")]
    steps = min(point.max_steps for point in points)
    return next_command("runs/x y", list(compose_points([point for point in points if point.max_steps == steps], 1).values()))


@pytest.mark.slow
def test_the_script_that_reads_a_sweep_is_the_one_for_its_arms():
    """Variants of one model are rows of a table; compare.py would take them for candidates of one arm."""
    assert suggested("tiny.yaml") == "python scripts/compare.py 'runs/x y'/*"
    assert suggested("ablations_tiny.yaml") == "python scripts/ablations.py 'runs/x y'/*"
    assert suggested("baselines_tiny.yaml") == "python scripts/compare.py 'runs/x y'/*"
    assert suggested("small.yaml") == "python scripts/compare.py 'runs/x y'/*"  # two contexts, which are sections
    assert suggested("regime.yaml") == "python scripts/compare.py 'runs/x y'/ARM-* 'runs/x y'/OTHER-*"  # sizes, and other levers
    assert suggested("transfer.yaml") == "python scripts/transfer.py 'runs/x y'"
    assert suggested("decomposition_tiny.yaml") == "python scripts/compare.py 'runs/x y'/* decompose=true"


def test_a_failed_point_gives_its_reason_in_words(tmp_path):
    point, log = Point("p", tmp_path, 10, ()), tmp_path / "log"
    log.write_text("--- attempt 1\nerror: no C++ compiler; compile=false runs\nmore by torchrun\n")
    assert reason_failed(point, log) == "error: no C++ compiler; compile=false runs"
    log.write_text("--- attempt 1\nset TORCHDYNAMO_VERBOSE=1 for more\n")
    assert reason_failed(point, log) == "set TORCHDYNAMO_VERBOSE=1 for more"
    (tmp_path / "status.json").write_text(json.dumps({"state": "failed", "message": "CannotRun: no C++\ncompiler"}))
    assert reason_failed(point, log) == "CannotRun: no C++ compiler"


def test_a_sweep_file_is_utf8_whatever_the_locale(tmp_path, monkeypatch):
    def read_as_ascii_would(path, encoding=None, errors=None):
        return path.read_bytes().decode(encoding or "ascii", errors or "strict")

    monkeypatch.setattr("pathlib.Path.read_text", read_as_ascii_would)
    node = yaml.safe_load((ROOT / "sweeps/tiny.yaml").read_bytes())
    (tmp_path / "ö.yaml").write_bytes(("# Größe\n" + yaml.safe_dump(node)).encode())
    assert read_sweep(tmp_path / "ö.yaml").points
