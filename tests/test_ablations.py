"""The variants against the equations and against their bases, every arm of the shipped sweeps, and the table."""

import json
import math
import os
import shutil
import subprocess

import pytest
import torch
import yaml
from reference import gpt_logits, ngpt_logits
from synthetic_runs import make_run
from test_models import SHAPE, perturbed, unit_norm_deviation
from training import ROOT, SMALL, command, composed, environment, error_line, metrics, run, tensors

from arms.ngpt_variants import SMALLEST_ANGLE, slerp
from cli.composition import ConfigError
from engine.loss import NextTokenLoss
from engine.models import MODELS, build_model, model_config
from engine.parallel import compile_parts
from engine.session import train
from engine.stability import max_norm_deviation, scale_means
from lab.ablations.forest import draw_forest
from lab.ablations.settings import PAPER
from lab.ablations.table import AblationError, analyze_ablations
from lab.ablations.write import render_markdown, render_text
from lab.runs import RunFolderError, read_runs
from ngpt.normalization import Scale, normalize

FILES = ("ablations_tiny", "ablations_0.5b_1k", "decomposition_tiny", "decomposition_0.5b_1k")
SWEEPS = {name: yaml.safe_load((ROOT / f"sweeps/{name}.yaml").read_text()) for name in FILES}
VARIANTS = {
    "gpt_qknorm": {},
    "scalar": {"scalar": ["sqk", "su", "sv", "sz", "alpha"]},
    "fixed": {"fixed": ["sqk", "su", "sv", "sz", "alpha"]},
    "no_qk_norm": {"normalize_qk": False},
    "slerp": {"residual": "slerp"},
    "states_alone": {"normalize_matrices": False},
    "matrices_alone": {"normalize_states": False},
    "neither": {"normalize_states": False, "normalize_matrices": False},
}


def node(variant, **changes):
    name = variant if variant in MODELS else "ngpt_ablation"
    return {"name": name, **SHAPE, **VARIANTS.get(variant, {}), **changes}


def variant(name, **changes):
    """A float64 model off its initial values."""
    settings = node(name, **changes)
    return perturbed(settings.pop("name"), **settings)


def build(settings, seed=0):
    torch.manual_seed(seed)
    return build_model(settings)


def logits(model, tokens):
    return model(tokens) @ model.unembedding().T


TOKENS = torch.randint(19, (2, 8), generator=torch.Generator().manual_seed(3))


# --- a variant is its base but for what it changes


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_starts_from_the_weights_of_its_base(name):
    base = build({"name": "gpt" if name == "gpt_qknorm" else "ngpt", **SHAPE}).state_dict()
    weights = build(node(name)).state_dict()
    assert {k for k in base if "proj" in k or "embedding" in k or "lm_head" in k} <= set(weights)
    for key in base.keys() & weights.keys() - {k for k in base if k.endswith(".stored")}:
        assert torch.equal(base[key], weights[key]), key
    extra = weights.keys() - base.keys()
    assert extra == ({f"blocks.{i}.attn.{n}_norm.weight" for i in (0, 1) for n in "qk"} if name == "gpt_qknorm" else set())


def test_with_nothing_undone_the_variant_is_ngpt():
    base, same = build({"name": "ngpt", **SHAPE}), build({"name": "ngpt_ablation", **SHAPE})
    assert torch.equal(logits(base, TOKENS), logits(same, TOKENS))
    assert [n for n, _ in base.named_parameters()] == [n for n, _ in same.named_parameters()]


