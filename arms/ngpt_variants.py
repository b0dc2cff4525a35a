"""nGPT with single choices undone or replaced: tables 4 to 6 of the paper, and what it states without a table.

Table 4 (initial values and stored scales) needs nothing but the fields of ngpt.model.Config; the rest is here.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import ngpt.model
from arms.replacement import replace_module
from arms.scales import FixedScale, ScalarScale
from gpt.attention import causal_attention
from gpt.cache import KVCache, LayerCache
from gpt.rope import apply_rotary
from ngpt.normalization import Scale, normalize, normalize_matrices_

SCALES = ("alpha", "sqk", "su", "sv", "sz")
# Nearer to 0, SLERP equals LERP in fp32 (they differ by angle^2/6); nearer to pi there is no one shortest way.
SMALLEST_ANGLE = 1e-3


@dataclass
class Config(ngpt.model.Config):
    scalar: list[str] = field(default_factory=list)  # scales that learn one number per vector (table 5)
    fixed: list[str] = field(default_factory=list)  # scales that stay at their initial value (table 5)
    normalize_qk: bool = True  # normalize queries and keys (table 6)
    residual: str = "lerp"  # lerp | slerp: how the hidden state moves towards a block's output (section 2.2)
    normalize_states: bool = True  # hidden states and block outputs on the sphere (section 2.2)
    normalize_matrices: bool = True  # matrices at unit norm after every step (section 2.6, item 2)

    def __post_init__(self):
        for key, names in (("scalar", self.scalar), ("fixed", self.fixed)):
            for name in names:
                if name not in SCALES:
                    raise ValueError(f"{key}=[{name}]: the learned scales are {', '.join(SCALES)}")
        both = sorted(set(self.scalar) & set(self.fixed))
        if both:
            raise ValueError(f"scalar and fixed both name {', '.join(both)}: a scale is one or the other")
        if self.residual not in ("lerp", "slerp"):
            raise ValueError(f"residual={self.residual}: must be lerp or slerp")
        if self.residual == "slerp" and not self.normalize_states:
            raise ValueError("residual=slerp walks on the sphere and needs normalize_states=true")


class AttentionWithoutQKNorm(ngpt.model.Attention):
    """Attend with q and k as long as they come; s_qk and the softmax scale stay (table 6)."""

    def forward(self, x: Tensor, rotary: Tensor, cache: LayerCache | None = None) -> Tensor:
        heads = (*x.shape[:2], self.n_head, self.head_dim)
        q = apply_rotary(self.q_proj(x).view(heads), rotary)
        k = apply_rotary(self.k_proj(x).view(heads), rotary)
        v = self.v_proj(x).view(heads)
        q = self.sqk().square().view(self.n_head, self.head_dim) * q  # (s q)(s k) = (s^2 q) k
        y = causal_attention(q, k, v, scale=self.head_dim**0.5, cache=cache)
        return self.o_proj(y.reshape(x.shape))


class SlerpBlock(ngpt.model.Block):
    """Move along the great circle instead of the chord."""

    def forward(self, h: Tensor, rotary: Tensor, cache: LayerCache | None = None) -> Tensor:
        h = normalize(slerp(h, normalize(self.attn(h, rotary, cache)), self.attn_alpha().abs()))
        h = normalize(slerp(h, normalize(self.mlp(h)), self.mlp_alpha().abs()))
        return h


class FreeStateBlock(ngpt.model.Block):
    """Add to the hidden state as GPT does: each block reads the normalized state, alpha scales what it adds."""

    def forward(self, h: Tensor, rotary: Tensor, cache: LayerCache | None = None) -> Tensor:
        h = h + self.attn_alpha().abs() * self.attn(normalize(h), rotary, cache)
        h = h + self.mlp_alpha().abs() * self.mlp(normalize(h))
        return h


class UnitEmbedding(nn.Embedding):
    """Look up a row and normalize it: puts the first hidden state on the sphere when the matrix is not kept there."""

    def forward(self, tokens: Tensor) -> Tensor:
        return normalize(super().forward(tokens))


class Transformer(ngpt.model.Transformer):
    """Be ngpt.model.Transformer with the modules that the configuration replaces."""

    config: Config

    def __init__(self, config: Config):
        super().__init__(config)
        if config.residual == "slerp" or not config.normalize_states:
            for index in range(config.n_layer):
                block = SlerpBlock(config) if config.normalize_states else FreeStateBlock(config)
                replace_module(self.blocks, str(index), block)
        if not config.normalize_qk:
            for block in self.blocks:
                replace_module(block, "attn", AttentionWithoutQKNorm(config))
        if config.normalize_states and not config.normalize_matrices:
            replace_module(self, "embedding", UnitEmbedding(config.vocab_size, config.n_embd))
        self.replace_scales(config.scalar, ScalarScale)
        self.replace_scales(config.fixed, FixedScale)

    def replace_scales(self, names: list[str], kind: type[Scale]) -> None:
        """Replace the scales of these names ("alpha" is attn_alpha and mlp_alpha) in every layer."""
        for parent in list(self.modules()):
            for name, scale in list(parent.named_children()):
                if isinstance(scale, Scale) and name.rpartition("_")[2] in names:
                    setattr(parent, name, kind(scale.stored.numel(), scale.init, scale.scale))

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the final hidden states (B, T, C) of tokens (B, T), which follow those that a cache has seen."""
        h = super().forward(tokens, cache)
        return h if self.config.normalize_states else normalize(h)

    def init_weights(self) -> None:
        """Start where nGPT starts, matrices that are free from then on included."""
        super().init_weights()
        if not self.config.normalize_matrices:
            for matrices in super().normalized_matrices():
                normalize_matrices_(matrices)

    def normalized_matrices(self) -> list[list[tuple[Tensor, int]]]:
        """Return the matrices that are kept at unit norm, each with the dimension of the norm; none if they are free."""
        return super().normalized_matrices() if self.config.normalize_matrices else []


def slerp(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    """Return sin((1-alpha) t)/sin(t) a + sin(alpha t)/sin(t) b for unit vectors a, b (..., C) at the angle t (section 2.2).

    With one alpha it is the point at the share alpha of the great circle from a to b. With an alpha per channel (C,),
    as in the paper's LERP, the weights are taken per channel, and the result is not of unit length.
    """
    # By half the angle: the arc cosine of a.b is inexact, and its gradient unbounded, for nearly parallel vectors.
    chord, diagonal = (torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (a - b, a + b))
    angle = (2 * torch.atan2(chord, diagonal)).clamp(SMALLEST_ANGLE, math.pi - SMALLEST_ANGLE)
    return (torch.sin((1 - alpha) * angle) * a + torch.sin(alpha * angle) * b) / torch.sin(angle)
