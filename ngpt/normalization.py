"""The two words that nGPT adds to the language: a unit-norm vector and a learned scale."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Added to the squared norm. Beside a unit vector's 1.0 it is below float32's resolution; a zero vector stays zero.
EPSILON = 1e-12


def normalize(x: Tensor, dim: int = -1) -> Tensor:
    """Return x with unit L2 norm along dim, computed in (at least) fp32; a zero vector stays zero (section 2.1)."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * torch.rsqrt(x.square().sum(dim, keepdim=True) + EPSILON)


class Scale(nn.Module):
    """Learn a vector that starts at `init` but is stored at `scale` (section 2.5).

    The effective value is stored * init/scale, so Adam, whose step does not depend on the gradient's size, moves
    the effective value at learning_rate * init/scale.
    """

    def __init__(self, size: int, init: float, scale: float):
        super().__init__()
        self.init, self.scale = init, scale
        self.stored = nn.Parameter(torch.full((size,), scale))

    def forward(self) -> Tensor:
        return self.stored * (self.init / self.scale)


def scaled_linear(linear: nn.Linear, x: Tensor, scale: Tensor) -> Tensor:
    """Return scale * linear(x), the scale multiplied into whichever is smaller: the weight's rows or the product.

    In training that is the weight: neither the scale nor its gradient, a sum over all tokens, then costs a pass over the
    activations. When a few tokens are generated it is the product. A layer of another kind (fp8) keeps its own product.
    """
    if type(linear) is not nn.Linear or x.shape[:-1].numel() < linear.in_features:
        return scale * linear(x)
    return F.linear(x, scale[:, None] * linear.weight)


@torch.no_grad()
def normalize_matrices_(matrices: list[tuple[Tensor, int]]) -> None:
    """Normalize the vectors of each weight matrix along its dimension of size n_embd, in place (section 2.6, item 2)."""
    for weight, dim in matrices:  # normalize(), but without a copy of the result
        x = weight.to(torch.promote_types(weight.dtype, torch.float32))
        # vector_norm makes no copy of the squares either; along dimension 0 it is slow and less exact on a CPU.
        if dim == 1 or weight.is_cuda and not hasattr(weight, "placements"):
            squares = torch.linalg.vector_norm(x, dim=dim, keepdim=True).square()
        else:
            squares = x.square().sum(dim, keepdim=True)
        weight.mul_(torch.rsqrt(squares + EPSILON))