@pytest.mark.parametrize("name", VARIANTS)
def test_no_position_sees_a_later_one_and_every_parameter_learns(name):
    model = variant(name)
    for t in range(8):
        changed = TOKENS.clone()
        changed[0, t] = (changed[0, t] + 1) % 19
        moved = (model(changed) - model(TOKENS)).abs().amax(-1)[0]
        assert (moved[:t] == 0).all() and moved[t] > 1e-6
    NextTokenLoss(model)(TOKENS).backward()
    for key, parameter in model.named_parameters():
        # One factor for the whole of u is undone by the normalization of the block's output: it learns nothing.
        idle = name == "scalar" and key.endswith("su.stored")
        assert parameter.grad.isfinite().all() and (
            parameter.grad.abs().max() < 1e-9 if idle else parameter.grad.abs().max() > 1e-7
        ), key


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("matrices", ["float32", "bfloat16"])
def test_under_autocast_the_stream_is_fp32_and_the_result_close_to_fp32(name, matrices):
    torch.manual_seed(0)
    model = build_model(node(name), matrices)
    assert {p.dtype for n, p in model.named_parameters() if "proj" in n} == {getattr(torch, matrices)}
    assert {p.dtype for n, p in model.named_parameters() if "proj" not in n} == {torch.float32}
    types = []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _i, out: types.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss = NextTokenLoss(model)(TOKENS)
    assert set(types) == {torch.float32} and loss.dtype == torch.float32
    assert abs(loss.item() / NextTokenLoss(model.float())(TOKENS).item() - 1) < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt_qknorm", "slerp"])
def test_compiled_equals_eager(name):
    if os.system("which g++ > /dev/null"):
        pytest.skip("torch.compile on the CPU needs a C++ compiler")
    changes = {} if name == "gpt_qknorm" else {"normalize_qk": False, "scalar": ["sqk", "alpha"], "fixed": ["su", "sz"]}
    loss_of = NextTokenLoss(build(node(name, n_layer=1, **changes)))

    def loss_and_gradients():
        loss_of.zero_grad()
        loss = loss_of(TOKENS)
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in loss_of.parameters())]

    eager = loss_and_gradients()
    compile_parts(loss_of)
    torch.testing.assert_close(loss_and_gradients(), eager, rtol=1e-4, atol=1e-5)


# --- GPT with query-key normalization


def test_gpt_qknorm_is_that_of_the_equations():
    model = variant("gpt_qknorm")
    expected = gpt_logits(model.state_dict(), TOKENS, 2, 2)
    torch.testing.assert_close(logits(model, TOKENS), expected, rtol=1e-6, atol=1e-6)
    without = {k: v for k, v in model.state_dict().items() if not k.endswith(("q_norm.weight", "k_norm.weight"))}
    assert not torch.allclose(expected, gpt_logits(without, TOKENS, 2, 2), atol=1e-3)
    assert model.normalized_matrices() == []


def test_gpt_qknorm_without_its_norms_is_gpt():
    model, base = build(node("gpt_qknorm")).double(), build({"name": "gpt", **SHAPE}).double()
    for block in model.blocks:
        assert block.attn.q_norm.weight.shape == (6,) and block.attn.k_norm.weight.shape == (6,)  # n_embd / n_head
        block.attn.q_norm.forward = block.attn.k_norm.forward = lambda x: x
    torch.testing.assert_close(logits(model, TOKENS), logits(base, TOKENS))


def test_gpt_qknorm_does_not_see_the_size_of_queries_and_keys():
    model = variant("gpt_qknorm", norm_eps=1e-15)
    before = logits(model, TOKENS)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.q_proj.weight *= 7
            block.attn.k_proj.weight *= 0.2
    torch.testing.assert_close(logits(model, TOKENS), before)


# --- scales


