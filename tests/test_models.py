"""The two models against the equations, and the properties the paper states."""

import math

import pytest
import torch
from reference import gpt_logits, ngpt_logits

import gpt.model
import ngpt.model
from engine.accounting import count_parameters
from engine.loss import NextTokenLoss
from engine.models import build_model
from gpt.rope import RotaryTable, apply_rotary
from ngpt.normalization import Scale, normalize

SHAPE = {"vocab_size": 19, "sequence_length": 8, "n_layer": 2, "n_head": 2, "n_embd": 12}
REFERENCE = {"gpt": gpt_logits, "ngpt": ngpt_logits}
ARMS = sorted(REFERENCE)


def perturbed(name: str, **changes) -> torch.nn.Module:
    """A float64 model whose every parameter is off its initial value, so that no gain or scale can be forgotten."""
    torch.manual_seed(1)
    model = build_model({"name": name, **SHAPE, **changes}).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + 0.3 * torch.randn_like(p)).add_(0.02 * torch.randn_like(p))
    model.post_optimizer_step()
    return model


@pytest.mark.parametrize("name", ARMS)
def test_forward_loss_and_gradients_are_those_of_the_equations(name):
    model = perturbed(name)
    windows = torch.randint(19, (3, 9), generator=torch.Generator().manual_seed(2))
    loss = NextTokenLoss(model)(windows)
    loss.backward()

    weights = {k: v.detach().clone().requires_grad_() for k, v in model.state_dict().items()}
    logits = REFERENCE[name](weights, windows[:, :-1], SHAPE["n_layer"], SHAPE["n_head"])
    hidden = model(windows[:, :-1])
    torch.testing.assert_close(hidden @ model.unembedding().T, logits, rtol=1e-6, atol=1e-6)  # the rotary table is fp32

    log_z = logits.exp().sum(-1).log()
    expected = sum(log_z[b, t] - logits[b, t, windows[b, t + 1]] for b in range(3) for t in range(8))
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=1e-7)
    for key, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-6, f"{key} has no gradient"
        torch.testing.assert_close(parameter.grad, weights[key].grad, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", ARMS)
def test_no_position_sees_a_later_one(name):
    model = perturbed(name)
    tokens = torch.randint(19, (1, 8))
    for t in range(8):
        changed = tokens.clone()
        changed[0, t] = (changed[0, t] + 1) % 19
        moved = (model(changed) - model(tokens)).abs().amax(-1)[0]
        assert (moved[:t] == 0).all() and moved[t] > 1e-6


@pytest.mark.parametrize(
    "name, size, vocab_size, total",
    [
        ("gpt", (24, 16, 1024), 50304, 505_725_952),
        ("ngpt", (24, 16, 1024), 50304, 505_996_416),
        ("gpt", (24, 16, 1024), 32000, 468_239_360),
        ("ngpt", (24, 16, 1024), 32000, 468_491_520),
        ("gpt", (36, 20, 1280), 32000, 1_025_731_840),
        ("ngpt", (36, 20, 1280), 32000, 1_026_177_280),
    ],
)
def test_parameter_counts_are_the_papers(name, size, vocab_size, total):
    n_layer, n_head, n_embd = size
    node = {"name": name, "n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "vocab_size": vocab_size}
    assert count_parameters(build_model(node, device="meta"))["total"] == total


def unit_norm_deviation(model) -> float:
    """The largest | ||vector|| - 1 | over all matrices, along the axis that is n_embd long by its meaning, not its size."""
    worst = 0.0
    for name, p in model.named_parameters():
        if p.dim() == 2:
            dim = 0 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
            worst = max(worst, (torch.linalg.vector_norm(p.float(), dim=dim) - 1).abs().max().item())
    return worst


def test_ngpt_matrices_have_unit_norm_at_init_and_after_every_step():
    torch.manual_seed(0)
    model = build_model({"name": "ngpt", **SHAPE})
    assert unit_norm_deviation(model) < 1e-6
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0)
    for _ in range(5):
        NextTokenLoss(model)(torch.randint(19, (4, 9))).backward()
        optimizer.step()
        assert unit_norm_deviation(model) > 1e-3, "the step should have left the sphere, or the test shows nothing"
        model.post_optimizer_step()
        assert unit_norm_deviation(model) < 1e-6
        optimizer.zero_grad()


def test_gpt_weights_are_left_alone():
    model = build_model({"name": "gpt", **SHAPE})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.post_optimizer_step()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_ngpt_hidden_states_have_unit_norm_after_every_block():
    model = perturbed("ngpt")
    norms = []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _i, out: norms.append(torch.linalg.vector_norm(out, dim=-1)))
    model(torch.randint(19, (2, 8)))
    assert len(norms) == 2
    for norm in norms:
        torch.testing.assert_close(norm, torch.ones_like(norm), rtol=0, atol=1e-9)


