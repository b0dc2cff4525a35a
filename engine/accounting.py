"""Counting: parameters, floating-point operations, and what a run will cost before it starts."""

import re
from typing import Any

import torch
from torch import nn

from engine.config import Config
from engine.distributed import Ranks

# Dense bf16 tensor-core peaks in FLOP/s with fp32 sums, from the vendors' datasheets (no sparsity), by a part of the device's
# name in whole words. The first that fits is taken, so the longer names come first; None is a card whose peak we do not know.
BF16_PEAKS: dict[str, float | None] = {
    "GB300": 2.5e15,
    "B300": 2.25e15,
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "GH200": 989e12,
    "H200 NVL": 836e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800 PCIe": 756e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 150e12,
    "A30": 165e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 6000 Ada": 364e12,
    "RTX A6000": 155e12,
    "RTX 5090 D": None,
    "RTX 5090": 210e12,
    "RTX 4090 D": None,
    "RTX 4090": 165e12,
    "RTX 3090 Ti": 80e12,
    "RTX 3090": 71e12,
}
NOT_THE_CARD = ("MIG", "Laptop", "Max-Q")  # a slice of a card or a slower one, under the whole card's name


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Return the number of parameters in all, and without the two (V, C) embedding matrices."""
    total = sum(p.numel() for p in model.parameters())
    vocabulary = model.config.vocab_size * model.config.n_embd
    return {"total": total, "non_embedding": total - 2 * vocabulary}


def flops_per_token(model: nn.Module) -> int:
    """Return the model FLOPs of one token's forward and backward pass, counted as the field does (PaLM, appendix B).

    6 per weight of every matrix product (the input embedding is a look-up and has none) and 12 * n_layer * T * n_embd
    for attention's two products, not halved for causality.
    """
    config = model.config
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2) - config.vocab_size * config.n_embd
    return 6 * matrices + 12 * config.n_layer * config.sequence_length * config.n_embd


def peak_flops(device: torch.device, precision_matmul: str) -> float | None:
    """Return the device's dense peak in FLOP/s for bf16 products, None where it is not known (CPU, fp32, new names).

    Also for fp8, whose MFU is so that of the same work in bf16: embeddings and attention stay in bf16.
    """
    if device.type != "cuda" or precision_matmul == "float32":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """Return the dense bf16 peak in FLOP/s of a card by the name that its driver gives, None where it is not known."""
    if any(word in name for word in NOT_THE_CARD):
        return None
    return next((peak for part, peak in BF16_PEAKS.items() if re.search(rf"\b{part}\b", name)), None)


def measure_speed(steps_per_second: float, config: Config, model: nn.Module, ranks: Ranks) -> dict[str, float | None]:
    """Return tokens/s, and MFU where the device's peak is known (0 to 1)."""
    rate = steps_per_second * config.tokens_per_step
    peak = peak_flops(ranks.device, config.precision.matmul)
    mfu = rate * flops_per_token(model) / (peak * ranks.world_size) if peak else None
    return {"train/tokens_per_second": rate, "train/mfu": mfu}


def h100_hours(flops: float, mfu: float) -> float:
    """Return the hours of one H100 (SXM) that model FLOPs take at a utilization (0 to 1), in three digits."""
    return float(f"{flops / (mfu * 989e12) / 3600:.3g}")


def describe_run(config: Config, model: nn.Module, world_size: int, train_tokens: int | None) -> dict[str, Any]:
    """Return what a run would be: the answer to dry_run=true."""
    tokens = config.tokens_per_step * config.max_steps
    per_token = flops_per_token(model)
    windows = None if train_tokens is None else (train_tokens - 1) // config.model["sequence_length"]
    return {
        "run_dir": str(config.run_dir),
        "model": config.model,
        "parameters": count_parameters(model),
        "world_size": world_size,
        "gradient_accumulation_steps": config.global_batch_size // (config.micro_batch_size * world_size),
        "tokens_per_step": config.tokens_per_step,
        "max_steps": config.max_steps,
        "tokens": tokens,
        "train_tokens": train_tokens,
        "steps_per_epoch": None if windows is None else round(windows / config.global_batch_size, 2),
        "epochs": None if windows is None else round(config.max_steps * config.global_batch_size / max(windows, 1), 3),
        "flops_per_token": per_token,
        "flops": per_token * tokens,
    }
