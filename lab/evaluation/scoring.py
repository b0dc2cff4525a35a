"""The log-probability of every token of a batch, by the same arithmetic as the training loss (engine/loss.py)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.loss import IGNORED, MAX_LOGITS


@torch.no_grad()
def score_tokens(model: nn.Module, inputs: Tensor, targets: Tensor, n_tokens: int) -> tuple[Tensor, Tensor]:
    """Return log p(target) in nats, fp32, and whether the target is the most probable token, both (B, T).

    Args:
        inputs: token ids (B, T); the position that reads input t predicts target t.
        targets: token ids (B, T), IGNORED where nothing is asked (the result is 0 and False there).
        n_tokens: ids the tokenizer knows; the padding of the vocabulary beyond it has a probability but is never chosen.
    """
    asked = targets != IGNORED
    hidden, wanted, unembedding = model(inputs)[asked], targets[asked], model.unembedding()
    rows = max(1, MAX_LOGITS // unembedding.shape[0])  # as many positions at a time as the training loss takes
    log_probability = torch.zeros(targets.shape, dtype=torch.float32, device=targets.device)
    is_greedy = torch.zeros(targets.shape, dtype=torch.bool, device=targets.device)
    scored = []
    for h, t in zip(hidden.split(rows), wanted.split(rows), strict=True):
        logits = F.linear(h, unembedding).float()
        scored.append((-F.cross_entropy(logits, t, reduction="none"), logits[:, :n_tokens].argmax(dim=-1) == t))
    if scored:
        log_probability[asked] = torch.cat([values for values, _ in scored])
        is_greedy[asked] = torch.cat([flags for _, flags in scored])
    return log_probability, is_greedy
