"""Validation: the mean loss over one fixed set of windows, the same for every run, batch and world size."""

import hashlib
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from corpus.token_file import TokenFile
from engine.data import count_windows, read_windows
from engine.distributed import Ranks
from engine.loss import IGNORED


class ValidationSet:
    """Evenly spread windows of a token file, and how many tokens and bytes of text they ask for."""

    def __init__(self, token_file: TokenFile, byte_lengths: np.ndarray, sequence_length: int, max_windows: int | None):
        """Choose max_windows windows (None: all); byte_lengths (vocab_size,) are every token's UTF-8 bytes, 0 for end of text."""
        available = count_windows(len(token_file), sequence_length)
        count = min(available, max_windows or available)
        self.token_file, self.sequence_length = token_file, sequence_length
        self.windows = [i * available // count for i in range(count)]
        self.n_tokens = count * sequence_length
        self.n_bytes = sum(int(byte_lengths[batch[:, 1:].numpy()].sum()) for batch in self._read(self.windows, 256))

    def _read(self, windows: list[int], batch_size: int) -> Iterator[Tensor]:
        for start in range(0, len(windows), batch_size):
            yield read_windows(self.token_file, windows[start : start + batch_size], self.sequence_length)

    def batches(self, batch_size: int, rank: int, world_size: int) -> Iterator[Tensor]:
        """Yield this rank's share as (batch_size, T+1), filled with padding: every rank gets equally many, of one shape.

        For where the model is sharded a forward pass needs all ranks, and one shape compiles once.
        """
        share = self.windows[rank::world_size]
        for start in range(0, math.ceil(len(self.windows) / world_size), batch_size):
            windows = share[start : start + batch_size]
            padding = torch.full((batch_size - len(windows), self.sequence_length + 1), IGNORED)
            yield torch.cat((*self._read(windows, batch_size), padding))

    def describe(self, file_sha256: str) -> dict[str, int | str]:
        """Return the facts that two runs must share for their losses to be comparable."""
        identity = f"{file_sha256} {self.sequence_length} {self.windows}"
        return {
            "windows": len(self.windows),
            "tokens": self.n_tokens,
            "bytes": self.n_bytes,
            "digest": hashlib.sha256(identity.encode()).hexdigest(),
        }


@torch.no_grad()
def evaluate(
    model_with_loss: nn.Module,
    validation: ValidationSet,
    batch_size: int,
    ranks: Ranks,
    autocast: torch.autocast,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, float] | None:
    """Return val/loss (nats per token), val/perplexity and val/bits_per_byte, equal on every rank.

    Or None on every rank, if should_stop said so on any: all leave before the same batch. Given on one rank, on all.

    Sums are reduced, not means, so the split over batches and ranks does not matter. The end-of-text token counts
    in the loss but has no bytes: bits per byte is the cost of the text with its document boundaries.
    """
    nats = torch.zeros((), dtype=torch.float64, device=ranks.device)
    for batch in validation.batches(batch_size, ranks.rank, ranks.world_size):
        if should_stop and ranks.any(should_stop()):
            return None
        if ranks.device.type == "cuda":
            batch = batch.pin_memory()  # so that the copy does not wait for the batch before
        with autocast:
            nats += model_with_loss(batch.to(ranks.device, non_blocking=True)).double()
    nats = ranks.all_reduce_sum(nats).item()
    loss = nats / validation.n_tokens
    return {
        "val/loss": loss,
        "val/perplexity": math.exp(min(loss, 700)),
        "val/bits_per_byte": nats / math.log(2) / max(validation.n_bytes, 1),
    }
