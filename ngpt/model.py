"""nGPT, the normalized Transformer (arXiv 2410.01131; equations and sections below are the paper's).

Its twin is gpt/model.py: `diff -u gpt/model.py ngpt/model.py` shows the paper's changes and nothing else.
Shapes: B batch, T positions, C n_embd, H n_head, K = C/H head_dim, V vocab_size.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from gpt.attention import causal_attention
from gpt.cache import KVCache, LayerCache
from gpt.rope import RotaryTable, apply_rotary
from ngpt.normalization import Scale, normalize, normalize_matrices_, scaled_linear  # sections 2.1, 2.5 and 2.6


@dataclass
class Config:
    vocab_size: int = 50304
    sequence_length: int = 1024
    n_layer: int = 24
    n_head: int = 16
    n_embd: int = 1024
    rope_base: float = 10000.0
    # Every learned scale starts at its init and is stored at its scale; None is 1/sqrt(n_embd) (sections 2.5, 2.6).
    alpha_init: float = 0.05
    alpha_scale: float | None = None
    sqk_init: float = 1.0
    sqk_scale: float | None = None
    su_init: float = 1.0
    su_scale: float | None = 1.0
    sv_init: float = 1.0
    sv_scale: float | None = 1.0
    sz_init: float = 1.0
    sz_scale: float | None = None


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        C, self.n_head = config.n_embd, config.n_head
        self.head_dim = C // self.n_head
        self.q_proj = nn.Linear(C, C, bias=False)
        self.k_proj = nn.Linear(C, C, bias=False)
        self.v_proj = nn.Linear(C, C, bias=False)
        self.o_proj = nn.Linear(C, C, bias=False)
        self.sqk = Scale(C, config.sqk_init, config.sqk_scale or C**-0.5)

    def forward(self, x: Tensor, rotary: Tensor, cache: LayerCache | None = None) -> Tensor:
        heads = (*x.shape[:2], self.n_head, self.head_dim)
        q = apply_rotary(normalize(self.q_proj(x).view(heads)), rotary)  # eq. 15: a rotation keeps the norm
        k = apply_rotary(normalize(self.k_proj(x).view(heads)), rotary)  # eq. 16
        v = self.v_proj(x).view(heads)
        q = self.sqk().square().view(self.n_head, self.head_dim) * q  # eq. 15, 16: (s q)(s k) = (s^2 q) k
        y = causal_attention(q, k, v, scale=self.head_dim**0.5, cache=cache)  # section 2.3.2
        return self.o_proj(y.reshape(x.shape))


class MLP(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        C = config.n_embd
        self.up_proj = nn.Linear(C, 4 * C, bias=False)
        self.gate_proj = nn.Linear(C, 4 * C, bias=False)
        self.down_proj = nn.Linear(4 * C, C, bias=False)
        self.su = Scale(4 * C, config.su_init, config.su_scale or C**-0.5)
        self.sv = Scale(4 * C, config.sv_init, config.sv_scale or C**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        u = scaled_linear(self.up_proj, x, self.su())  # eq. 20
        v = scaled_linear(self.gate_proj, x, self.sv() * x.shape[-1] ** 0.5)  # eq. 21
        return self.down_proj(u * F.silu(v))


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.attn = Attention(config)
        self.mlp = MLP(config)
        self.attn_alpha = Scale(config.n_embd, config.alpha_init, config.alpha_scale or config.n_embd**-0.5)
        self.mlp_alpha = Scale(config.n_embd, config.alpha_init, config.alpha_scale or config.n_embd**-0.5)

    def forward(self, h: Tensor, rotary: Tensor, cache: LayerCache | None = None) -> Tensor:
        h = normalize(h.lerp(normalize(self.attn(h, rotary, cache)), self.attn_alpha().abs()))  # eq. 10
        h = normalize(h.lerp(normalize(self.mlp(h)), self.mlp_alpha().abs()))  # eq. 11
        return h


class Transformer(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.rotary = RotaryTable(config.n_embd // config.n_head, config.sequence_length, config.rope_base)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.sz = Scale(config.vocab_size, config.sz_init, config.sz_scale or config.n_embd**-0.5)  # eq. 3
        self.normalize_ = normalize_matrices_  # on a GPU it is compiled, once for all blocks
        self.init_weights()

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the final hidden states (B, T, C) of tokens (B, T), which follow those that a cache has seen."""
        h = self.embedding(tokens)
        rotary = self.rotary(tokens.shape[1], start=cache.length if cache else 0)
        for layer, block in enumerate(self.blocks):
            h = block(h, rotary, cache[layer] if cache else None)
        return h  # section 2.6, item 1: no norm remains, not even the final one

    def unembedding(self) -> Tensor:
        """Return the matrix (V, C) whose product with the hidden states gives the logits."""
        return self.sz()[:, None] * self.lm_head.weight  # eq. 3, folded into the rows

    def init_weights(self) -> None:
        std = self.config.n_embd**-0.5  # section A.5
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=std / (2 * self.config.n_layer) ** 0.5 if is_output else std)
        self.post_optimizer_step()

    def normalized_matrices(self) -> list[list[tuple[Tensor, int]]]:
        """Return the matrices kept at unit norm, each with the dimension of the norm (section 2.6, item 2); block by block."""
        groups = [[(self.embedding.weight, 1), (self.lm_head.weight, 1)]]
        for attn, mlp in ((block.attn, block.mlp) for block in self.blocks):
            readers = (attn.q_proj, attn.k_proj, attn.v_proj, mlp.up_proj, mlp.gate_proj)
            groups.append([(m.weight, 1) for m in readers] + [(m.weight, 0) for m in (attn.o_proj, mlp.down_proj)])
        return groups

    def post_optimizer_step(self) -> None:
        """Bring the weights back to where they are kept, in place; called after every optimizer step."""
        for matrices in self.normalized_matrices():
            self.normalize_(matrices)  # section 2.6, item 2

    def new_cache(self) -> KVCache:
        """Return an empty cache, for a text of at most sequence_length tokens."""
        return KVCache(self.config.n_layer, self.config.sequence_length)
