"""Keys and values of the positions already read, shared by both models: with them a new token costs one position."""

import torch
from torch import Tensor


class LayerCache:
    """One layer's keys and values (B, H, T, K) in tensors that are made once, for `capacity` positions."""

    def __init__(self, capacity: int):
        self.capacity, self.length = capacity, 0
        self.keys = self.values = torch.empty(0)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of the next positions and return those of all; raise ValueError if they do not fit."""
        start, end = self.length, self.length + k.shape[2]
        if end > self.capacity:
            raise ValueError(f"{end} positions in a cache for {self.capacity}")
        if self.keys.numel() == 0:  # now the shape is known, and the type, which autocast decides
            self.keys, self.values = (x.new_empty(*x.shape[:2], self.capacity, x.shape[3]) for x in (k, v))
        self.keys[:, :, start:end], self.values[:, :, start:end] = k, v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """The keys and values of every layer: cache[i] is layer i's."""

    def __init__(self, n_layer: int, capacity: int):
        self.layers = [LayerCache(capacity) for _ in range(n_layer)]

    def __getitem__(self, layer: int) -> LayerCache:
        return self.layers[layer]

    @property
    def length(self) -> int:
        """Return how many positions have been read."""
        return self.layers[0].length

    def clear(self) -> None:
        """Forget every position; the memory is kept for those to come."""
        for layer in self.layers:
            layer.length = 0

    def repeat(self, rows: int) -> None:
        """Go on with `rows` rows, each of which has read what the only one has."""
        for layer in self.layers:
            layer.keys, layer.values = (x.repeat(rows, 1, 1, 1) for x in (layer.keys, layer.values))
