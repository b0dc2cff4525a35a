"""What a step holds in memory, reckoned before it runs; and holding less, by computing activations twice."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from cli.launcher import planned_ranks_per_node
from engine.config import Config
from engine.loss import tokens_in_a_chunk
from engine.models import build_model, parameters_by_kind
from engine.updates import moments_kept

GIB = 2**30
# Bytes per token, layer and channel that the compiler does not keep for the backward pass, although eager mode would:
# SiLU's value and casts, which it computes again. Counted on both models: 24 in fp32, 22 and 26 in bf16.
RECOMPUTED_WHEN_COMPILED = 24


def recompute(blocks: nn.ModuleList, count: int) -> None:
    """Let the first `count` blocks keep only their input, and compute the rest again in the backward pass.

    The block's own forward is replaced, so the names of its parameters stay (activation checkpointing, arXiv 1604.06174).
    A compiled forward stays compiled, and is the one that the other blocks use.
    """
    for block in blocks[:count]:  # nothing in a block is random, so no generator's state need be kept
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def saved_bytes(node: dict[str, Any], config: Config, n_layer: int) -> int:
    """Return what eager mode keeps from a forward pass for the backward pass, beside the parameters.

    Counted by running the model on tensors that have shapes and no contents, so it holds for any model.
    """
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    windows = (config.micro_batch_size, node["sequence_length"] + 1)
    with FakeTensorMode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.precision.matmul != "float32"):
        model = build_model(node | {"n_layer": n_layer}, config.precision.matrices)
        own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        tokens = torch.empty(windows[0], windows[1] - 1, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            hidden = model(tokens)  # noqa: F841 - the graph must live while its tensors are counted
            matrix = model.unembedding()  # noqa: F841
    return sum(size for storage, size in kept.items() if storage not in own)


def state_bytes(model: nn.Module, update: str) -> int:
    """Return the bytes of a model's weights and of what the optimizer keeps of them; a checkpoint holds as many."""
    return sum(
        parameter.nbytes * (1 + moments_kept(update, kind))
        for kind, parameters in parameters_by_kind(model).items()
        for parameter in parameters
    )


def estimate_memory(config: Config, model: nn.Module, world_size: int, use_compile: bool) -> dict[str, float]:
    """Estimate the peak memory of one rank in GiB, for choosing a micro batch; within 15% of what was measured.

    Args:
        model: of the configuration, on any device; only the parameters' sizes and types are read.
    """
    node = config.model
    weights = sum(parameter.nbytes for parameter in model.parameters())
    is_sharded = config.is_sharded and world_size > 1
    shards = world_size if is_sharded else 1
    if config.parallel == "hsdp":
        shards = min(world_size, planned_ranks_per_node(world_size))
    accumulates = config.global_batch_size > config.micro_batch_size * world_size
    # DDP's buckets stay; gradients that do not meet yet are whole, also where the weights are sharded.
    gradients = weights if accumulates or world_size > 1 and not is_sharded else 0
    tokens, C, V = config.micro_batch_size * node["sequence_length"], node["n_embd"], node["vocab_size"]
    product = 4 if config.precision.matmul == "float32" else 2

    one, two = (saved_bytes(node, config, n) for n in (1, 2))
    layer = two - one - (RECOMPUTED_WHEN_COMPILED * tokens * C if use_compile else 0)
    ends = one - (two - one)
    kept_layers, again = node["n_layer"] - config.recompute_layers, config.recompute_layers
    # A block that is computed again is whole for a while: after the kept ones have been through their backward pass, which
    # comes first, for the first blocks are the recomputed ones.
    activations = ends + max(kept_layers, 1 if again else 0) * layer + again * 4 * tokens * C

    # The backward pass begins at the logits, when all activations are there: beside them the logits of a chunk and, if they
    # are chunks, their gradient. Not compiled, there are fp32 copies of them for softmax and its gradient.
    chunk = tokens_in_a_chunk(tokens, V)
    is_chunked = chunk < tokens
    copies = (2 * product if is_chunked else product + 0.5) if use_compile else (16 if is_chunked else 12)
    logits = chunk * V * copies
    if is_chunked:
        logits += 4 * V * C  # the gradient of the output matrix, which waits for the backward pass
    gathered = 0 if not is_sharded else 2 * weights // node["n_layer"] + 2 * 4 * V * C
    state = {
        "weights_and_optimizer": state_bytes(model, config.update) / shards,
        # Without accumulation they grow while the activations shrink.
        "gradients": max(gradients, (weights - activations - logits) / shards, 0),
        "activations": activations + gathered,
        "logits": logits,
    }
    return {name: round(value / GIB, 3) for name, value in {**state, "total": sum(state.values())}.items()}
