"""Learned scales that learn less: one number instead of a vector, or nothing (paper, table 5)."""

import torch
from torch import Tensor, nn

from ngpt.normalization import Scale


class ScalarScale(Scale):
    """Learn one number where Scale learns a vector: the effective value is the same in all channels."""

    def __init__(self, size: int, init: float, scale: float):
        super().__init__(1, init, scale)
        self.size = size

    def forward(self) -> Tensor:
        return super().forward().expand(self.size)


class FixedScale(Scale):
    """Stay at `init`: no parameter."""

    def __init__(self, size: int, init: float, scale: float):
        nn.Module.__init__(self)  # not Scale's: it would make a parameter
        self.init, self.scale = init, scale
        self.register_buffer("value", torch.full((size,), init), persistent=False)

    def forward(self) -> Tensor:
        return self.value
