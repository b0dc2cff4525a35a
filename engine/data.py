"""Batches: which windows of the token file each step sees, as a pure function of (seed, global sample index).

Nothing else matters: not the world size, the micro batch, the evaluations in between, or a restart. Two runs with one
seed, of whatever models, see the same windows at the same step.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from corpus.token_file import TokenFile


def count_windows(n_tokens: int, sequence_length: int) -> int:
    """Return how many windows of sequence_length + 1 tokens, overlapping in one token, n_tokens hold."""
    return max(0, (n_tokens - 1) // sequence_length)


def epoch_order(n_windows: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order (n_windows,) in which an epoch visits its windows.

    Raw Philox words are sorted rather than Generator.permutation called, whose stream NumPy may change between versions.
    """
    words = np.random.Philox(key=[seed, epoch]).random_raw(n_windows)
    return np.argsort(words, kind="stable")


class TrainingWindows:
    """The endless sequence of training windows; sample i is window order[epoch][i % n_windows]."""

    def __init__(self, token_file: TokenFile, sequence_length: int, seed: int):
        self.token_file, self.sequence_length, self.seed = token_file, sequence_length, seed
        self.n_windows = count_windows(len(token_file), sequence_length)
        self._orders: dict[int, np.ndarray] = {}  # the current epoch's order, at an epoch's end also the next

    def window_of(self, sample: int) -> int:
        epoch, position = divmod(sample, self.n_windows)
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = epoch_order(self.n_windows, self.seed, epoch)
        return int(self._orders[epoch][position])

    def read(self, first_sample: int, count: int) -> Tensor:
        """Return samples first_sample, ... as token ids (count, T+1), int64."""
        return read_windows(
            self.token_file,
            [self.window_of(i) for i in range(first_sample, first_sample + count)],
            self.sequence_length,
        )


def read_windows(token_file: TokenFile, windows: list[int], sequence_length: int) -> Tensor:
    """Return the tokens (len(windows), T+1), int64, of windows given by their numbers."""
    rows = [token_file.read_window(w * sequence_length, sequence_length + 1) for w in windows]
    return torch.from_numpy(np.stack(rows).astype(np.int64))


@dataclass(frozen=True)
class BatchShape:
    """How the sequences of a step are shared out: in each micro step the ranks take neighbouring samples."""

    global_batch_size: int
    micro_batch_size: int
    rank: int = 0
    world_size: int = 1

    @property
    def micro_steps(self) -> int:
        return self.global_batch_size // (self.world_size * self.micro_batch_size)

    def first_sample(self, batch: int, micro_step: int) -> int:
        """Return the first sample of this rank's micro batch."""
        return batch * self.global_batch_size + (micro_step * self.world_size + self.rank) * self.micro_batch_size


def micro_batches(
    windows: TrainingWindows, shape: BatchShape, first_batch: int, last_batch: int, pin_memory: bool = False
) -> Iterator[Tensor]:
    """Yield this rank's micro batches (micro_batch_size, T+1) of first_batch ... last_batch - 1, read one ahead by a thread.

    Pinned memory lets the copy to a GPU run beside the computation; to pin anything opens CUDA, so a run on the CPU does not.
    """
    starts = (shape.first_sample(batch, m) for batch in range(first_batch, last_batch) for m in range(shape.micro_steps))

    def load(start: int) -> Tensor:
        batch = windows.read(start, shape.micro_batch_size)
        return batch.pin_memory() if pin_memory else batch

    with ThreadPoolExecutor(1, thread_name_prefix="loader") as thread:
        pending = None
        for start in starts:
            following = thread.submit(load, start)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