def test_a_scalar_scale_is_the_vector_with_equal_entries():
    vector, scalar = variant("ngpt_ablation"), variant("scalar")
    scales = {name: m for name, m in scalar.named_modules() if isinstance(m, Scale)}
    assert {len(list(m.parameters())) for m in scales.values()} == {1}
    assert {m.stored.shape for m in scales.values()} == {(1,)}  # Adam without decay, as for every vector
    assert sum(p.numel() for p in scalar.parameters() if p.dim() == 1) == 2 * 5 + 1
    weights = scalar.state_dict()
    for key, value in vector.state_dict().items():
        value.copy_(weights[key].expand_as(value))
    windows = torch.cat((TOKENS, TOKENS[:, :1]), dim=1)
    losses = [NextTokenLoss(model)(windows) for model in (vector, scalar)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for key, parameter in scalar.named_parameters():
        expected = vector.get_parameter(key).grad
        expected = expected.sum().view(1) if key.endswith(".stored") else expected
        torch.testing.assert_close(parameter.grad, expected, msg=lambda m, key=key: f"{key}: {m}")


def test_a_fixed_scale_learns_nothing_and_stays_at_its_initial_value():
    model = build(node("fixed", alpha_init=0.3, sz_init=2.0))
    assert all(p.dim() == 2 for p in model.parameters())
    assert not [key for key in model.state_dict() if "proj" not in key and "embedding" not in key and "lm_head" not in key]
    expected = {"sqk": 1.0, "su": 1.0, "sv": 1.0, "sz": 2.0, "attn_alpha": 0.3, "mlp_alpha": 0.3}
    assert scale_means(model) == pytest.approx(expected)
    base = build({"name": "ngpt", **SHAPE, "alpha_init": 0.3, "sz_init": 2.0})
    torch.testing.assert_close(logits(model, TOKENS), logits(base, TOKENS))


def test_scales_are_replaced_by_name_and_reported_under_it():
    model = build(node("ngpt_ablation", scalar=["alpha", "sz"], fixed=["su"]))
    kinds = {key.rpartition(".")[2]: type(m).__name__ for key, m in model.named_modules() if isinstance(m, Scale)}
    assert kinds == {
        "attn_alpha": "ScalarScale",
        "mlp_alpha": "ScalarScale",
        "sz": "ScalarScale",
        "su": "FixedScale",
        "sqk": "Scale",
        "sv": "Scale",
    }
    with torch.no_grad():
        for block in model.blocks:
            block.attn_alpha.stored *= -3  # its absolute value is what is used
    assert scale_means(model)["attn_alpha"] == pytest.approx(0.15)


MISTAKES = {
    "scalar": (["suv"], "model.scalar=[suv]: the learned scales are alpha, sqk, su, sv, sz"),
    "fixed": (["attn_alpha"], "model.fixed=[attn_alpha]: the learned scales are"),
    "residual": ("sphere", "model.residual=sphere: must be lerp or slerp"),
    "normalize_states": (False, "residual=slerp walks on the sphere and needs normalize_states=true"),
}


@pytest.mark.parametrize("key", MISTAKES)
def test_mistakes_are_named(key):
    value, says = MISTAKES[key]
    extra = {"residual": "slerp"} if key == "normalize_states" else {}
    with pytest.raises(ConfigError) as error:
        build_model({"name": "ngpt_ablation", **SHAPE, **extra, key: value}, device="meta")
    assert says in str(error.value)
    with pytest.raises(ConfigError, match="scalar and fixed both name sz"):
        build_model(node("ngpt_ablation", scalar=["sz"], fixed=["sz"]), device="meta")


# --- QK normalization, SLERP, what is normalized


def test_ngpt_without_qk_normalization_is_that_of_the_equations():
    model = variant("no_qk_norm")
    expected = ngpt_logits(model.state_dict(), TOKENS, 2, 2, qk_norm=False)
    torch.testing.assert_close(logits(model, TOKENS), expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(expected, ngpt_logits(model.state_dict(), TOKENS, 2, 2), atol=1e-3)


def pair_at(angle, dtype=torch.float64, size=64):
    """Two unit vectors at an angle."""
    a, other = torch.randn(2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    a = a / a.norm()
    other = other - (other @ a) * a
    return a.to(dtype), (math.cos(angle) * a + math.sin(angle) * other / other.norm()).to(dtype)


@pytest.mark.parametrize("angle", [1e-2, 0.5, 1.5707, 2.5, 3.1])
@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.4, 1.0])
def test_slerp_is_the_formula_and_stays_on_the_great_circle(angle, alpha):
    a, b = pair_at(angle)
    theta = math.acos(float(a @ b))
    expected = math.sin((1 - alpha) * theta) / math.sin(theta) * a + math.sin(alpha * theta) / math.sin(theta) * b
    result = slerp(a, b, torch.tensor(alpha, dtype=torch.float64))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(result.norm(), torch.ones((), dtype=torch.float64), rtol=0, atol=1e-9)
    single = slerp(*pair_at(angle, torch.float32), torch.tensor(alpha))
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-5 if angle > 3 else 1e-6)


