"""anGPT, the approximately normalized Transformer (arXiv 2505.22014): nGPT without a norm of the activations.

Each operation is followed by a constant that keeps unit norm on average, and rows of the matrices are bounded by norm 1
instead of held at it. Written from the formulas as they are quoted elsewhere, not from the authors' code. Two choices are
ours: s_qk stays as in nGPT, s_u and s_v are gone (the constants take their place).

The factors of the value and output products, sqrt(n_head) and its inverse, cancel: attention is nGPT's own.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ngpt.model
from arms.replacement import replace_module
from gpt.cache import LayerCache
from ngpt.normalization import EPSILON, Scale, normalize_matrices_

# A unit-norm input meets rows of unit norm: 4 C outputs have norm 2, and C outputs of a 4 C vector half its norm.
UP, DOWN = 0.5, 2.0
ACTIVATION = 3.74  # 1 / rms of silu(v), v of standard deviation UP


@dataclass
class Config(ngpt.model.Config):
    alpha_init: float = 0.01


class MLP(nn.Module):
    """SwiGLU whose three products and activation each keep unit norm on average."""

    def __init__(self, config: Config):
        super().__init__()
        C = config.n_embd
        self.up_proj = nn.Linear(C, 4 * C, bias=False)
        self.gate_proj = nn.Linear(C, 4 * C, bias=False)
        self.down_proj = nn.Linear(4 * C, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u = UP * self.up_proj(x)
        v = UP * x.shape[-1] ** 0.5 * self.gate_proj(x)
        return DOWN * self.down_proj(ACTIVATION * u * F.silu(v))


def step_towards(h: Tensor, x: Tensor, alpha: Tensor) -> Tensor:
    """Return (h + alpha (x - h)) / sqrt(alpha^2 + (1 - alpha)^2): of unit norm if h and x are, and are orthogonal."""
    return torch.lerp(h, x.to(h.dtype), alpha) * torch.rsqrt(alpha.square() + (1 - alpha).square())


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.attn = ngpt.model.Attention(config)
        self.mlp = MLP(config)
        self.attn_alpha = Scale(config.n_embd, config.alpha_init, config.alpha_scale or config.n_embd**-0.5)
        self.mlp_alpha = Scale(config.n_embd, config.alpha_init, config.alpha_scale or config.n_embd**-0.5)

    def forward(self, h: Tensor, rotary: Tensor, cache: LayerCache | None = None) -> Tensor:
        h = step_towards(h, self.attn(h, rotary, cache), self.attn_alpha().abs())
        return step_towards(h, self.mlp(h), self.mlp_alpha().abs())


class Transformer(ngpt.model.Transformer):
    """nGPT with these blocks, and with rows bounded by norm 1 where nGPT's vectors are held at it."""

    def __init__(self, config: Config):
        super().__init__(config)
        for layer in range(config.n_layer):
            replace_module(self.blocks, str(layer), Block(config))
        normalize_matrices_(self.bounded_matrices())  # the rows start at their bound

    def normalized_matrices(self) -> list[list[tuple[Tensor, int]]]:
        """Return none: a bound is not a norm that could be checked to be 1."""
        return []

    def bounded_matrices(self) -> list[tuple[Tensor, int]]:
        """Return every matrix with the dimension of its rows: the inputs of one output."""
        return [(parameter, 1) for parameter in self.parameters() if parameter.dim() == 2]

    @torch.no_grad()
    def post_optimizer_step(self) -> None:
        """Shorten the rows that have grown beyond norm 1, in place; called after every optimizer step."""
        for weight, dim in self.bounded_matrices():
            norm = weight.to(torch.promote_types(weight.dtype, torch.float32)).square().sum(dim, keepdim=True)
            weight.mul_(torch.rsqrt(norm.clamp(min=1.0) + EPSILON))
