"""What a run's configuration does not say: versions, code, machine, sizes, data."""

import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from engine.accounting import count_parameters, flops_per_token
from engine.attention import attention_kernel
from engine.config import Config
from engine.distributed import Ranks
from engine.run_data import RunData


def describe_environment(config: Config, ranks: Ranks, data: RunData, model: torch.nn.Module) -> dict[str, Any]:
    """Return versions, commit, topology, sizes and data: what the configuration does not say."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{package: version_of(package) for package in ("torch", "numpy", "tiktoken", "safetensors")},
        },
        "commit": current_commit(),
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "host": socket.gethostname(),
        "world_size": ranks.world_size,
        "attention": attention_kernel(config, ranks.device),
        "device": {"type": ranks.device.type, "name": name_device(ranks.device), "threads": torch.get_num_threads()},
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "parameters": count_parameters(model),
        "flops_per_token": flops_per_token(model),
        "tokens_per_step": config.tokens_per_step,
        "data": data.describe(),
        "evaluation": data.validation.describe(data.manifest.splits["val"].sha256),
    }


def name_device(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor as its maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(errors="replace"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache  # what runs stays what it is
def current_commit() -> str | None:
    """Return the commit of this code, with "+" if files differ from it; None where no repository has this code under control.

    A copy that lies inside another repository, untracked, is not that repository's code.
    """
    here = Path(__file__).resolve()

    def git(*words: str) -> str:
        command = ["git", *words]
        return subprocess.run(command, cwd=here.parent, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no", "..") else "")
    except (OSError, subprocess.SubprocessError):
        return None
