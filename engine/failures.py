"""What PyTorch cannot do on this machine, in words that say which setting would run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cli.composition import first_line, nearest_divisor
from engine.config import Config

NO_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory", "not enough memory")
NO_COMPILER = {  # what PyTorch says, what is missing
    "InvalidCxxCompiler": "no C++ compiler",
    "Python.h": "no headers of Python (Python.h)",
    "Cannot find a working triton": "no working Triton",
    "Failed to find C compiler": "no C compiler",
}


class CannotRun(RuntimeError):
    """The machine cannot run this configuration; the message names settings that it may."""

    exit_code = 2


@contextmanager
def in_words(config: Config, world_size: int) -> Iterator[None]:
    """Raise CannotRun in place of PyTorch's error if memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise CannotRun(f"out of memory ({first_line(error)[:120]}); {cheaper(config, world_size)}") from error


@contextmanager
def compiling() -> Iterator[None]:
    """Raise CannotRun in place of an error of torch.compile."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) or hasattr(error, "exit_code"):
            raise
        reason = next((words for sign, words in NO_COMPILER.items() if sign in str(error)), first_line(error)[:200])
        raise CannotRun(f"compile=true: {reason}; compile=false runs") from error


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(sign in str(error) for sign in NO_MEMORY)


def cheaper(config: Config, world_size: int) -> str:
    """Return the settings that take less memory, those that cost the least speed first."""
    settings = []
    if config.micro_batch_size > 1:
        per_rank = config.global_batch_size // world_size
        settings.append(f"micro_batch_size={nearest_divisor(per_rank, config.micro_batch_size // 2)}")
    if config.recompute_layers < config.model["n_layer"]:
        settings.append(f"recompute_layers={config.model['n_layer']}")
    if world_size > 1 and config.parallel == "ddp":
        settings.append("parallel=fsdp")
    return f"try {', '.join(settings) or 'a smaller model'}; dry_run=true estimates the memory"
