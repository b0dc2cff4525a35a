"""One model on several processes: whole on every one of them (ddp), or a part of it on each (fsdp, hsdp).

All give the same numbers. ddp keeps weights, gradients and Adam's moments, 16 bytes per parameter, on every rank. fsdp (FSDP2,
`fully_shard`) keeps the share 1/world_size of them and gathers each block's weights just before they are needed, in the
type they are stored in: what is computed with them is what ddp computes. hsdp shares the weights among the ranks of a node,
and the nodes hold copies: weights are gathered over the fast links inside a node, and only gradients go between nodes.

torch's modules for sharded tensors take seconds to import, so only what needs them does.
"""

import inspect
import os
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
        model_with_loss = place_sharded(config, ranks, use_compile)
        return model_with_loss, model_with_loss
    # Initialized on the CPU: the same weights on every device.
    model_with_loss = NextTokenLoss(
        build_model(config.model, config.precision.matrices, init=vars(config.init_multiplier)).to(ranks.device)
    )
    prepare(model_with_loss, config, ranks.device, use_compile)
    if use_compile and ranks.device.type != "cpu":
        compile_renormalization(model_with_loss.model)
    if ranks.world_size == 1:
        return model_with_loss, model_with_loss
    return model_with_loss, replicated(model_with_loss, ranks)


def replicated(model_with_loss: NextTokenLoss, ranks: Ranks) -> DistributedDataParallel:
    """Return the module under DDP: gradients meet while the backward pass still runs."""
    device_ids = [ranks.local_rank] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(
        model_with_loss,
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
    model_with_loss = NextTokenLoss(build_model(config.model, config.precision.matrices, device="meta"))
    prepare(model_with_loss, config, ranks.device, use_compile)
    shape: tuple[int, ...] = (ranks.world_size,)
    if config.parallel == "hsdp":
        if "LOCAL_WORLD_SIZE" not in os.environ:
            raise ConfigError("parallel=hsdp: LOCAL_WORLD_SIZE, how many ranks a node has, is not set; torchrun sets it")
        per_node = planned_ranks_per_node(ranks.world_size)
        if ranks.world_size % per_node:
            raise ConfigError(f"parallel=hsdp needs equally many ranks on every node: {ranks.world_size} ranks, {per_node} here")
        shape = (ranks.world_size // per_node, per_node)  # copies, and parts of each
    mesh = init_device_mesh(ranks.device.type, shape, mesh_dim_names=("copies", "parts")[-len(shape) :])
    for block in model_with_loss.model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model_with_loss, mesh=mesh)  # not the model alone: unembedding() is called by the loss
    model_with_loss.to_empty(device=ranks.device)
    take_from_rank_0(model_with_loss.model, whole, ranks)
    return model_with_loss


def prepare(model_with_loss: NextTokenLoss, config: Config, device: torch.device, use_compile: bool) -> None:
    """Change how the model computes, as the configuration asks, before it is wrapped or sharded; names stay."""
    if config.precision.matmul == "float8":
        use_float8(model_with_loss.model.blocks, device)
    if use_compile:
        compile_parts(model_with_loss)
    recompute(model_with_loss.model.blocks, config.recompute_layers)


def compile_parts(model_with_loss: NextTokenLoss) -> None:
    """Compile each block, and the loss with the output matrix, in place.

    The blocks have the same code and shapes, so one graph for training and one for validation serve all of them: the first
    step comes after seconds, however many layers there are. The seams between blocks lie where DDP and FSDP act.
    """
    torch._dynamo.config.optimize_ddp = False  # it would cut the blocks' graphs again, at DDP's buckets
    for block in model_with_loss.model.blocks:
        block.forward = torch.compile(block.forward, dynamic=False)
    setattr(model_with_loss, "loss_of_hidden", torch.compile(model_with_loss.loss_of_hidden, dynamic=False))  # noqa: B010 - to mypy a method stays


def compile_renormalization(model: nn.Module) -> None:
    """Compile what brings the weights back after a step, in place: one graph serves every block, another the outer matrices.

    On a GPU that reads most matrices once instead of twice, in a third of the kernels. A CPU gains nothing worth a compilation;
    a sharded matrix stays with operators that know of its shards. `deterministic` keeps the compiler from choosing by a timing in
    what order a kernel adds: under DDP each rank normalizes its own copy, and the copies must stay equal.
    """
    if hasattr(model, "normalize_"):
        compiled = torch.compile(model.normalize_, dynamic=False, options={"deterministic": True})
        setattr(model, "normalize_", compiled)  # noqa: B010


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


def release_gathered(model_with_loss: nn.Module) -> None:
    """Leave each rank with its own part again: after a forward pass without backward, fsdp keeps what it gathered last."""
    if hasattr(model_with_loss, "reshard"):
        model_with_loss.reshard()


def compile_now(training_model: nn.Module, model_with_loss: nn.Module, autocast: torch.autocast, config: Config) -> None:
    """Run all that may be compiled once, on padding and on copies, so that compilation is not counted as training time."""
    shape = (config.micro_batch_size, config.model["sequence_length"] + 1)
    windows = torch.zeros(shape, dtype=torch.long, device=next(model_with_loss.parameters()).device)
    with autocast:
        loss = training_model(windows)
    loss.backward()
    training_model.zero_grad(set_to_none=True)
    with autocast, torch.no_grad():
        model_with_loss(windows)
    release_gathered(model_with_loss)
    model = model_with_loss.model
    for matrices in model.normalized_matrices()[:2]:  # copies of them, since rounding may move even what is of unit norm
        model.normalize_([(nn.Parameter(weight.detach().clone()), dim) for weight, dim in matrices])
