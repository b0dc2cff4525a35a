"""The update rules of the matrices against their formulas, in float64 and with loops."""

import math

import pytest
import torch
from training import SMALL, composed

from engine.memory import state_bytes
from engine.models import build_model
from engine.optimization import build_optimizer
from engine.updates import AdamH, make_optimizer

BETAS, EPS = (0.9, 0.95), 1e-8


def gradients(steps=5, shape=(6, 4)):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


def adam_direction(seen):
    """Adam's step after the gradients seen so far, from the definition of its moments as weighted sums."""
    t = len(seen)
    weights1 = [(1 - BETAS[0]) * BETAS[0] ** (t - 1 - i) for i in range(t)]
    weights2 = [(1 - BETAS[1]) * BETAS[1] ** (t - 1 - i) for i in range(t)]
    m = sum(w * g for w, g in zip(weights1, seen, strict=True)) / sum(weights1)
    v = sum(w * g * g for w, g in zip(weights2, seen, strict=True)) / sum(weights2)
    return m / (v.sqrt() + EPS)


def test_adamh_walks_on_the_sphere_by_the_formula():
    weight = torch.nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)))
    expected, radius, seen = weight.detach().double(), weight.detach().double().norm(), []
    optimizer = AdamH([{"params": [weight]}], lr=0.1, betas=BETAS, eps=EPS)
    for gradient in gradients():
        weight.grad = gradient
        before = weight.detach().clone()
        optimizer.step()
        seen.append(gradient.double())
        u = adam_direction(seen)
        moved = expected - 0.1 * radius * u / u.norm()
        expected = radius * moved / moved.norm()
        torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-6)
        assert weight.norm().item() == pytest.approx(radius.item(), rel=1e-6)
        angle = math.acos((before * weight).sum().item() / radius.item() ** 2)
        assert angle <= math.asin(0.1) + 1e-3  # the rate bounds the turn, whatever the gradient's size


def test_a_gradient_of_zeros_moves_nothing():
    weight = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = AdamH([{"params": [weight]}], lr=0.1, betas=BETAS, eps=EPS)
    weight.grad = torch.zeros(3, 3)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.ones(3, 3))


def grouped(parameters):
    matrix, vector, embedding = parameters
    return {
        "matrices": [{"params": [matrix], "weight_decay": 0.1, "rate_multiplier": 0.5}],
        "embedding": [{"params": [embedding], "weight_decay": 0.1, "rate_multiplier": 2.0}],
        "scales": [{"params": [vector], "weight_decay": 0.0, "rate_multiplier": 1.0}],
    }


@pytest.mark.parametrize("update", ["adamw", "muon", "adamh"])
def test_only_the_matrices_take_another_rule_and_every_kind_its_own_rate(update):
    def start():
        generator = torch.Generator().manual_seed(7)
        return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((6, 4), (5,), (7, 4))]

    def walk(parameters, optimizer):
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    ours, theirs = start(), start()
    optimizer = make_optimizer(grouped(ours), update, BETAS, EPS)
    optimizer.set_learning_rate(0.01)
    walk(ours, optimizer)
    # torch's own optimizers, one for each parameter, with the rates and decays written out
    alone = {
        "adamw": lambda p: torch.optim.AdamW([p], lr=0.005, betas=BETAS, eps=EPS, weight_decay=0.1),
        "muon": lambda p: torch.optim.Muon([p], lr=0.005, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        "adamh": lambda p: AdamH([{"params": [p]}], lr=0.005, betas=BETAS, eps=EPS),
    }[update]
    for parameter, expected in zip(
        theirs,
        (
            alone(theirs[0]),
            torch.optim.AdamW([theirs[1]], lr=0.01, betas=BETAS, eps=EPS, weight_decay=0.0),
            torch.optim.AdamW([theirs[2]], lr=0.02, betas=BETAS, eps=EPS, weight_decay=0.1),
        ),
        strict=True,
    ):
        assert parameter.grad is None
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            drawn = [torch.randn(other.shape, generator=generator) for other in theirs]
            parameter.grad = next(g for g, other in zip(drawn, theirs, strict=True) if other is parameter)
            expected.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("update", ["adamw", "muon", "adamh"])
def test_the_memory_estimate_holds_what_the_optimizer_keeps(update):
    config = composed(*SMALL, "model=ngpt", f"update={update}")
    model = build_model(config.model)
    optimizer = build_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    kept = sum(tensor.nbytes for entry in optimizer.state.values() for tensor in entry.values() if tensor.dim())
    assert state_bytes(model, update) == weights + kept
    assert (kept < 2 * weights) == (update == "muon")