@pytest.mark.parametrize("angle", [0.0, 1e-7, 1e-4, 0.99e-3, 1.01e-3])
def test_slerp_of_nearly_parallel_vectors_is_their_lerp_with_a_finite_gradient(angle):
    a, b = pair_at(angle, torch.float32)
    a.requires_grad_(), b.requires_grad_()
    alpha = torch.full((64,), 0.3, requires_grad=True)
    result = slerp(a, b, alpha)
    torch.testing.assert_close(result, 0.7 * a + 0.3 * b, rtol=0, atol=2e-7)
    weights = torch.linspace(-1, 1, 64)
    result.backward(weights)
    torch.testing.assert_close(a.grad, 0.7 * weights, rtol=0, atol=2e-3)  # the angle's own part is of its order
    torch.testing.assert_close(b.grad, 0.3 * weights, rtol=0, atol=2e-3)
    torch.testing.assert_close(alpha.grad, weights * (b - a).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("angle", [math.pi - 1e-8, math.pi - SMALLEST_ANGLE / 2])
def test_slerp_of_opposite_vectors_is_finite(angle):
    a, b = pair_at(angle, torch.float32)
    a.requires_grad_(), b.requires_grad_()
    result = normalize(slerp(a, b, torch.tensor(0.3)))
    result.sum().backward()
    assert result.isfinite().all() and a.grad.isfinite().all() and b.grad.isfinite().all()


def test_slerp_and_lerp_differ_as_they_must():
    """At a right angle SLERP goes the share alpha of it, LERP less: atan(alpha / (1 - alpha))."""
    h, target = torch.eye(2, dtype=torch.float64)
    angles = [torch.atan2(x[1], x[0]).item() for x in (slerp(h, target, torch.tensor(0.2)), normalize(h + 0.2 * (target - h)))]
    assert angles == pytest.approx([0.2 * math.pi / 2, math.atan(0.2 / 0.8)])
    model, base = variant("slerp"), variant("ngpt_ablation")
    assert not torch.allclose(model(TOKENS), base(TOKENS), atol=1e-3)


def norms_after_blocks(model):
    norms = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: norms.append(out.norm(dim=-1))) for block in model.blocks]
    final = model(TOKENS)
    for hook in hooks:
        hook.remove()
    return torch.stack(norms), final.norm(dim=-1)


@pytest.mark.parametrize("name", ["slerp", "states_alone", "matrices_alone", "neither"])
def test_what_is_normalized_and_what_is_not(name):
    model = build(node(name)).double()
    assert unit_norm_deviation(model) < 1e-6, "all start where nGPT starts"
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0)
    for _ in range(3):
        NextTokenLoss(model)(TOKENS).backward()
        optimizer.step()
        model.post_optimizer_step()
        optimizer.zero_grad()
    has_matrices, has_states = name in ("slerp", "matrices_alone"), name in ("slerp", "states_alone")
    assert (unit_norm_deviation(model) < 1e-6) is has_matrices
    deviation = max_norm_deviation(model)
    assert deviation < 1e-6 if has_matrices else deviation is None
    norms, final = norms_after_blocks(model)
    assert ((norms - 1).abs().max() < 1e-9).item() is has_states
    torch.testing.assert_close(final, torch.ones_like(final), rtol=0, atol=1e-9)  # the logits are s_z times a cosine
    embedded = model.embedding(TOKENS).norm(dim=-1)
    assert ((embedded - 1).abs().max() < 1e-6).item() is (has_states or has_matrices)


