"""Ranks: who am I, who else is there, and agreeing with them. Single process when not under torchrun."""

import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cli.composition import ConfigError, first_line
from cli.launcher import read_launch


@dataclass(frozen=True)
class Ranks:
    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, is_so: bool) -> bool:
        """Return, on every rank, whether it is so on any."""
        if self.world_size == 1:
            return is_so
        return self.all_reduce_sum(torch.tensor(float(is_so), device=self.device)).item() > 0

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of the ranks, on every rank."""
        values = [value]
        if self.world_size > 1:
            values = [None] * self.world_size
            dist.all_gather_object(values, value)
        return values

    def agree(self, check: Callable[[], Any]) -> Any:
        """Call check on every rank and return its result; if it raises on any rank, raise the first such error on all.

        Without this a rank that finds a fault alone (a file missing on one node) would leave the others waiting. So every
        rank must call agree, or on_main, equally often and in the same order.

        Raises:
            RankError: another rank's error with its exit code, unless this rank has an error with an exit code of its own.
        """
        result, error = None, None
        try:
            result = check()
        except Exception as raised:
            error = raised
        outcomes = self.gather(None if error is None else (str(error), getattr(error, "exit_code", 1)))
        failed = next((outcome for outcome in outcomes if outcome is not None), None)
        # A rank with an error of ours says its own, which is the same or nearer the cause; the others say the first one's.
        if self.world_size > 1 and failed and not hasattr(error, "exit_code"):
            raise RankError(*failed) from error
        if error:
            raise error
        return result

    def on_main(self, function: Callable[[], Any]) -> Any:
        """Call function on rank 0 and return its result on every rank; an error there is raised everywhere."""
        result = self.agree(function if self.is_main_process else lambda: None)
        if self.world_size > 1:
            box = [result]
            dist.broadcast_object_list(box, src=0, device=self.device if self.device.type == "cuda" else None)
            result = box[0]
        return result


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that is sharded over the ranks, which all must call this; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_as(tensor: Tensor, like: Tensor | None) -> Tensor:
    """Return this rank's part of a whole tensor, cut as `like` is, without a word to the others; all if that is not sharded."""
    if like is None or not hasattr(like, "placements"):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # takes seconds to import

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


class RankError(RuntimeError):
    """Another rank's error, with its exit code."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class NobodyCame(RuntimeError):
    """The ranks of a launch did not find each other."""

    exit_code = 2


@contextmanager
def start_ranks(device: str, timeout_seconds: float, dump_folder: Path | None = None) -> Iterator[Ranks]:
    """Join the other ranks of torchrun (NCCL on CUDA, gloo on CPU) for the time of the with-block.

    Args:
        device: "auto" (CUDA if there is any), "cpu" or "cuda".
        timeout_seconds: how long to wait in a collective for a rank that does not come.
        dump_folder: where NCCL's flight recorder then writes what each rank was doing, collectives-RANK; it must exist by then.

    Raises:
        ConfigError: device=cuda without a GPU, or more ranks than GPUs.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: this PyTorch finds no CUDA GPU; device=cpu would run")
    use_cuda = device != "cpu" and torch.cuda.is_available()
    rank, local_rank, world_size = read_launch()
    if use_cuda and local_rank >= torch.cuda.device_count():
        raise ConfigError(f"local rank {local_rank} has no GPU: there are {torch.cuda.device_count()}; lower --nproc_per_node")
    torch_device = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(torch_device)
    if use_cuda and dump_folder:
        os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")  # collectives that are remembered
        os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", f"{dump_folder.resolve()}/collectives-")
    if world_size > 1:
        dist.init_process_group(
            "nccl" if use_cuda else "gloo",
            store=wait_for_ranks(rank, world_size, timeout_seconds),
            rank=rank,
            world_size=world_size,
            device_id=torch_device if use_cuda else None,
            timeout=timedelta(seconds=timeout_seconds),
        )
    try:
        yield Ranks(rank, local_rank, world_size, torch_device)
    finally:
        if world_size > 1:
            dist.destroy_process_group()


def wait_for_ranks(rank: int, world_size: int, timeout_seconds: float) -> dist.Store:
    """Return what meet does; without torchrun, whose processes surely exist, say who is waited for.

    Raises:
        NobodyCame: the other ranks did not start in time.
    """
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    leftover = "if RANK and WORLD_SIZE are left over from another launcher, `unset RANK WORLD_SIZE`"
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        print(f"rank {rank} of {world_size} waits for the others at {place}; {leftover}", file=sys.stderr, flush=True)
    try:
        return meet(rank, world_size, timeout_seconds)
    except (RuntimeError, OSError, ValueError) as error:
        raise NobodyCame(
            f"rank {rank} of {world_size} waited {timeout_seconds:g} s in vain at {place} ({first_line(error)[:100]}); {leftover}"
        ) from error


def meet(rank: int, world_size: int, timeout_seconds: float) -> dist.Store:
    """Return a store that the ranks of this start share, and no rank of an earlier one has written to.

    torchrun's store outlives its workers: after a restart it still holds the addresses at which the dead ones listened, and
    a rank that reads one before its owner has written the new one is refused. So rank 0 opens a meeting under a name that
    was never used, and the others stay only if rank 0 has counted them in. TORCHELASTIC_RESTART_COUNT would not do as
    the name: it differs between nodes.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout_seconds)))
    me = uuid.uuid4().hex
    if rank == 0:
        store.set("meeting", me)
        present = [store.get(f"{me}/{other}").decode() for other in range(1, world_size)]
        store.set(f"{me}/complete", " ".join(present))
        return dist.PrefixStore(me, store)
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        meeting = store.get("meeting").decode()  # perhaps still that of the start before
        store.set(f"{meeting}/{rank}", me)
        if store.check([f"{meeting}/complete"]) and me in store.get(f"{meeting}/complete").decode():
            return dist.PrefixStore(meeting, store)
        time.sleep(0.02)
    raise RuntimeError(f"rank {rank} waited {timeout_seconds:g} s for rank 0 to start")
