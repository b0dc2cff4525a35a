"""Next-token cross entropy, one implementation for both models, that never holds the logits of many tokens at once."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100  # a target that does not count
MAX_LOGITS = 2**28  # 512 MiB in bf16: above this many, the loss is computed in chunks of tokens


def summed_cross_entropy(hidden: Tensor, unembedding: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of -log p(target) in nats, fp32 (or above), over hidden (N, C), unembedding (V, C), targets (N,)."""
    logits = F.linear(hidden, unembedding)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def tokens_in_a_chunk(tokens: int, vocab_size: int, max_logits: int = MAX_LOGITS) -> int:
    """Return how many tokens' logits the loss computes at once: all, or an even share of them in as few chunks as possible.

    A share is a multiple of 128 where max_logits allows, the tile of a GPU's matrix products.
    """
    most = max(1, max_logits // vocab_size)
    if tokens <= most:
        return tokens
    tile = 128 if most >= 128 else 1
    chunks = math.ceil(tokens / (most // tile * tile))
    return math.ceil(tokens / chunks / tile) * tile


def chunked_cross_entropy(hidden: Tensor, unembedding: Tensor, targets: Tensor, max_logits: int = MAX_LOGITS) -> Tensor:
    """Return summed_cross_entropy with at most max_logits logits in memory."""
    tokens_per_chunk = tokens_in_a_chunk(hidden.shape[0], unembedding.shape[0], max_logits)
    if hidden.shape[0] <= tokens_per_chunk:
        return summed_cross_entropy(hidden, unembedding, targets)
    if torch.is_grad_enabled():
        return ChunkedCrossEntropy.apply(hidden, unembedding, targets, tokens_per_chunk)
    chunks = zip(hidden.split(tokens_per_chunk), targets.split(tokens_per_chunk), strict=True)
    return torch.stack([summed_cross_entropy(h, unembedding, t) for h, t in chunks]).sum()


class ChunkedCrossEntropy(torch.autograd.Function):
    """Cross entropy whose gradients are computed beside the loss, chunk by chunk, while the chunk's logits are there.

    The usual ways out either keep all logits for the backward pass or compute them twice. That the gradient of a sum needs
    nothing from the backward pass but one factor makes a third possible. (F.linear_cross_entropy of PyTorch 2.13 does
    it as well, but leaves a compiled graph, and returns a loss of bf16 for inputs of bf16.)
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, unembedding: Tensor, targets: Tensor, tokens_per_chunk: int) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        accumulated = torch.promote_types(dtype, torch.float32)
        weight = unembedding.to(dtype)
        loss = torch.zeros((), dtype=accumulated, device=hidden.device)
        hidden_gradients = []
        weight_gradient = torch.zeros(weight.shape, dtype=accumulated, device=hidden.device)
        for h, t in zip(hidden.to(dtype).split(tokens_per_chunk), targets.split(tokens_per_chunk), strict=True):
            counts = t != IGNORED
            index = t.clamp(min=0)[:, None]
            log_p = (h @ weight.T).to(accumulated).log_softmax(-1)
            loss = loss - (log_p.gather(1, index).squeeze(1) * counts).sum()
            one_hot = torch.arange(weight.shape[0], device=h.device) == index  # not stored: fused when compiled
            gradient = ((log_p.exp() - one_hot.to(accumulated)) * counts[:, None]).to(dtype)
            hidden_gradients.append(gradient @ weight)
            weight_gradient = weight_gradient + gradient.T @ h
        ctx.save_for_backward(torch.cat(hidden_gradients).to(hidden.dtype), weight_gradient.to(unembedding.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return factor.to(hidden_gradient.dtype) * hidden_gradient, factor * weight_gradient, None, None


class NextTokenLoss(nn.Module):
    """A model and its loss as one module: what DDP and FSDP wrap."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, windows: Tensor) -> Tensor:
        """Return the summed loss in nats of windows (B, T+1): positions 0..T-1 predict positions 1..T.

        A negative id is padding: it neither is predicted nor, as input, matters to what is.
        """
        inputs, targets = windows[:, :-1], windows[:, 1:]
        return self.loss_of_hidden(self.model(inputs.clamp(min=0)), targets)

    def loss_of_hidden(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the summed loss of final hidden states (B, T, C) that predict targets (B, T)."""
        return chunked_cross_entropy(hidden.flatten(0, 1), self.model.unembedding(), targets.flatten())