def test_matrices_alone_adds_to_the_residual_stream_as_gpt_does():
    model = variant("matrices_alone")
    h = torch.randn(1, 8, 12, dtype=torch.float64)
    rotary = model.rotary(8)
    block = model.blocks[0]
    middle = h + block.attn_alpha().abs() * block.attn(h / h.norm(dim=-1, keepdim=True), rotary)
    expected = middle + block.mlp_alpha().abs() * block.mlp(middle / middle.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(block(h, rotary), expected)


# --- the sweeps


ARMS = [(name, label) for name, sweep in SWEEPS.items() for label in sweep["arms"]]


@pytest.mark.parametrize("name, label", ARMS)
def test_every_arm_of_the_sweeps_composes_and_builds(name, label):
    config = composed(*SWEEPS[name]["overrides"], *SWEEPS[name]["arms"][label]["overrides"])
    assert config.model["n_layer"] == (4 if "tiny" in name else 24)
    has_scales = label.startswith(("sqk", "suv", "sz")) and config.model["name"] == "ngpt"
    model = build_model(config.model | {"n_layer": 1, "vocab_size": 16}, device="cpu" if has_scales else "meta")
    if has_scales:  # table 4: (init, scale) pairs
        scale, *pair = label.split("_")
        width, mlp = config.model["n_embd"], model.blocks[0].mlp
        words = {"rsqrtd": width**-0.5, "sqrtd": width**0.5}
        init, stored = (words.get(word) or float(word) for word in pair)
        for module in {"sqk": [model.blocks[0].attn.sqk], "suv": [mlp.su, mlp.sv], "sz": [model.sz]}[scale]:
            torch.testing.assert_close(module(), torch.full_like(module.stored, init), rtol=2e-3, atol=0)
            torch.testing.assert_close(module.stored.data, torch.full_like(module.stored, stored), rtol=2e-3, atol=0)


def test_the_sweeps_have_every_row_of_the_paper_and_the_same_arms():
    tiny, paper = (set(SWEEPS[f"ablations_{size}"]["arms"]) for size in ("tiny", "0.5b_1k"))
    assert tiny ^ paper == {"sz_1_rsqrtd", "sz_sqrtd_rsqrtd"}  # the base's s_z differs
    assert SWEEPS["decomposition_tiny"]["arms"].keys() == SWEEPS["decomposition_0.5b_1k"]["arms"].keys()
    sweep = SWEEPS["ablations_0.5b_1k"]
    built = [model_config(composed(*sweep["overrides"], *arm["overrides"]).model) for arm in sweep["arms"].values()]
    defaults = {"normalize_qk": True, "scalar": [], "fixed": []}  # model=ngpt has no such keys
    words = {"sqrt(d)": 32, "1/sqrt(d)": None}
    for family in PAPER["families"]:
        found = [[getattr(config, key, defaults.get(key)) for key in family["keys"]] for config in built]
        found = [[1 / 32 if value is None else value for value in values] for values in found]
        for row in family["rows"]:
            wanted = [words.get(value, value) if isinstance(value, str) else value for value in row["setting"]]
            assert [1 / 32 if value is None else value for value in wanted] in found, row


@pytest.mark.parametrize("name, label", [arm for arm in ARMS if "tiny" in arm[0]])
def test_every_arm_trains(name, label, docs, tmp_path):
    """Twelve real steps: the loss falls, and the run folder names what was learned."""
    arm = SWEEPS[name]["arms"][label]
    own = {o.split("=")[0] for o in arm["overrides"]}
    overrides = [o for o in SMALL if o.split("=")[0] not in own] + ["eval_interval=12", "checkpoint_interval=12"]
    config = composed(*overrides, *arm["overrides"], f"data.dir={docs}", f"out_dir={tmp_path}", f"run_name={label}")
    train(config)
    losses, folder = metrics(tmp_path / label, "train/loss"), tmp_path / label
    assert losses[12] < losses[1] - 0.1
    scales = {key for line in (folder / "metrics.jsonl").read_text().splitlines() for key in json.loads(line) if "scale/" in key}
    assert len(scales) == (0 if label.startswith("gpt") else 6)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=gpt_qknorm"],
        ["model=ngpt_ablation", "model.scalar=[sqk,alpha]", "model.fixed=[su]", "model.residual=slerp"],
        ["model=ngpt_ablation", "model.normalize_states=false", "model.normalize_matrices=false", "weight_decay=0.1"],
    ],
    ids=lambda overrides: overrides[-1],
)
def test_a_resumed_variant_equals_the_uninterrupted_one_bit_for_bit(overrides, docs, tmp_path):
    def train_in(folder):
        train(composed(*SMALL, *overrides, f"data.dir={docs}", f"out_dir={tmp_path / folder}", "run_name=x"))

    train_in("whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts/x/checkpoints/step-00000012")
    train_in("parts")
    left, right = tensors(tmp_path / "whole/x", 12), tensors(tmp_path / "parts/x", 12)
    assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
    assert metrics(tmp_path / "whole/x", "val/loss") == metrics(tmp_path / "parts/x", "val/loss")
    assert (tmp_path / "parts/x/metrics.stale.jsonl").exists(), "steps 7 to 12 should have been done again"


