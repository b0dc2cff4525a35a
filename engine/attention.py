"""Which kernel computes attention: PyTorch's choice, or the one that attention= names; and which one it is."""

import torch
from torch.nn.attention import SDPBackend

from cli.composition import ConfigError
from engine.config import Config

SWITCHES = {
    "cudnn": torch.backends.cuda.enable_cudnn_sdp,
    "flash": torch.backends.cuda.enable_flash_sdp,
    "efficient": torch.backends.cuda.enable_mem_efficient_sdp,
    "math": torch.backends.cuda.enable_math_sdp,
}


def choose_attention(config: Config, device: torch.device) -> None:
    """Let this process compute attention by the kernel that attention= names, or by any that PyTorch chooses.

    Raises:
        ConfigError: a kernel that this device or precision does not have.
    """
    wanted = config.attention
    if wanted == "cudnn" and device.type != "cuda":
        raise ConfigError("attention=cudnn needs an NVIDIA GPU; attention=auto takes what there is")
    if wanted in ("cudnn", "flash") and device.type == "cuda" and config.precision.matmul == "float32":
        raise ConfigError(f"attention={wanted} computes in bf16, and precision={config.precision.name} does not; take auto or math")
    for name, switch in SWITCHES.items():
        switch(wanted in ("auto", name))


def attention_kernel(config: Config, device: torch.device) -> str:
    """Return the name of the kernel that attention runs by in training: flash, efficient, cudnn or math."""
    heads, length = config.model["n_head"], config.model["sequence_length"]
    dtype = torch.float32 if config.precision.matmul == "float32" else torch.bfloat16
    shape = (1, length, heads, config.model["n_embd"] // heads)
    q = torch.empty(shape, dtype=dtype, device=device, requires_grad=True).transpose(1, 2)
    chosen = SDPBackend(torch._fused_sdp_choice(q, q, q, is_causal=True))
    return chosen.name.lower().removesuffix("_attention")
