"""Causal softmax attention, shared by both models."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt.cache import LayerCache

# cuDNN plans anew for every length of the keys, tens of milliseconds each; with a cache each token brings a new length.
WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, cache: LayerCache | None = None) -> Tensor:
    """Return softmax(scale * q k^T + causal mask) v for q, k, v (B, T, H, K), in that shape.

    q and k come in fp32 (rotary embedding, norms); the products run in v's type, which is bf16 under autocast.
    The heads move in front of the positions here, as views: the work before and after runs in the projections' own layout.
    With a cache, the positions follow those in it, see them as well, and are added to it.
    """
    q, k, v = (x.to(v.dtype).transpose(1, 2) for x in (q, k, v))  # (B, H, T, K)
    past = 0
    if cache is not None:
        past = cache.length
        k, v = cache.append(k, v)
    if past == 0:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(1, 2)
    new = q.shape[2]  # a single one sees every position, and no mask is the fastest
    mask = torch.ones(new, past + new, dtype=torch.bool, device=q.device).tril(past) if new > 1 else None
    with sdpa_kernel(WITHOUT_PLANS):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)
