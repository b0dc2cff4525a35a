"""Inspection: known spectra, JSON against numpy, arms without or with other scales, and the command on real runs."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training import refusal, run

from cli.composition import ConfigError
from engine.checkpoint import CheckpointError
from engine.models import build_model
from lab.inspection import measure as inspection
from lab.inspection.checkpoints import History, Inspection, choose_labels, inspect_runs, read_history
from lab.inspection.cli import PROGRAM, steps_of
from lab.inspection.measure import MATRICES, InspectionError, measure_embedding, measure_matrix, measure_model
from lab.inspection.plots import draw_conditions
from lab.inspection.tables import list_numbers
from lab.inspection.write import to_mapping, write_inspection

SIZE = {"vocab_size": 40, "n_layer": 2, "n_head": 2, "n_embd": 16, "sequence_length": 8}


def orthonormal(rows: int, columns: int) -> torch.Tensor:
    """Return a random matrix with orthonormal rows or columns, whichever are fewer."""
    tall = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns), dtype=torch.float64))[0]
    return tall if rows >= columns else tall.T


def with_singular_values(rows: int, columns: int, values: list[float]) -> torch.Tensor:
    k = len(values)
    return orthonormal(rows, k) @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ orthonormal(k, columns)


def inspect_model(model, label="model", history=None) -> Inspection:
    history = history or History([], {}, [], [])
    return Inspection(label, label, "gpt", 10, 640, 1e-3, SIZE, None, history, measure_model(model))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_a_known_spectrum_is_found():
    values = [5.0, 3.0, 2.0, 0.001]
    matrix = measure_matrix(with_singular_values(4, 9, values), dim=1, n_head=1)
    np.testing.assert_allclose(matrix.singular_values, [values], rtol=1e-10)
    assert matrix.conditions == pytest.approx([5000.0])
    assert measure_matrix(torch.eye(8), dim=1, n_head=2).conditions.tolist() == [1.0, 1.0]


def test_heads_are_cut_along_the_rows_and_the_median_is_taken_over_them():
    conditions = [2.0, 10.0, 100.0]
    model = build_model({"name": "gpt"} | SIZE | {"n_head": 3, "n_embd": 18})
    heads = [with_singular_values(6, 18, [c, 1.5, 1.2, 1.1, 1.05, 1.0]) for c in conditions]
    model.blocks[1].attn.k_proj.weight.data = torch.cat(heads).float()
    measured = to_mapping([inspect_model(model)])["runs"][0]["matrices"]["k"][1]
    assert measured["condition_per_head"] == pytest.approx(conditions, rel=1e-4)
    assert measured["condition"] == pytest.approx(10.0, rel=1e-4) and measured["layer"] == 2


@pytest.mark.parametrize("name, shape", [("q", (8, 16)), ("up", (16, 32)), ("down", (16, 32))])
def test_normalization_is_along_the_embedding_dimension(name, shape):
    _, dim, _ = MATRICES[name]
    # Vectors of lengths 1 to 1000 at right angles: normalizing them gives condition 1, along the other axis it does not.
    if dim == 1:
        matrix = torch.logspace(0, 3, shape[0], dtype=torch.float64)[:, None] * orthonormal(*shape)
    else:
        matrix = orthonormal(shape[1], shape[0]) * torch.logspace(0, 3, shape[0], dtype=torch.float64)
    measured = measure_matrix(matrix, dim, n_head=1)
    assert measured.conditions == pytest.approx([1000.0]) and measured.normalized_conditions == pytest.approx([1.0])
    assert not measured.is_unit_norm
    np.testing.assert_allclose(measured.norms, np.logspace(0, 3, shape[0]), rtol=1e-9)
    assert measure_matrix(matrix, 1 - dim, n_head=1).normalized_conditions[0] > 2


def test_a_rank_deficient_head_is_infinite_null_and_noted(tmp_path):
    model = build_model({"name": "gpt"} | SIZE)
    model.blocks[0].attn.q_proj.weight.data[1] = model.blocks[0].attn.q_proj.weight[0]  # in the first of two heads
    model.blocks[1].mlp.up_proj.weight.data.zero_()
    item = inspect_model(model)
    assert item.measured.matrices["q"][0].conditions[0] == np.inf
    report = to_mapping([item])["runs"][0]
    assert report["matrices"]["q"][0]["condition_per_head"][0] is None
    assert report["matrices"]["q"][0]["condition_per_head"][1] < 1000
    assert report["matrices"]["up"][1]["condition"] is None and report["matrices"]["up"][0]["condition"] < 1000
    assert any(note.startswith("q: rank-deficient heads (layer 1: 1)") for note in report["notes"])
    assert any(note.startswith("up: rank-deficient matrices (layer 2: 1)") for note in report["notes"])
    json.dumps(report, allow_nan=False)
    assert draw_conditions([item], tmp_path)[0].path.is_file()


def test_the_normalized_model_has_unit_norms_and_nothing_to_normalize():
    measured = measure_model(build_model({"name": "ngpt"} | SIZE))
    for embedding in measured.embeddings.values():
        np.testing.assert_allclose(embedding.norms, 1, atol=1e-6)
        np.testing.assert_allclose(embedding.cosines, embedding.dots, atol=1e-6)
    for layers in measured.matrices.values():
        for matrix in layers:
            assert matrix.is_unit_norm and (matrix.normalized_conditions == matrix.conditions).all()
    free = measure_model(build_model({"name": "gpt"} | SIZE))
    assert not any(matrix.is_unit_norm for layers in free.matrices.values() for matrix in layers)


def test_embeddings_agree_with_numpy(monkeypatch):
    weight = torch.randn(50, 8) * torch.rand(50, 1) + 0.5
    rows = weight.double().numpy()
    monkeypatch.setattr(inspection, "ROWS_AT_ONCE", 7)  # the parts must add up
    found = measure_embedding(weight)
    norms = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(found.norms, np.sort(norms))
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(np.cov(rows.T))[::-1])
    np.testing.assert_allclose(np.median(found.relative_eigenvalues), 1)
    products = (rows @ rows.T)[np.triu_indices(50, 1)]
    cosines = (rows @ rows.T / np.outer(norms, norms))[np.triu_indices(50, 1)]
    np.testing.assert_allclose(found.dots, np.sort(products), atol=1e-12)
    np.testing.assert_allclose(found.cosines, np.sort(cosines), atol=1e-12)
    assert found.all_pairs


def test_of_a_large_vocabulary_pairs_are_sampled_always_the_same_and_never_of_a_row_with_itself(monkeypatch):
    monkeypatch.setattr(inspection, "PAIR_LIMIT", 500)
    first, second = inspection.choose_pairs(100)
    assert len(first) == 500 and (first != second).all() and second.max() < 100
    assert torch.equal(first, inspection.choose_pairs(100)[0])
    assert not measure_embedding(torch.randn(100, 4)).all_pairs


def test_scales_are_effective_values_by_layer():
    model = build_model({"name": "ngpt", "alpha_init": 0.05, "alpha_scale": 0.25} | SIZE)
    model.blocks[1].attn_alpha.stored.data[:] = -1.0  # effective -1 * 0.05 / 0.25
    scales = measure_model(model).scales["attn_alpha"]
    np.testing.assert_allclose(scales.layers[1], -0.2, rtol=1e-6)
    assert scales.mean == pytest.approx((0.05 + 0.2) / 2) and scales.init == 0.05 and scales.is_learned


@pytest.mark.slow
def test_arms_with_other_scales_and_depths_share_the_pictures(tmp_path):
    nodes = [
        {"name": "gpt_qknorm", "n_layer": 1},
        {"name": "ngpt_ablation", "scalar": ["alpha", "sz"], "fixed": ["sqk"]},
        {"name": "ngpt_ablation", "normalize_matrices": False, "normalize_states": False, "n_layer": 5},
    ]
    items = []
    for index, node in enumerate(nodes):
        item = inspect_model(build_model(SIZE | node), f"<b>arm {index}$")
        items.append(dataclasses.replace(item, size=SIZE | {"n_layer": node.get("n_layer", 2)}))
    without, scalar, free = (item.measured for item in items)
    assert not without.scales and set(scalar.scales) == set(free.scales) == set(inspection.SCALES)
    assert {name for name, found in scalar.scales.items() if not found.is_learned} == {"sqk"}
    assert len(scalar.scales["sz"].layers[0]) == SIZE["vocab_size"] and scalar.scales["sqk"].mean == 1
    page, _, *pictures = write_inspection(items, tmp_path)
    assert "&lt;b&gt;arm 1$" in page.read_text() and "<b>arm" not in page.read_text()
    assert {"attention_layer1.png", "scales.png"} <= {path.name for path in pictures}
    assert "scale_history.png" not in {path.name for path in pictures}  # nothing was recorded
    assert "metrics.jsonl records no scale means" in page.read_text()


class Relu2(torch.nn.Module):
    """An MLP without a gate, as in docs/extending.md."""

    def __init__(self, width: int):
        super().__init__()
        self.up_proj = torch.nn.Linear(width, 6 * width, bias=False)
        self.down_proj = torch.nn.Linear(6 * width, width, bias=False)


@pytest.mark.slow
def test_an_arm_without_some_of_the_matrices_is_measured_and_the_page_says_what_it_lacks(tmp_path):
    odd, bare = build_model({"name": "gpt"} | SIZE), build_model({"name": "gpt"} | SIZE)
    for block in odd.blocks:
        block.mlp = Relu2(16)
    for block in bare.blocks:  # nothing of the table at all
        block.mlp = block.attn = torch.nn.Identity()
    items = [
        inspect_model(model, label)
        for model, label in ((odd, "odd"), (build_model({"name": "ngpt"} | SIZE), "nGPT"), (bare, "bare"))
    ]
    assert set(items[0].measured.matrices) == set(MATRICES) - {"gate"} and not items[2].measured.matrices
    assert items[0].measured.matrices["up"][0].norms.shape == (96,)
    page, *_ = write_inspection(items, tmp_path)
    assert "odd: gate: this model has no mlp.gate_proj.weight in any layer; it is left out" in page.read_text()
    write_inspection(items[2:], tmp_path)
    _, rows = list_numbers(items)
    gate = next(row for row in rows if row[0] == "condition number of gate")
    assert gate[1] == gate[3] == "-" and float(gate[2]) > 1


def test_weights_that_are_not_finite_are_refused():
    model = build_model({"name": "gpt"} | SIZE)
    model.blocks[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(InspectionError, match="blocks.1.mlp.up_proj.weight"):
        measure_model(model)
    assert InspectionError.exit_code == 4


def test_labels_are_the_shortest_that_tell_apart():
    assert choose_labels([("GPT", "a", "runs/a", 5), ("nGPT", "b", "runs/b", 5)]) == ["GPT", "nGPT"]
    assert choose_labels([("GPT", "a", "runs/a", 5), ("GPT", "b", "runs/b", 5)]) == ["a", "b"]
    assert choose_labels([("GPT", "a", "runs/a", 5), ("GPT", "a", "runs/a", 9)]) == ["GPT step 5", "GPT step 9"]
    assert choose_labels([("GPT", "a", "x/a", 5), ("GPT", "a", "y/a", 5)]) == ["x/a", "y/a"]
    with pytest.raises(ConfigError, match="twice"):
        choose_labels([("GPT", "a", "x/a", 5)] * 2)


def test_history_passes_over_what_is_no_evaluation_record(tmp_path):
    lines = [
        '{"step": 10, "val/loss": 3.0, "scale/sz": 1.5, "train/max_norm_deviation": 1e-7}',
        '{"step": 10, "train/loss": 3.0, "scale/sz": 99}',
        '{"step": 20, "val/loss": 2.0, "scale/sz": NaN}',
        "[1]",
        "{}",
        '{"step": "x", "val/loss": 1}',
        '{"step": 40, "val/loss": 1.0, "scale/sz": 7}',
        '{"step": 50, "val/lo',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    found = read_history(tmp_path, last_step=30)
    assert found == History([10, 20], {"sz": [1.5, None]}, [1e-7, None], [3.0, 2.0])
    assert read_history(tmp_path / "none", 30) == History([], {}, [], [])


@pytest.mark.slow
def test_the_command_on_trained_runs(trained, tmp_path):
    done = run("scripts/inspect_weights.py", f"{trained}/gpt", f"{trained}/ngpt", f"out={tmp_path}/report", cwd=tmp_path)
    assert "condition number of q" in done.stdout and done.stderr == ""
    report = json.loads((tmp_path / "report" / "inspection.json").read_text())
    gpt, ngpt = report["runs"]
    assert (gpt["label"], ngpt["label"]) == ("GPT", "nGPT") and gpt["step"] == ngpt["step"] == 12

    weights = {name: load_file(trained / name / "checkpoints" / "step-00000012" / "model.safetensors") for name in ("gpt", "ngpt")}
    heads = weights["gpt"]["blocks.1.attn.v_proj.weight"].double().numpy().reshape(2, 16, 32)
    assert gpt["matrices"]["v"][1]["condition_per_head"] == pytest.approx([np.linalg.cond(head) for head in heads])
    down = weights["gpt"]["blocks.0.mlp.down_proj.weight"].double().numpy()
    assert gpt["matrices"]["down"][0]["condition"] == pytest.approx(np.linalg.cond(down))
    normalized = down / np.linalg.norm(down, axis=0)
    assert gpt["matrices"]["down"][0]["normalized_condition"] == pytest.approx(np.linalg.cond(normalized))
    norms = np.linalg.norm(weights["gpt"]["embedding.weight"].double().numpy(), axis=1)
    assert gpt["embeddings"]["input"]["norms"]["quantiles"] == pytest.approx(np.quantile(norms, np.linspace(0, 1, 101)))
    assert ngpt["embeddings"]["output"]["norms"]["quantiles"] == pytest.approx([1] * 101, abs=1e-5)
    assert gpt["scales"] == {} and set(ngpt["scales"]) == set(inspection.SCALES)

    # What training recorded last is what the checkpoint holds.
    assert ngpt["history"]["steps"] == [0, 6, 12]
    for name, scales in ngpt["scales"].items():
        means = ngpt["history"]["scale_mean_abs"][name]
        assert means[-1] == pytest.approx(scales["mean_abs"], rel=1e-5) and means[0] == pytest.approx(scales["init"])
    assert all(deviation < 1e-5 for deviation in ngpt["history"]["max_norm_deviation"])

    figures = {
        "embeddings.png",
        "condition_numbers.png",
        "scales.png",
        "attention_layer1.png",
        "attention_layer2.png",
        "scale_histograms.png",
        "scale_history.png",
    }
    assert set(report["figures"]) == figures
    drawn = figures | {name.replace(".png", ".svg") for name in figures}
    assert {path.name for path in (tmp_path / "report").iterdir()} == drawn | {"inspection.html", "inspection.json"}
    assert all((tmp_path / "report" / name).read_bytes().startswith(b"\x89PNG") for name in figures)
    page = (tmp_path / "report" / "inspection.html").read_text()
    sources = re.findall(r'\b(?:src|href)="([^"]{,30})', page)
    assert len(sources) == len(figures) and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert not re.search(r"<script|<link|@import|url\(|https?:", page)


@pytest.mark.slow
def test_the_command_refuses_in_one_line(trained, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(trained / "ngpt", broken)
    file = broken / "checkpoints" / "step-00000012" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert "sha256" in refusal("scripts/inspect_weights.py", f"run={broken}", f"out={tmp_path}/out", code=4)
    with pytest.raises(CheckpointError, match="no checkpoint of step 7"):
        inspect_runs([str(trained / "gpt")], [7])
    assert "no such run folder" in refusal("scripts/inspect_weights.py", f"run={trained}/gpt,{trained}/none", code=2)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    words = refusal("scripts/inspect_weights.py", f"run={trained}/gpt", f"out={tmp_path}/file/report", code=2)
    assert "cannot write" in words


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["rnus=runs/A"], "did you mean 'runs'"),
        ([], "no run folder is given"),
        (["run=a", "run=b"], "given twice"),
        (["a", "step=last"], "Value 'last'"),
        (["a", "b", "c", "step=1,2"], "2 numbers for 3 runs"),
    ],
)
def test_arguments_are_refused_at_once(arguments, words):
    with pytest.raises(ConfigError, match=words):
        steps_of(PROGRAM.parse(arguments))


def test_a_step_for_each_run_or_for_all():
    assert steps_of(PROGRAM.parse(["a", "b"])) == [None, None] and steps_of(PROGRAM.parse(["run=a,b", "step=3"])) == [3, 3]
    assert steps_of(PROGRAM.parse(["a", "b", "step=1,2"])) == [1, 2]


def test_too_many_runs_are_refused():
    with pytest.raises(ConfigError, match="7 runs"):
        inspect_runs(["x"] * 7, [None] * 7)
