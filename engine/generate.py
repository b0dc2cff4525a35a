"""Text from a trained model, one token at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: Tensor,
    max_new_tokens: int,
    *,
    n_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield the next token (B,) of each row, max_new_tokens times.

    Args:
        prompt: token ids (B, T), T >= 1; beyond the model's sequence_length only the last ones are seen.
        n_tokens: ids the tokenizer knows; the padding of the vocabulary beyond it is never drawn.
        temperature: 0 takes the most probable token.
    """
    tokens = prompt
    for _ in range(max_new_tokens):
        hidden = model(tokens[:, -model.config.sequence_length :])[:, -1]
        logits = (hidden @ model.unembedding().to(hidden.dtype).T).float()
        logits[:, n_tokens:] = -torch.inf
        following = choose(logits, temperature, top_k, top_p, generator)
        yield following
        tokens = torch.cat((tokens, following[:, None]), dim=1)


def choose(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
) -> Tensor:
    """Draw one token (B,) from logits (B, V), of the top_k most probable and of the fewest that have probability top_p."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / temperature
    if top_k is not None:
        smallest_kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    probabilities = logits.softmax(dim=-1)
    if top_p is not None:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered  # the probability of all that are likelier: the first always stays
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(before >= top_p, 0.0))
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
