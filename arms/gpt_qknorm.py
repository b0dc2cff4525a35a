"""GPT with query-key normalization: the control arm that asks how much of nGPT's gain this alone brings.

The form is that of Qwen3 (arXiv 2505.09388) and Gemma 3 (arXiv 2503.19786): RMSNorm over each head of q and of k, with
a learned gain per channel of the head that all heads share, before the rotary embedding. (OLMo 2 normalizes over all
heads together; nGPT normalizes after the rotation, which makes no difference but for the gain.)
All else is gpt/model.py, its parameters' names included.
"""

from dataclasses import dataclass

from torch import Tensor, nn

import gpt.model
from arms.replacement import replace_module
from gpt.attention import causal_attention
from gpt.cache import LayerCache
from gpt.rope import apply_rotary


@dataclass
class Config(gpt.model.Config):
    """The fields of gpt.model.Config, no more: the class names the arm."""


class Attention(gpt.model.Attention):
    """Attend as GPT does, with q and k normalized per head."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=config.norm_eps)
        self.k_norm = nn.RMSNorm(self.head_dim, eps=config.norm_eps)

    def forward(self, x: Tensor, rotary: Tensor, cache: LayerCache | None = None) -> Tensor:
        heads = (*x.shape[:2], self.n_head, self.head_dim)
        q = self.q_proj(x).view(heads).to(self.q_norm.weight.dtype)  # norms are computed in fp32, as everywhere
        k = self.k_proj(x).view(heads).to(self.k_norm.weight.dtype)
        q = apply_rotary(self.q_norm(q), rotary)  # (B, T, H, K)
        k = apply_rotary(self.k_norm(k), rotary)
        v = self.v_proj(x).view(heads)
        y = causal_attention(q, k, v, scale=self.head_dim**-0.5, cache=cache)
        return self.o_proj(y.reshape(x.shape))


class Transformer(gpt.model.Transformer):
    """Be gpt.model.Transformer with this attention."""

    def __init__(self, config: Config):
        super().__init__(config)
        for block in self.blocks:
            replace_module(block, "attn", Attention(config))
