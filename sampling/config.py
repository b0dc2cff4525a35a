"""What sample.py can be told, and which of it cannot be."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import torch

from cli.composition import ConfigError

# Taken as they are written: Hydra would want commas, quotes and colons in them escaped.
LITERAL = ("prompt", "prompt_file", "compare")


@dataclass
class SampleConfig:
    run: Optional[str]
    compare: Optional[str]
    checkpoint: Optional[int]
    prompt: Optional[str]
    prompt_file: Optional[str]
    num_samples: int
    max_new_tokens: int
    temperature: float
    top_k: Optional[int]
    top_p: Optional[float]
    seed: int
    batch_size: int
    json: bool
    device: str


def check(config: SampleConfig) -> None:
    """Raise ConfigError for a value that cannot be."""
    for name in ("num_samples", "max_new_tokens", "top_k", "batch_size"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise ConfigError(f"{name}={getattr(config, name)}: must be positive")
    if not 0 <= config.temperature < math.inf:
        raise ConfigError(f"temperature={config.temperature}: must be 0 or a positive number")
    if config.top_p is not None and not 0 < config.top_p <= 1:
        raise ConfigError(f"top_p={config.top_p}: must be above 0 and at most 1")
    if config.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={config.device}: must be auto, cpu or cuda")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: this PyTorch finds no CUDA GPU; device=cpu would run")
    if config.prompt is not None and config.prompt_file is not None:
        raise ConfigError("prompt and prompt_file are both given; one of them says where the prompt is")


def folders(config: SampleConfig) -> list[Path]:
    """Return the run folders to sample: that of run, or those of compare; raise ConfigError unless it is one of the two."""
    if config.run is not None and config.compare is None:
        return [Path(config.run)]
    if config.compare is None or config.run is not None:
        raise ConfigError("give either run=runs/NAME or compare=runs/A,runs/B")
    parts = [part.strip() for part in config.compare.split(",") if part.strip()]
    if len(parts) < 2 or len(set(parts)) < len(parts):
        raise ConfigError(f"compare={config.compare}: must name two or more different runs, as compare=runs/A,runs/B")
    return [Path(part) for part in parts]