@pytest.mark.slow
def test_the_command_line_takes_lists_and_refuses_wrong_ones_in_one_line(docs, tmp_path):
    plan = run(
        "train.py", "experiment=quickstart", "model=ngpt_ablation", "model.scalar=[sqk,sz]", "dry_run=true", f"data.dir={docs}"
    )
    assert json.loads(plan.stdout)["model"]["scalar"] == ["sqk", "sz"]
    done = run("train.py", "model=ngpt_ablation", "model.scalar=[suv]", "dry_run=true", code=2)
    assert error_line(done) == "error: model.scalar=[suv]: the learned scales are alpha, sqk, su, sv, sz"


# --- the table


def ablation_run(root, name, loss, seed=1, scales=None, lr=1e-3, **config):
    """A synthetic run of nGPT at width 1024 whose last line also has the means of its scales."""
    model = {key: value for key, value in config.items() if key.startswith("model.")}
    settings = {"model.n_embd": 1024, "weight_decay": 0.0, "warmup_steps": 0, **config}
    is_variant = {key.removeprefix("model.") for key in model} & {
        "scalar",
        "fixed",
        "normalize_qk",
        "residual",
        "normalize_matrices",
    }
    folder = make_run(
        root,
        f"{name}-{lr:g}-seed{seed}",
        "ngpt_ablation" if is_variant else "ngpt",
        lr=lr,
        seed=seed,
        loss=loss,
        config=settings,
    )
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[-1] = json.dumps(json.loads(lines[-1]) | {f"scale/{k}": v for k, v in (scales or {}).items()})
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def rows_of(folders, **options):
    (table,) = analyze_ablations(read_runs(folders), **options).tables
    return table, {next(iter(row.runs), "").split("-")[0]: row for row in table.rows}


@pytest.fixture
def sweep(tmp_path):
    return [
        *(ablation_run(tmp_path, "zero", 2.0 + s / 100, s, {"sqk": 1.0 + s, "sz": 60.0}) for s in (1, 2, 3)),
        *(ablation_run(tmp_path, "a", (2.0 + s / 100) * (1.01 + s / 1000), s, **{"model.scalar": ["sv", "su"]}) for s in (1, 2, 3)),
        ablation_run(tmp_path, "b", 2.0, 2, **{"model.normalize_qk": False}),
        ablation_run(tmp_path, "c", 2.2, 2, **{"model.sz_init": 32, "model.sz_scale": None}),
        ablation_run(tmp_path, "c", 2.1, 2, lr=2e-3, **{"model.sz_init": 32, "model.sz_scale": None}),
        ablation_run(tmp_path, "d", 2.1, 9, warmup_steps=20),
        ablation_run(tmp_path, "e", 2.3, 2, **{"model.residual": "slerp"}),
    ]


