"""anGPT against its formulas, in float64 and one position at a time, and what it promises about norms."""

import math

import torch
from reference import attend, rope, silu, unit

from engine.models import build_model

SHAPE = {"vocab_size": 19, "sequence_length": 8, "n_layer": 2, "n_head": 2, "n_embd": 8}
TOKENS = torch.randint(19, (2, 6), generator=torch.Generator().manual_seed(3))


def build(**changes):
    torch.manual_seed(0)
    return build_model({"name": "angpt", **SHAPE, **changes})


def step(h, x, a):
    return ((1 - a) * h + a * x) / ((1 - a) ** 2 + a**2).sqrt()


def reference_logits(weights, row, n_layer=2, n_head=2):
    h = weights["embedding.weight"][row]
    d = h.shape[1]
    K = d // n_head
    for layer in range(n_layer):
        w = {k.removeprefix(f"blocks.{layer}."): v for k, v in weights.items() if k.startswith(f"blocks.{layer}.")}
        sqk, heads = w["attn.sqk.stored"] * math.sqrt(d), []
        for n in range(n_head):
            part = slice(n * K, (n + 1) * K)
            q, k = (unit(rope(h @ w[f"attn.{name}_proj.weight"][part].T, 10000.0)) * sqk[part] for name in "qk")
            v = math.sqrt(d / K) * h @ w["attn.v_proj.weight"][part].T  # nu_qkv
            heads.append(attend(q, k, v, math.sqrt(K)))
        x = math.sqrt(K / d) * torch.cat(heads, -1) @ w["attn.o_proj.weight"].T  # nu_o
        h = step(h, x, (w["attn_alpha.stored"] * 0.01 * math.sqrt(d)).abs())
        u, v = 0.5 * h @ w["mlp.up_proj.weight"].T, 0.5 * math.sqrt(d) * h @ w["mlp.gate_proj.weight"].T
        h = step(h, 2 * (3.74 * u * silu(v)) @ w["mlp.down_proj.weight"].T, (w["mlp_alpha.stored"] * 0.01 * math.sqrt(d)).abs())
    return (weights["sz.stored"] * math.sqrt(d)) * (h @ weights["lm_head.weight"].T)


def test_the_logits_are_those_of_the_formulas():
    model = build().double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("stored"):  # off its initial value, alpha far enough for the blocks to matter
                parameter.mul_(1 + 0.3 * torch.rand_like(parameter)).mul_(20 if "alpha" in name else 1)
    logits = model(TOKENS) @ model.unembedding().T
    for row, found in zip(TOKENS, logits, strict=True):
        torch.testing.assert_close(found, reference_logits(model.state_dict(), row), rtol=1e-9, atol=1e-7)


def test_the_constants_keep_the_norm_near_one_at_width_256():
    torch.manual_seed(0)
    model = build_model({"name": "angpt", **SHAPE, "n_layer": 8, "n_head": 4, "n_embd": 256, "alpha_init": 0.2})
    with torch.no_grad():
        norms = model(TOKENS).norm(dim=-1)
        h = torch.nn.functional.normalize(torch.randn(500, 256), dim=-1)
        out = model.blocks[0].mlp(h).norm(dim=-1)
    assert norms[:, 0].min() > 0.9 and norms.max() < 1.1
    assert norms.min() > 0.6  # the mean of several values is shorter than each: no constant can know how many are alike
    assert abs(out.mean() - 1) < 0.05


def test_rows_start_at_norm_one_and_are_only_ever_shortened():
    model = build()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    for p in matrices:
        torch.testing.assert_close(p.norm(dim=1), torch.ones(len(p)))
    with torch.no_grad():
        for p in matrices:
            p[0] *= 0.5
            p[1] *= 3
    model.post_optimizer_step()
    for p in matrices:
        torch.testing.assert_close(p.norm(dim=1)[:3], torch.tensor([0.5, 1.0, 1.0]))


def test_no_position_sees_a_later_one():
    model, changed = build(), TOKENS.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 19
    moved = (model(changed) - model(TOKENS)).abs().amax(-1)[0]
    assert (moved[:3] == 0).all() and moved[3] > 1e-6
