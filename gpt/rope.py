"""Rotary position embedding (RoFormer, arXiv 2104.09864), rotate-half layout, shared by both models."""

import torch
from torch import Tensor, nn


class RotaryTable(nn.Module):
    """Cache the cosines and sines of all positions.

    The layout is Llama's rotate-half: channel i turns with channel i + head_dim/2, by the angle
    position * base^(-2i/head_dim).
    """

    table: Tensor

    def __init__(self, head_dim: int, sequence_length: int, base: float):
        super().__init__()
        self.head_dim, self.base = head_dim, base
        # Not persistent: derived from the configuration, so a checkpoint need not carry it.
        self.register_buffer("table", self._compute(sequence_length), persistent=False)

    def _compute(self, length: int) -> Tensor:
        # float64 until the end: float32 angles at position 32k would be off by 1e-3.
        frequency = self.base ** (-torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim)
        angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency).repeat(1, 2)
        return torch.stack((angle.cos(), angle.sin())).float()

    def forward(self, length: int, start: int = 0) -> Tensor:
        """Return the table (2, length, 1, head_dim) of positions from start on; for more than the trained it grows, once."""
        end = start + length
        if end > self.table.shape[1]:
            self.table = self._compute(end).to(self.table)
        return self.table[:, start:end, None]


def apply_rotary(x: Tensor, table: Tensor) -> Tensor:
    """Rotate x (..., T, H, head_dim) by its positions; the result is at least fp32, as the table is."""
    cos, sin = table
    half = x.shape[-1] // 2
    rotated = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + rotated * sin
