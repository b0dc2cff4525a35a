"""Types of the matrix products: autocast to bf16, and fp8 for the blocks' products."""

import torch
from torch import nn

from cli.composition import ConfigError


def autocast(device: torch.device, matmul: str) -> torch.autocast:
    """Return the context in which a model runs: products in bf16 unless matmul is "float32"; fp8 is beside that."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=matmul != "float32")


def use_float8(blocks: nn.ModuleList, device: torch.device, emulate: bool = False) -> None:
    """Let the blocks' matrix products run in fp8 with a scale per tensor, through torchao; the weights stay as they are.

    Embeddings and logits stay in bf16. The layers keep their parameters and names, so checkpoints do not change.

    Args:
        emulate: compute in fp32 what fp8 would give, on any device and slowly; for tests.

    Raises:
        ConfigError: no torchao, or a GPU without fp8 (before Ada and Hopper).
    """
    if not emulate and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)):
        raise ConfigError(
            "precision=fp8 needs an NVIDIA GPU of compute capability 8.9 or higher (Ada, Hopper); precision=bf16 runs"
        )
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise ConfigError("precision=fp8 needs torchao: pip install -r requirements-fp8.txt") from None
    convert_to_float8_training(blocks, config=Float8LinearConfig(emulate=emulate))
