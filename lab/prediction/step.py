"""A training step's time, put together from the kernels of a block, the loss and the renormalization, and the bytes of all else."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any, cast
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.accounting import flops_per_token, peak_of
from engine.checks import check_batch
from engine.config import Config
from engine.loss import NextTokenLoss
from engine.micro_batch import with_micro_batch
from engine.models import build_model
from lab.prediction.cards import OF_BANDWIDTH, Card
from lab.prediction.kernels import Kernel, compiled_kernels

DEVICE = "cuda:0"


def predict(config: Config, card: Card) -> dict[str, Any]:
    """Return what a step of the configuration does on one such card: kernels, bytes, seconds, MFU, the micro batch that fits."""
    peak = peak_of(card.name)
    assert peak, f"{card.name} has no peak in engine/accounting.py"
    free = replace(config, micro_batch_size=cast(int, None), global_batch_size=256)
    fits = with_micro_batch(free, 1, card.memory_gib, use_compile=True).micro_batch_size
    if config.micro_batch_size is None:
        config = with_micro_batch(config, 1, card.memory_gib, use_compile=True)
    check_batch(config, world_size=1)
    assert config.micro_batch_size
    block, loss, outer_norms, block_norms = kernels_of_parts(config)
    model = build_model(config.model, config.precision.matrices, device="meta")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tokens, C, V = config.micro_batch_size * config.model["sequence_length"], config.model["n_embd"], config.model["vocab_size"]
    accumulated = config.global_batch_size // config.micro_batch_size

    def of_bytes(count: float) -> float:
        return count / (OF_BANDWIDTH * card.bandwidth)

    def of_kernels(kernels: list[Kernel]) -> float:
        return sum(kernel.seconds(card, peak) for kernel in kernels)

    of_block = of_kernels(block)
    # Not compiled: the embedding (rows read and written; their gradients added to a matrix of zeros) and GPT's last norm
    # (two passes forward, three backward), in fp32.
    ends = of_bytes(4 * tokens * C * (2 + 3 + (5 if hasattr(model, "norm") else 0)) + 4 * V * C)
    seconds = {
        "blocks": accumulated * config.model["n_layer"] * of_block,
        "loss": accumulated * of_kernels(loss),
        "embedding_and_last_norm": accumulated * ends,
        "accumulation": of_bytes(12 * parameters * (accumulated - 1)),  # read twice, written once
        "clipping": of_bytes(12 * parameters),
        "optimizer": of_bytes(28 * parameters),
        "renormalization": of_kernels(outer_norms) + config.model["n_layer"] * of_kernels(block_norms),
    }
    step = sum(seconds.values())
    return {
        "micro_batch_size": config.micro_batch_size,
        "micro_batches": accumulated,
        "micro_batch_that_fits": fits,
        "step_seconds": step,
        "mfu": flops_per_token(model) * tokens * accumulated / step / peak,
        "seconds": seconds,
        "block_seconds": {
            "elementwise": sum(kernel.seconds(card, peak) for kernel in block if kernel.is_elementwise),
            "attention": sum(kernel.seconds(card, peak) for kernel in block if "attention" in kernel.name),
            "all": of_block,
        },
        "block": [asdict(kernel) for kernel in block],
        "loss": [asdict(kernel) for kernel in loss],
        "renormalization_of_a_block": [asdict(kernel) for kernel in block_norms],
    }


def kernels_of_parts(config: Config) -> tuple[list[Kernel], list[Kernel], list[Kernel], list[Kernel]]:
    """Return the kernels of a block, of the loss, and of the renormalization of the outer matrices and of a block's."""
    node, batch = config.model, config.micro_batch_size
    assert batch
    with FakeTensorMode(allow_non_fake_inputs=True), naming_the_kernel(config.attention):
        model = build_model(node | {"n_layer": 1}, config.precision.matrices, device=DEVICE)
        hidden = torch.empty(batch, node["sequence_length"], node["n_embd"], device=DEVICE, requires_grad=True)
        targets = torch.empty(batch, node["sequence_length"], dtype=torch.long, device=DEVICE)
        block = compiled_kernels(model.blocks[0].forward, hidden, model.rotary(node["sequence_length"]))
        loss = compiled_kernels(NextTokenLoss(model).loss_of_hidden, hidden, targets)
        groups = model.normalized_matrices() or [[], []]
        outer_norms, block_norms = (compiled_kernels(model.normalize_, group) if group else [] for group in groups)
    return block, loss, outer_norms, block_norms


@contextlib.contextmanager
def naming_the_kernel(attention: str) -> Iterator[None]:
    """Let attention be computed by the kernel that the card would choose: nobody is there who could be asked."""
    operators: Any = torch.ops.aten

    def attend(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float) -> Tensor:
        if attention == "flash":
            return operators._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal, False, scale=scale)[0]
        return operators._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, is_causal, False, scale=scale)[0]

    with patch.object(F, "scaled_dot_product_attention", attend):
        yield


def table(predictions: dict[str, dict[str, Any]], card: Card) -> str:
    """Return the predictions as a table for a terminal."""
    first = next(iter(predictions.values()))["step_seconds"]
    rows = [
        ["arm", "step ms", "ratio", "MFU", "micro batch", "fits", "a block's kernels", "elementwise", "MB fwd, bwd", "us", "all us"]
    ]
    for name, found in predictions.items():
        elementwise = [kernel for kernel in found["block"] if kernel["name"] == "elementwise"]
        mb = [sum(kernel["bytes"] for kernel in elementwise if kernel["backward"] is backward) / 1e6 for backward in (False, True)]
        us = {part: f"{1e6 * value:.0f}" for part, value in found["block_seconds"].items()}
        size = f"{found['micro_batch_size']} x {found['micro_batches']}"
        step = [f"{1e3 * found['step_seconds']:.1f}", f"{found['step_seconds'] / first:.3f}", f"{found['mfu']:.1%}"]
        kernels = [str(len(found["block"])), str(len(elementwise)), f"{mb[0]:.0f}, {mb[1]:.0f}", us["elementwise"], us["all"]]
        rows.append([name, *step, size, str(found["micro_batch_that_fits"]), *kernels])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    title = f"PREDICTED for one {card.name}, not measured: kernels and bytes are the compiler's, times a roofline"
    return "\n".join([title, *lines])
