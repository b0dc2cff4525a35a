"""Who started this process: nobody, or a launcher (torchrun) that started others with it. Free of torch."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from cli.composition import ConfigError

LAUNCHER = os.getppid()  # asked before torch is imported: that takes seconds in which the launcher may die
NUMBERS = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}
PLACES = ("MASTER_ADDR", "MASTER_PORT")
GPUS_OF_A_NODE = 8  # for a plan without a launch: what most machines for training have


class Launch(NamedTuple):
    rank: int
    local_rank: int
    world_size: int


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Return which of how many processes this is.

    Raises:
        ConfigError: the variables belong to no launch, as those that another launcher left behind.
    """
    given = {name: environment[name] for name in NUMBERS if name in environment}
    numbers = {name: to_count(given.get(name, str(default))) for name, default in NUMBERS.items()}
    launch = Launch(numbers["RANK"], numbers["LOCAL_RANK"], numbers["WORLD_SIZE"])
    if launch == Launch(0, 0, 1):
        return launch
    missing = [name for name in ("RANK", "WORLD_SIZE", *PLACES) if not environment.get(name)]
    is_sound = 0 <= launch.rank < launch.world_size and 0 <= launch.local_rank < launch.world_size
    if is_sound and not missing:
        return launch
    values = " ".join(f"{name}={value}" for name, value in given.items())
    without = f" without {', '.join(missing)}" if missing else ""
    raise ConfigError(
        f"{values}{without}: variables of a launcher that make no launch; if they are left over, `unset {' '.join(given)}`; "
        "several processes: torchrun --standalone --nproc_per_node=N ..."
    )


def to_count(text: str) -> int:
    """Return a whole number, -1 for what is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1


def planned_world_size() -> int:
    """Return WORLD_SIZE, which for a plan need not be part of a launch; raise ConfigError if it is no number of processes."""
    text = os.environ.get("WORLD_SIZE", "1")
    if to_count(text) < 1:
        raise ConfigError(f"WORLD_SIZE={text}: not a number of processes; `unset WORLD_SIZE`")
    return to_count(text)


def planned_ranks_per_node(world_size: int) -> int:
    """Return LOCAL_WORLD_SIZE, how many processes of the launch share this machine; 8 at most where nothing says so."""
    here = to_count(os.environ.get("LOCAL_WORLD_SIZE", ""))
    return here if here > 0 else min(world_size, GPUS_OF_A_NODE)


def is_silent() -> bool:
    """Return whether another process of this launch, rank 0, prints for this one as well."""
    try:
        return read_launch().rank > 0
    except ConfigError:
        return False


def forget_launch() -> None:
    """Drop the variables of a launch, for a program that is never one of several; its child processes may launch anew."""
    for name in list(os.environ):
        if name in NUMBERS or name in PLACES or name.startswith("TORCHELASTIC_"):
            del os.environ[name]
