"""GPT, the baseline: pre-norm RMSNorm, RoPE, SwiGLU, untied embeddings, no biases.

Its twin is ngpt/model.py: `diff -u gpt/model.py ngpt/model.py` shows the paper's changes and nothing else.
Shapes: B batch, T positions, C n_embd, H n_head, K = C/H head_dim, V vocab_size.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from gpt.attention import causal_attention
from gpt.cache import KVCache, LayerCache
from gpt.rope import RotaryTable, apply_rotary


@dataclass
class Config:
    vocab_size: int = 50304
    sequence_length: int = 1024
    n_layer: int = 24
    n_head: int = 16
    n_embd: int = 1024
    rope_base: float = 10000.0
    norm_eps: float = 1e-6
    init_std: float = 0.02


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        C, self.n_head = config.n_embd, config.n_head
        self.head_dim = C // self.n_head
        self.q_proj = nn.Linear(C, C, bias=False)
        self.k_proj = nn.Linear(C, C, bias=False)
        self.v_proj = nn.Linear(C, C, bias=False)
        self.o_proj = nn.Linear(C, C, bias=False)

    def forward(self, x: Tensor, rotary: Tensor, cache: LayerCache | None = None) -> Tensor:
        heads = (*x.shape[:2], self.n_head, self.head_dim)
        q = apply_rotary(self.q_proj(x).view(heads), rotary)  # (B, T, H, K)
        k = apply_rotary(self.k_proj(x).view(heads), rotary)
        v = self.v_proj(x).view(heads)
        y = causal_attention(q, k, v, scale=self.head_dim**-0.5, cache=cache)
        return self.o_proj(y.reshape(x.shape))


class MLP(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        C = config.n_embd
        self.up_proj = nn.Linear(C, 4 * C, bias=False)
        self.gate_proj = nn.Linear(C, 4 * C, bias=False)
        self.down_proj = nn.Linear(4 * C, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u = self.up_proj(x)
        v = self.gate_proj(x)
        return self.down_proj(u * F.silu(v))


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.attn = Attention(config)
        self.mlp = MLP(config)
        self.attn_norm = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.mlp_norm = nn.RMSNorm(config.n_embd, eps=config.norm_eps)

    def forward(self, h: Tensor, rotary: Tensor, cache: LayerCache | None = None) -> Tensor:
        h = h + self.attn(self.attn_norm(h), rotary, cache)
        h = h + self.mlp(self.mlp_norm(h))
        return h


class Transformer(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.rotary = RotaryTable(config.n_embd // config.n_head, config.sequence_length, config.rope_base)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.init_weights()

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the final hidden states (B, T, C) of tokens (B, T), which follow those that a cache has seen."""
        h = self.embedding(tokens)
        rotary = self.rotary(tokens.shape[1], start=cache.length if cache else 0)
        for layer, block in enumerate(self.blocks):
            h = block(h, rotary, cache[layer] if cache else None)
        return self.norm(h)

    def unembedding(self) -> Tensor:
        """Return the matrix (V, C) whose product with the hidden states gives the logits."""
        return self.lm_head.weight

    def init_weights(self) -> None:
        std = self.config.init_std
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=std / (2 * self.config.n_layer) ** 0.5 if is_output else std)

    def normalized_matrices(self) -> list[list[tuple[Tensor, int]]]:
        """Return none: the baseline's weights are free."""
        return []

    def post_optimizer_step(self) -> None:
        """Bring the weights back to where they are kept, in place; called after every optimizer step."""

    def new_cache(self) -> KVCache:
        """Return an empty cache, for a text of at most sequence_length tokens."""
        return KVCache(self.config.n_layer, self.config.sequence_length)
