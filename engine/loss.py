"""Next-token cross entropy, one implementation for both models, that never holds the logits of many tokens at once."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

IGNORED = -100  # a target that does not count
MAX_LOGITS = 2**28  # 1 GiB in fp32: above this many, the loss is computed in chunks of tokens


def summed_cross_entropy(hidden: Tensor, unembedding: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of -log p(target) in nats, fp32 (or above), over hidden (N, C), unembedding (V, C), targets (N,)."""
    logits = F.linear(hidden, unembedding)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def chunked_cross_entropy(hidden: Tensor, unembedding: Tensor, targets: Tensor, max_logits: int = MAX_LOGITS) -> Tensor:
    """Return summed_cross_entropy with at most max_logits logits in memory, computing each chunk's again in backward."""
    tokens_per_chunk = max(1, max_logits // unembedding.shape[0])
    if hidden.shape[0] <= tokens_per_chunk:
        return summed_cross_entropy(hidden, unembedding, targets)
    chunks = zip(hidden.split(tokens_per_chunk), targets.split(tokens_per_chunk), strict=True)
    return torch.stack(
        [checkpoint(summed_cross_entropy, h, unembedding, t, use_reentrant=False) for h, t in chunks]
    ).sum()


class NextTokenLoss(nn.Module):
    """A model and its loss as one module: what is compiled and wrapped by DDP."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, windows: Tensor) -> Tensor:
        """Return the summed loss in nats of windows (B, T+1): positions 0..T-1 predict positions 1..T.

        A negative id is padding: it neither is predicted nor, as input, matters to what is.
        """
        inputs, targets = windows[:, :-1], windows[:, 1:]
        hidden = self.model(inputs.clamp(min=0))
        return chunked_cross_entropy(hidden.flatten(0, 1), self.model.unembedding(), targets.flatten())
