"""Causal softmax attention, shared by both models."""

import torch.nn.functional as F
from torch import Tensor


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Return softmax(scale * q k^T + causal mask) v for q, k, v (B, H, T, K).

    q and k come in fp32 (rotary embedding, norms); the products run in v's type, which is bf16 under autocast.
    """
    return F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True, scale=scale)
