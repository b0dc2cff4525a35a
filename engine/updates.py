"""How a step changes the weights: AdamW everywhere, or another rule for the blocks' matrices and AdamW for the rest.

Embeddings, the output matrix, gains and learned scales always take AdamW's step. A rule for the matrices alone is
`muon` (torch.optim.Muon, its step scaled to AdamW's rms, arXiv 2502.16982) or `adamh` (Hyperball, arXiv 2606.16899).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from engine.distributed import full_tensor

SMALLEST = 1e-30  # added to a norm before it divides: a gradient of zeros moves nothing


def frobenius(matrix: Tensor) -> Tensor:
    """Return the norm of a whole matrix, sharded or not."""
    return full_tensor(torch.linalg.vector_norm(matrix.float()))


class AdamH(torch.optim.Optimizer):
    """Adam on the sphere of each matrix's initial Frobenius norm R (Hyperball): W <- R unit(W - lr R unit(u)).

    u is Adam's step, m / (sqrt(v) + eps) with both moments corrected for their start. So lr is an angle in radians,
    the same for every matrix, and weight decay would change nothing.

    Args:
        groups: parameter groups of matrices; lr: radians a step; betas, eps: Adam's.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, group, self.state[weight])

    @staticmethod
    def _move(weight: Tensor, group: dict[str, Any], state: dict[str, Tensor]) -> None:
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
            state["radius"] = frobenius(weight)
        state["step"] += 1
        (beta1, beta2), step = group["betas"], state["step"].item()
        state["exp_avg"].lerp_(weight.grad, 1 - beta1)
        state["exp_avg_sq"].lerp_(weight.grad.square(), 1 - beta2)
        mean = state["exp_avg"].float() / (1 - beta1**step)
        size = (state["exp_avg_sq"].float() / (1 - beta2**step)).sqrt() + group["eps"]
        direction, radius = mean / size, state["radius"]
        direction *= group["lr"] * radius / (frobenius(direction) + SMALLEST)
        moved = weight.float() - direction
        weight.copy_(moved * (radius / frobenius(moved)))


# The tensors that each rule keeps of a parameter; those named here as numbers have no shape.
STATE = {
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq", "step"),
    torch.optim.Muon: ("momentum_buffer",),
    AdamH: ("exp_avg", "exp_avg_sq", "step", "radius"),
}
NUMBERS = {"step", "radius"}


def moments_kept(update: str, kind: str) -> int:
    """Return how many tensors of its shape the optimizer keeps of a parameter of this kind: Muon's momentum, or Adam's two."""
    return 1 if update == "muon" and kind == "matrices" else 2


class Optimizer:
    """One or two of torch's optimizers that step together; each parameter belongs to one of them.

    Args:
        parts: the optimizers, of the types named in STATE.
    """

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Tensor, dict[str, Tensor]]:
        return {parameter: entry for part in self.parts for parameter, entry in part.state.items()}

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the rate of the next step; each group takes it times its own multiplier."""
        for group in self.param_groups:
            group["lr"] = learning_rate * group["rate_multiplier"]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)


def make_optimizer(groups: dict[str, list[dict[str, Any]]], update: str, betas: tuple[float, float], eps: float) -> Optimizer:
    """Return the optimizer of parameter groups by kind (embedding, matrices, output, scales); rates are set before each step.

    Args:
        groups: kind -> torch parameter groups with `params`, `weight_decay` and `rate_multiplier`.
        update: the rule of the matrices, adamw, muon or adamh. Muon's momentum is torch's 0.95.
    """
    if update == "adamw":
        every = [group for kind in groups.values() for group in kind]
        return Optimizer(torch.optim.AdamW(every, lr=0.0, betas=betas, eps=eps, fused=True))
    others = [group for kind, some in groups.items() if kind != "matrices" for group in some]
    rest = torch.optim.AdamW(others, lr=0.0, betas=betas, eps=eps, fused=True)
    if update == "muon":
        matrices = torch.optim.Muon(groups["matrices"], lr=0.0, adjust_lr_fn="match_rms_adamw")
        return Optimizer(matrices, rest)
    free = [{key: value for key, value in group.items() if key != "weight_decay"} for group in groups["matrices"]]
    return Optimizer(AdamH(free, lr=0.0, betas=betas, eps=eps), rest)
