"""One model on several processes: whole on every one of them (ddp), or a part of it on each (fsdp, hsdp).

All give the same numbers. ddp keeps weights, gradients and Adam's moments, 16 bytes per parameter, on every rank. fsdp (FSDP2,
`fully_shard`) keeps the share 1/world_size of them and gathers each block's weights just before they are needed, in the
type they are stored in: what is computed with them is what ddp computes. hsdp shares the weights among the ranks of a node,
and the nodes hold copies: weights are gathered over the fast links inside a node, and only gradients go between nodes.

torch's modules for sharded tensors take seconds to import, so only what needs them does.
"""

import inspect
from itertools import chain

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cli.composition import ConfigError
from cli.launcher import planned_ranks_per_node
from engine.attention import choose_attention
from engine.config import Config
from engine.distributed import Ranks, shard_as
from engine.loss import NextTokenLoss
from engine.memory import recompute
from engine.models import build_model
from engine.precision import use_float8

BUCKET_MIB = 100  # of gradients that DDP reduces at once: large enough for the network's full rate, small beside the model
# The only buffer is the rotary table, the same on every rank. PyTorch 2.13 renamed the argument.
DDP_ARGUMENTS = inspect.signature(DistributedDataParallel).parameters
NO_BUFFER_SYNC = {"forward_sync_buffers" if "forward_sync_buffers" in DDP_ARGUMENTS else "broadcast_buffers": False}


def parallelize(config: Config, ranks: Ranks, use_compile: bool) -> tuple[NextTokenLoss, nn.Module]:
    """Return the model with its loss, initialized from torch's global seed, and the module to call in training.

    The two differ under ddp, whose wrapper only training needs. One process alone needs neither ddp nor fsdp.
    """
    choose_attention(config, ranks.device)
    if config.is_sharded and ranks.world_size > 1:
        loss_of = place_sharded(config, ranks, use_compile)
        return loss_of, loss_of
    # Initialized on the CPU: the same weights on every device.
    loss_of = NextTokenLoss(
        build_model(config.model, config.precision.matrices, init=vars(config.init_multiplier)).to(ranks.device)
    )
    prepare(loss_of, config, ranks.device, use_compile)
    if ranks.world_size == 1:
        return loss_of, loss_of
    return loss_of, replicated(loss_of, ranks)


def replicated(loss_of: NextTokenLoss, ranks: Ranks) -> DistributedDataParallel:
    """Return the module under DDP: gradients meet while the backward pass still runs."""
    device_ids = [ranks.local_rank] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(
        loss_of,
        device_ids=device_ids,
        gradient_as_bucket_view=True,
        bucket_cap_mb=BUCKET_MIB,
        **NO_BUFFER_SYNC,
    )


def place_sharded(config: Config, ranks: Ranks, use_compile: bool) -> NextTokenLoss:
    """Return the model with its loss, sharded over all ranks or a node's: each block is gathered by itself, the rest together.

    Only rank 0 holds the whole model, once, in the CPU's memory: 4 bytes per parameter (7B: 28 GB).
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    whole = (
        build_model(config.model, config.precision.matrices, init=vars(config.init_multiplier)) if ranks.is_main_process else None
    )
    loss_of = NextTokenLoss(build_model(config.model, config.precision.matrices, device="meta"))
    prepare(loss_of, config, ranks.device, use_compile)
    shape: tuple[int, ...] = (ranks.world_size,)
    if config.parallel == "hsdp":
        per_node = planned_ranks_per_node(ranks.world_size)
        if ranks.world_size % per_node:
            raise ConfigError(f"parallel=hsdp needs equally many ranks on every node: {ranks.world_size} ranks, {per_node} here")
        shape = (ranks.world_size // per_node, per_node)  # copies, and parts of each
    mesh = init_device_mesh(ranks.device.type, shape, mesh_dim_names=("copies", "parts")[-len(shape) :])
    for block in loss_of.model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(loss_of, mesh=mesh)  # not the model alone: unembedding() is called by the loss
    loss_of.to_empty(device=ranks.device)
    take_from_rank_0(loss_of.model, whole, ranks)
    return loss_of


def prepare(loss_of: NextTokenLoss, config: Config, device: torch.device, use_compile: bool) -> None:
    """Change how the model computes, as the configuration asks, before it is wrapped or sharded; names stay."""
    if config.precision.matmul == "float8":
        use_float8(loss_of.model.blocks, device)
    if use_compile:
        compile_parts(loss_of)
    recompute(loss_of.model.blocks, config.recompute_layers)


def compile_parts(loss_of: NextTokenLoss) -> None:
    """Compile each block, and the loss with the output matrix, in place.

    The blocks have the same code and shapes, so one graph for training and one for validation serve all of them: the first
    step comes after seconds, however many layers there are. The seams between blocks lie where DDP and FSDP act.
    """
    torch._dynamo.config.optimize_ddp = False  # it would cut the blocks' graphs again, at DDP's buckets
    for block in loss_of.model.blocks:
        block.forward = torch.compile(block.forward, dynamic=False)
    setattr(loss_of, "loss_of_hidden", torch.compile(loss_of.loss_of_hidden, dynamic=False))  # noqa: B010 - to mypy a method stays


@torch.no_grad()
def take_from_rank_0(model: nn.Module, whole: nn.Module | None, ranks: Ranks) -> None:
    """Fill a sharded model's parameters and buffers, one at a time, with those of the whole model that rank 0 has."""
    source = dict(chain(whole.named_parameters(), whole.named_buffers())) if whole else {}
    for name, target in chain(model.named_parameters(), model.named_buffers()):
        tensor = source[name].to(ranks.device) if whole else torch.empty(target.shape, dtype=target.dtype, device=ranks.device)
        dist.broadcast(tensor, src=0)
        target.copy_(shard_as(tensor, target))


def set_gradient_sync(model: nn.Module, wanted: bool) -> None:
    """Say whether the next backward pass lets the ranks' gradients meet, or adds to each rank's own.

    Under fsdp the latter keeps whole gradients on every rank, 4 bytes per parameter, until they meet.
    """
    if isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = wanted
    elif hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(wanted)


def release_gathered(loss_of: nn.Module) -> None:
    """Leave each rank with its own part again: after a forward pass without backward, fsdp keeps what it gathered last."""
    if hasattr(loss_of, "reshard"):
        loss_of.reshard()


def compile_now(training_model: nn.Module, loss_of: nn.Module, autocast: torch.autocast, config: Config) -> None:
    """Run both compiled graphs once on padding, so that compilation is not counted as training time."""
    shape = (config.micro_batch_size, config.model["sequence_length"] + 1)
    windows = torch.zeros(shape, dtype=torch.long, device=next(loss_of.parameters()).device)
    with autocast:
        loss = training_model(windows)
    loss.backward()
    training_model.zero_grad(set_to_none=True)
    with autocast, torch.no_grad():
        loss_of(windows)
    release_gathered(loss_of)
