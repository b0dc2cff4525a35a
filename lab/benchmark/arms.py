"""What is timed: steps of the real Trainer, on random tokens that lie in a real token file."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from corpus.token_file import TokenFile
from engine.accounting import count_parameters, flops_per_token
from engine.config import Config
from engine.distributed import Ranks
from engine.interruption import Interruption
from engine.memory import estimate_memory
from engine.run_data import RunData
from engine.trainer import Trainer

NEVER = Interruption()  # of a step that nobody interrupts: it is not entered, so no signal reaches it
PHASES = ("data", "forward", "backward", "clipping", "optimizer", "renormalization")


@dataclass
class Arm:
    """One contender: what it is called, how it takes a step, and what is known of it."""

    name: str
    step: Callable[[], object]
    flops_per_token: int
    parameters: int
    normalized_parameters: int  # of them, those that are brought to unit norm after each step
    compile_seconds: float | None
    held_bytes: Callable[[], int]  # of tensors, between steps
    memory_estimate_gib: float | None = None
    trainer: Trainer | None = None  # None for a model from elsewhere


def write_tokens(folder: Path, config: Config, count: int = 2_000_000) -> TokenFile:
    """Write a file of random tokens, far larger than a batch, so that reading it costs what it does in training."""
    count = max(count, 4 * config.global_batch_size * (config.model["sequence_length"] + 1))
    dtype = np.dtype("<u2" if config.model["vocab_size"] <= 1 << 16 else "<u4")
    path = folder / "tokens.bin"
    np.random.default_rng(0).integers(0, config.model["vocab_size"], count).astype(dtype).tofile(path)
    return TokenFile(path, dtype, count)


def trainer_arm(name: str, config: Config, ranks: Ranks, tokens: TokenFile, folder: Path) -> Arm:
    """Return one of our models in the real Trainer; its compilation happens here."""
    config = replace(config, out_dir=str(folder), run_name=name.replace(":", "-"))
    config.run_dir.mkdir(exist_ok=True)
    started = time.perf_counter()
    data = RunData(None, tokens, None)  # type: ignore[arg-type]  # a benchmark trains and does nothing else
    trainer = Trainer(config, ranks, data, checkpoint=None)
    seconds = time.perf_counter() - started
    compiles = config.compiles_on(ranks.device.type)
    return Arm(
        name=name,
        step=lambda: trainer.train_step(NEVER),
        flops_per_token=flops_per_token(trainer.raw_model),
        parameters=count_parameters(trainer.raw_model)["total"],
        normalized_parameters=sum(matrix.numel() for matrices in trainer.raw_model.normalized_matrices() for matrix, _ in matrices),
        compile_seconds=seconds if compiles else None,
        held_bytes=lambda: held_bytes(trainer.raw_model, trainer.optimizer),
        memory_estimate_gib=estimate_memory(config, trainer.raw_model, ranks.world_size, compiles)["total"],
        trainer=trainer,
    )


def held_bytes(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of a model and its optimizer's state, with the gradients that are there between steps (DDP's)."""
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
    tensors += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(tensor.nbytes for tensor in tensors)


def synchronize(device: torch.device) -> None:
    """Wait for the GPU; on a CPU there is nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def timed_phases(trainer: Trainer, device: torch.device) -> Iterator[dict[str, float]]:
    """Yield a dict into which every phase of the trainer's steps adds its seconds; the device is waited for at each end."""
    seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        synchronize(device)
        started = time.perf_counter()
        yield
        synchronize(device)
        seconds[name] += time.perf_counter() - started

    usual, trainer.phase = trainer.phase, phase
    try:
        yield seconds
    finally:
        trainer.phase = usual