def test_rows_are_paired_over_seeds_and_stand_beside_the_papers(sweep):
    table, rows = rows_of(sweep)
    assert [row.changes for row in table.rows][0] == {} and table.rows[0].runs[0].startswith("zero") and not table.notes
    a = rows["a"]
    assert a.changes == {"scalar": "[] -> [su, sv]"} and (a.paper.table, a.paper.row) == (5, "s_u, s_v scalar")
    assert a.paper.delta_percent == 0.07 and a.paired_seeds == (1, 2, 3)
    assert a.delta_percent == pytest.approx(1.2) and a.standard_error == pytest.approx(0.1 / math.sqrt(3))
    assert a.loss == pytest.approx(sum(a.losses.values()) / 3)
    b = rows["b"]
    assert (b.paper.table, b.paper.delta_percent) == (6, 0.12) and b.standard_error is None
    assert b.delta_percent == pytest.approx(100 * (2.0 / 2.02 - 1)) and b.paired_seeds == (2,)
    c = rows["c"]
    assert (c.learning_rate, c.loss, c.rates_tried) == (2e-3, 2.1, (1e-3, 2e-3)) and c.paper.delta_percent == 1.06
    d = rows["d"]
    assert d.changes == {"warmup_steps": "0 -> 20"} and d.delta_percent is None and d.paper is None
    assert table.rows[0].scales == pytest.approx({"sqk": 3.0, "sz": 60.0})
    order = [next(iter(row.runs)).split("-")[0] for row in table.rows]
    assert order == ["zero", "c", "a", "b", "e", "d"]  # the paper's order, then the others


def test_settings_of_the_optimizer_alone_are_rows_too(tmp_path):
    settings = ({"rate_multiplier.scales": 0.25}, {"update": "muon"}, {"schedule": "wsd"}, {"init_multiplier.output": 2.0})
    folders = [ablation_run(tmp_path, "zero", 2.0)]
    folders += [ablation_run(tmp_path, f"row{index}", 2.1, **changes) for index, changes in enumerate(settings)]
    found = analyze_ablations(read_runs(folders), base="zero-0.001-seed1")
    assert not found.left_out and len(found.tables[0].rows) == 5
    changed = [set(row.changes) for row in found.tables[0].rows[1:]]
    assert sorted(changed, key=str) == sorted([set(changes) for changes in settings], key=str)


def test_where_the_base_is_a_row_of_the_paper_its_figures_are_restated(tmp_path):
    """As at the tiny size: the base has s_z at sqrt(n_embd), so the paper's own base is one of the rows."""
    base = {"model.sz_init": 31.9, "model.alpha_init": 0.25}
    folders = [
        ablation_run(tmp_path, "zero", 2.0, **base),
        ablation_run(tmp_path, "one", 2.2, **base | {"model.sz_init": 1.0}),
        ablation_run(tmp_path, "two", 2.2, **base | {"model.sz_init": 1.0, "model.sz_scale": 1}),
        ablation_run(tmp_path, "three", 2.2, **base | {"model.sz_scale": 1.0}),
        ablation_run(tmp_path, "four", 2.2, **base | {"model.fixed": ["sqk"]}),
        ablation_run(tmp_path, "five", 2.2, **base | {"model.fixed": ["sqk"], "weight_decay": 0.1}),
        ablation_run(tmp_path, "six", 2.2, **base | {"model.sqk_init": "0.05", "model.sqk_scale": 1.0}),
    ]
    table, rows = rows_of(folders)
    assert table.rows[0].runs[0].startswith("zero")
    assert any("sz_init=31.9" in note for note in table.notes) and any("alpha_init=0.25" in note for note in table.notes)
    percent = {name: row.paper and row.paper.delta_percent for name, row in rows.items()}
    assert percent == {
        "zero": None,
        "one": round(100 / 1.0106 - 100, 2),
        "two": round(103.12 / 1.0106 - 100, 2),
        "three": round(101.66 / 1.0106 - 100, 2),
        "four": 0.11,
        "five": None,
        "six": 1.94,
    }
    assert rows_of(folders, base="four-0.001-seed1")[0].rows[0].runs == ("four-0.001-seed1",)
    with pytest.raises(AblationError, match="base nine"):
        rows_of(folders, base="nine")


