"""The floor below a step: its FLOPs over the rate of bare matrix products, its bytes over the rate of bare copies."""

import time
from collections.abc import Callable

import torch

from engine.config import Config
from lab.benchmark.arms import synchronize


def best_seconds(function: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    """Return the shortest time of a call, of several after one that is not timed."""
    function()
    times = []
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times)


def matmul_rate(config: Config, device: torch.device) -> float:
    """Return the FLOP/s of the MLP's widest product at this micro batch, in the type of the run's products.

    Of bf16 where the run's are fp8, as MFU is: embeddings, attention and logits stay in bf16.
    """
    dtype = torch.float32 if config.precision.matmul == "float32" else torch.bfloat16
    tokens, C = config.micro_batch_size * config.model["sequence_length"], config.model["n_embd"]
    a, b = (torch.randn(*shape, device=device, dtype=dtype) for shape in ((tokens, C), (C, 8 * C)))
    out = torch.empty(tokens, 8 * C, device=device, dtype=dtype)
    return 2 * tokens * C * 8 * C / best_seconds(lambda: torch.mm(a, b, out=out), device)


def bandwidth(device: torch.device) -> float:
    """Return the bytes/s, read and written, of copying a tensor that no cache holds."""
    source = torch.zeros((1 << 30 if device.type == "cuda" else 1 << 28) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source), device)


def bytes_per_step(parameters: int, normalized: int) -> int:
    """Return the bytes that a step moves for its weights in fp32, whatever the batch.

    AdamW reads weight, gradient and two moments and writes three of them (7); clipping reads the gradients twice and
    writes them once (3); renormalization reads the weights that it is for once, at best, and writes them once (2).
    """
    return 4 * (10 * parameters + 2 * normalized)