def test_learned_scales_act_as_their_init_whatever_they_are_stored_at():
    scale = Scale(5, init=0.05, scale=1 / 32)
    torch.testing.assert_close(scale(), torch.full((5,), 0.05))
    assert torch.equal(scale.stored.data, torch.full((5,), 1 / 32))
    torch.manual_seed(0)
    a = build_model({"name": "ngpt", **SHAPE})
    torch.manual_seed(0)
    b = build_model(
        {
            "name": "ngpt",
            **SHAPE,
            "alpha_scale": 1.0,
            "sqk_scale": 0.3,
            "su_scale": 0.01,
            "sv_scale": 2.0,
            "sz_scale": 7.0,
        }
    )
    tokens = torch.randint(19, (2, 8))
    torch.testing.assert_close(a(tokens) @ a.unembedding().T, b(tokens) @ b.unembedding().T)


def test_a_scales_rate_is_the_learning_rate_times_init_over_scale():
    """Section 2.5: one Adam step moves the effective value by learning_rate * init / scale."""
    scale = Scale(1, init=0.05, scale=0.25)
    optimizer = torch.optim.Adam(scale.parameters(), lr=0.01, eps=0.0)
    scale().sum().backward()
    optimizer.step()
    torch.testing.assert_close(scale(), torch.tensor([0.05 - 0.01 * 0.05 / 0.25]))


def test_initial_distributions():
    node = {"n_layer": 8, "n_head": 4, "n_embd": 256, "vocab_size": 999}
    model = build_model({"name": "gpt", **node})
    for name, p in model.named_parameters():
        if p.dim() == 2:
            std = 0.02 / math.sqrt(16) if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            assert abs(p.std().item() / std - 1) < 0.02, name
    wide = build_model({"name": "gpt", **node, "init_std": 0.0625})
    assert abs(wide.lm_head.weight.std().item() / 0.0625 - 1) < 0.02
    a, b = build_model({"name": "ngpt", **node}), build_model({"name": "ngpt", **node})
    assert not torch.equal(a.lm_head.weight, b.lm_head.weight)
    assert a.lm_head.weight.mean().abs() < 1e-3


def test_a_zero_vector_stays_zero_and_has_a_finite_gradient():
    x = torch.zeros(3, 4, requires_grad=True)
    y = normalize(x)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(3, 4)) and x.grad.isfinite().all()
    unit = torch.nn.functional.normalize(torch.randn(100, 64), dim=-1)
    torch.testing.assert_close(normalize(unit), unit, rtol=0, atol=2e-7)  # epsilon changes nothing at unit scale


def test_rotary_scores_depend_on_distance_alone_and_longer_sequences_work():
    table = RotaryTable(head_dim=16, sequence_length=32, base=10000.0)
    q, k = torch.randn(16), torch.randn(16)
    rotated_q, rotated_k = (apply_rotary(x.expand(64, 1, 16), table(64))[:, 0] for x in (q, k))
    for distance in (0, 3, 17):
        scores = (rotated_q[distance:] * rotated_k[: 64 - distance]).sum(-1)
        torch.testing.assert_close(scores, scores[0].expand_as(scores), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rotated_q.norm(dim=-1), q.norm().expand(64))  # NVIDIA/ngpt issue 10: theirs is no rotation
    torch.testing.assert_close(table(32), table(64)[:, :32])


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize("matrices", ["float32", "bfloat16"])
def test_under_autocast_the_stream_is_fp32_and_the_result_close_to_fp32(name, matrices):
    torch.manual_seed(0)
    model = build_model({"name": name, **SHAPE}, matrices)
    assert {p.dtype for n, p in model.named_parameters() if "proj" in n} == {getattr(torch, matrices)}
    assert {p.dtype for n, p in model.named_parameters() if "proj" not in n} == {torch.float32}
    types = []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _i, out: types.append(out.dtype))
    windows = torch.randint(19, (4, 9))
    with torch.autocast("cpu", torch.bfloat16):
        loss = NextTokenLoss(model)(windows)
    loss.backward()
    assert set(types) == {torch.float32} and loss.dtype == torch.float32
    exact = NextTokenLoss(model.float())(windows)
    assert abs(loss.item() / exact.item() - 1) < 2e-3


def test_modules_work_without_the_engine():
    model = ngpt.model.Transformer(ngpt.model.Config(vocab_size=11, sequence_length=4, n_layer=1, n_head=1, n_embd=8))
    assert model(torch.tensor([[1, 2, 3]])).shape == (1, 3, 8)
    assert gpt.model.Config().n_layer == ngpt.model.Config().n_layer == 24