def test_diverged_unfinished_foreign_and_repeated_runs(sweep, tmp_path):
    extra = [
        make_run(tmp_path, "gpt-run"),
        ablation_run(tmp_path, "f", 2.5, 1, **{"model.fixed": ["sz"]}),
        ablation_run(tmp_path, "f", 2.6, 1, lr=3e-3, **{"model.fixed": ["sz"]}),
        ablation_run(tmp_path, "again", 1.0, 1),
        ablation_run(tmp_path, "running", 1.0, 1, **{"model.fixed": ["sv"]}),
        ablation_run(tmp_path, "gone", 9.0, 1, **{"model.fixed": ["su"]}),
    ]
    for folder, state in ((extra[1], "diverged"), (extra[4], "running"), (extra[5], "diverged")):
        (folder / "status.json").write_text(json.dumps({"state": state, "step": 50, "message": ""}))
    result = analyze_ablations(read_runs([*sweep, *extra]))
    assert {name.split("-")[0] for name in result.left_out} == {"gpt", "again", "running"}
    (table,) = result.tables
    fixed = {row.changes.get("fixed"): row for row in table.rows}
    assert fixed["[] -> [sz]"].learning_rate == 3e-3 and fixed["[] -> [sz]"].diverged == 1
    assert fixed["[] -> [su]"].loss is None and "diverged" in render_text(result)
    with pytest.raises(AblationError, match="no finished run"):
        analyze_ablations(read_runs(extra[:1]))
    with pytest.raises(AblationError, match="n_layer differs"):
        analyze_ablations(read_runs([*sweep, ablation_run(tmp_path, "deep", 2.0, **{"model.n_layer": 9})]))


def script(*arguments, code=0):
    done = subprocess.run(command("scripts/ablations.py", *map(str, arguments)), env=environment(), capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.slow
def test_the_command_prints_and_writes(sweep, tmp_path):
    (tmp_path / "note.txt").write_text("a file beside the runs")
    hostile = ablation_run(tmp_path, "hostile", 2.4, 2, **{"model.residual": "a|b\x1b[31m\nc"})
    done = script(*sweep, hostile, tmp_path / "note.txt", f"out={tmp_path}/report")
    assert "T5 s_u, s_v scalar" in done.stdout and "+1.20 +/- 0.06" in done.stdout and "\x1b" not in done.stdout
    assert "arXiv 2410.01131" in done.stdout
    data = json.loads((tmp_path / "report/ablations.json").read_text())
    assert data["format"] == 1 and len(data["tables"][0]["rows"]) == 7
    page = (tmp_path / "report/ablations.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 7 and len({line.replace("\\|", "").count("|") for line in lines}) == 1 and "\x1b" not in page
    assert page == render_markdown(analyze_ablations(read_runs([*sweep, hostile])))
    assert "no such run folder" in error_line(script(tmp_path / "none", code=2))
    assert "cannot write" in error_line(script(*sweep, f"out={tmp_path}/note.txt", code=2))


def test_the_bases_rate_is_chosen_over_shared_seeds(tmp_path):
    losses = {1: 2.05, 2: 1.95, 3: 2.00}
    folders = [ablation_run(tmp_path, "base", loss, seed) for seed, loss in losses.items()]
    folders.append(ablation_run(tmp_path, "base", 1.99, 2, lr=2e-3))  # with seed 2 the other rate had 1.95
    folders += [
        ablation_run(tmp_path, "init", 1.03 * loss, seed, **{"model.sz_init": 8.0})
        for seed, loss in ((1, 2.05), (2, 1.95), (3, 2.00))
    ]
    base, row = analyze_ablations(read_runs(folders), "base-0.001-seed1").tables[0].rows
    assert base.learning_rate == 1e-3 and len(base.losses) == 3
    assert row.delta_percent == pytest.approx(3.0) and row.paired_seeds == (1, 2, 3)
    paths = draw_forest(analyze_ablations(read_runs(folders)), tmp_path)
    assert paths[0].path.stat().st_size > 5000 and "<title>What each change" in (tmp_path / "ablations.svg").read_text()


@pytest.mark.parametrize("width", ["wide", "0", "[1]"])
def test_a_configuration_without_a_usable_width_is_refused_in_one_line(sweep, width):
    text = (sweep[0] / "config.yaml").read_text()
    (sweep[0] / "config.yaml").write_text(text.replace("n_embd: 1024", f"n_embd: {width}"))
    with pytest.raises(RunFolderError, match="n_embd is .* not a number above 0"):
        analyze_ablations(read_runs(sweep))
