"""One model on several processes: whole on every one of them (ddp), or a part of it on each (fsdp).

Both give the same numbers. ddp keeps weights, gradients and Adam's moments, 16 bytes per parameter, on every rank. fsdp (FSDP2,
`fully_shard`) keeps the share 1/world_size of them and gathers each block's weights just before they are needed, in the
type they are stored in: what is computed with them is what ddp computes.

torch's modules for sharded tensors take seconds to import, so only what needs them does.
"""

from itertools import chain

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from engine.config import Config
from engine.distributed import Ranks, shard_as
from engine.loss import NextTokenLoss
from engine.memory import recompute
from engine.models import build_model
from engine.precision import use_float8


def parallelize(config: Config, ranks: Ranks, use_compile: bool) -> tuple[NextTokenLoss, nn.Module]:
    """Return the model with its loss, initialized from torch's global seed, and the module to call in training.

    The two differ under ddp, whose wrapper only training needs. One process alone needs neither ddp nor fsdp.
    """
    if config.parallel == "fsdp" and ranks.world_size > 1:
        loss_of = place_sharded(config, ranks, use_compile)
        return loss_of, loss_of
    # Initialized on the CPU: the same weights on every device.
    loss_of = NextTokenLoss(
        build_model(config.model, config.precision.matrices, init=vars(config.init_multiplier)).to(ranks.device)
    )
    prepare_blocks(loss_of.model.blocks, config, ranks.device)
    if use_compile:
        loss_of.compile(dynamic=False)
    if ranks.world_size == 1:
        return loss_of, loss_of
    device_ids = [ranks.local_rank] if ranks.device.type == "cuda" else None
    return loss_of, DistributedDataParallel(loss_of, device_ids=device_ids, gradient_as_bucket_view=True)


def place_sharded(config: Config, ranks: Ranks, use_compile: bool) -> NextTokenLoss:
    """Return the model with its loss, sharded over all ranks: each block is gathered by itself, all else together.

    Only rank 0 holds the whole model, once, in the CPU's memory: 4 bytes per parameter (7B: 28 GB).
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    whole = (
        build_model(config.model, config.precision.matrices, init=vars(config.init_multiplier)) if ranks.is_main_process else None
    )
    loss_of = NextTokenLoss(build_model(config.model, config.precision.matrices, device="meta"))
    prepare_blocks(loss_of.model.blocks, config, ranks.device)
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    for block in loss_of.model.blocks:
        if use_compile:  # block by block: the gathering in between cannot be compiled
            block.compile(dynamic=False)
        fully_shard(block, mesh=mesh)
    fully_shard(loss_of, mesh=mesh)  # not the model alone: unembedding() is called by the loss
    loss_of.to_empty(device=ranks.device)
    take_from_rank_0(loss_of.model, whole, ranks)
    return loss_of


def prepare_blocks(blocks: nn.ModuleList, config: Config, device: torch.device) -> None:
    """Change how the blocks compute, as the configuration asks, before they are compiled or sharded; names stay."""
    if config.precision.matmul == "float8":
        use_float8(blocks, device)
    recompute(blocks, config.recompute_layers)


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
