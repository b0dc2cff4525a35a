"""Text from a trained model, one token at a time, with a cache of keys and values."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_TEMPERATURE = 1e-6  # below, the most probable token wins; dividing by less would overflow fp32


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from the model's logits, in this order.

    repetition_penalty: divides the logits of tokens that occur already (CTRL, arXiv 1909.05858, section 4.1); 1: none.
    temperature: divides all logits; 0 takes the most probable token.
    top_k: keeps the k most probable tokens.
    top_p: keeps the fewest tokens that together have this probability (nucleus sampling, arXiv 1904.09751).
    min_p: keeps the tokens with at least this share of the most probable one's probability (arXiv 2407.01082).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def distribution(self, logits: Tensor) -> Tensor:
        """Return the probabilities (B, V), up to a factor, with which tokens are drawn at these logits (B, V)."""
        logits = logits / self.temperature
        if self.top_k is not None:
            smallest_kept = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
        probabilities = logits.softmax(dim=-1)
        if self.top_p is not None:
            ordered, order = probabilities.sort(dim=-1, descending=True)
            before = ordered.cumsum(dim=-1) - ordered  # the probability of all that are likelier: the first always stays
            probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(before >= self.top_p, 0.0))
        if self.min_p is not None:
            least = self.min_p * probabilities.amax(dim=-1, keepdim=True)
            probabilities = probabilities.masked_fill(probabilities < least, 0.0)
        return probabilities


PLAIN = Sampling()


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: Tensor,
    max_new_tokens: int,
    *,
    n_tokens: int,
    sampling: Sampling = PLAIN,
    generators: Sequence[torch.Generator] | None = None,
    end_token: int | None = None,
) -> Iterator[Tensor]:
    """Yield the next token (B,) of each row, max_new_tokens times or until every row has ended.

    Each token follows from the tokens of `context_start` on: the cache only saves reading them again. It is filled anew
    whenever that start moves, which beyond the window happens once in half a window of tokens.

    Args:
        prompt: token ids (B, T), T >= 1; a prompt of one row is read once and continued once per generator.
        n_tokens: ids the tokenizer knows; the padding of the vocabulary beyond it is never drawn.
        generators: the source of each row's randomness, on the prompt's device; None: torch's global one for all.
        end_token: ends a row, which from then on yields it again and again; None: no row ends.
    """
    rows = len(generators) if generators else prompt.shape[0]
    tokens, cache, start = prompt, model.new_cache(), 0
    unembedding = model.unembedding()[:n_tokens]
    has_ended = torch.zeros(rows, dtype=torch.bool, device=prompt.device)
    for _ in range(max_new_tokens):
        previous, start = start, context_start(tokens.shape[1], model.config.sequence_length)
        if start != previous:
            cache.clear()
        hidden = model(tokens[:, start + cache.length :], cache)[:, -1]
        logits = F.linear(hidden, unembedding.to(hidden.dtype)).float().expand(rows, -1)
        following = choose(logits, sampling, generators, tokens.expand(rows, -1))
        if end_token is not None:
            following = following.masked_fill(has_ended, end_token)
            has_ended |= following == end_token
        yield following
        if end_token is not None and has_ended.all():
            return
        if tokens.shape[0] < rows:
            tokens = tokens.expand(rows, -1)
            cache.repeat(rows)
        tokens = torch.cat((tokens, following[:, None]), dim=1)


def context_start(length: int, sequence_length: int) -> int:
    """Return the index of the first token that the model reads to predict the one after a text of `length` tokens.

    A text is read whole while it fits into the window. Beyond, the start moves on half a window at a time, so that more
    than half a window is always read and the cache can be used in between. It depends on nothing but the length: a
    text that was generated in two goes is the text that was generated in one.
    """
    hop = sequence_length - sequence_length // 2
    return max(0, -(-(length - sequence_length) // hop) * hop)


def choose(
    logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator] | None = None, seen: Tensor | None = None
) -> Tensor:
    """Draw one token (B,) from logits (B, V); seen (B, T) are the tokens before it.

    Each row draws from a generator of its own, so that it does not matter which others are drawn beside it.
    """
    if seen is not None and sampling.repetition_penalty != 1:
        logits = penalized(logits, seen, sampling.repetition_penalty)
    if sampling.temperature < SMALLEST_TEMPERATURE:
        return logits.argmax(dim=-1)
    probabilities = sampling.distribution(logits)
    if generators is None:
        return torch.multinomial(probabilities, 1)[:, 0]
    drawn = [torch.multinomial(p, 1, generator=g) for p, g in zip(probabilities, generators, strict=True)]
    return torch.cat(drawn)


def penalized(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Return logits (B, V) with those of the tokens in seen (B, T) divided by penalty, or multiplied where negative."""
    found = logits.gather(-1, seen)
    return logits.scatter(-1, seen, torch.where(found > 0, found / penalty, found * penalty))
