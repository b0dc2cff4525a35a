"""What sample.py can be told, and which of it cannot be. Free of torch."""

import math
from dataclasses import dataclass, field
from typing import Optional

from cli.arguments import PATH
from cli.composition import ConfigError


@dataclass
class SampleSettings:
    runs: list[str] = field(metadata=PATH | {"former": "compare"})
    checkpoint: Optional[int] = None
    prompt: Optional[str] = field(default=None, metadata={"may_be_empty": True})
    prompt_file: Optional[str] = field(default=None, metadata=PATH)
    num_samples: int = 1
    max_new_tokens: int = 200
    temperature: float = 0.8
    top_k: Optional[int] = None
    top_p: Optional[float] = None
    min_p: Optional[float] = None
    repetition_penalty: float = 1.0
    stop: Optional[list[str]] = field(default=None, metadata={"is_one_text": True})
    seed: int = 1337
    batch_size: int = 16
    json: bool = False
    device: str = "auto"


def check(settings: SampleSettings) -> None:
    """Raise ConfigError for a value that cannot be."""
    for name in ("num_samples", "max_new_tokens", "top_k", "batch_size"):
        if getattr(settings, name) is not None and getattr(settings, name) < 1:
            raise ConfigError(f"{name}={getattr(settings, name)}: must be positive")
    if not 0 <= settings.temperature < math.inf:
        raise ConfigError(f"temperature={settings.temperature}: must be 0 or a positive number")
    if settings.top_p is not None and not 0 < settings.top_p <= 1:
        raise ConfigError(f"top_p={settings.top_p}: must be above 0 and at most 1")
    if settings.min_p is not None and not 0 <= settings.min_p <= 1:
        raise ConfigError(f"min_p={settings.min_p}: must be from 0 to 1")
    if not 0 < settings.repetition_penalty < math.inf:
        raise ConfigError(f"repetition_penalty={settings.repetition_penalty}: must be above 0")
    if settings.stop is not None and not all(settings.stop):
        raise ConfigError("stop: an empty text would end every sample before it begins")
    if settings.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={settings.device}: must be auto, cpu or cuda")
    if settings.prompt is not None and settings.prompt_file is not None:
        raise ConfigError("prompt and prompt_file are both given; one of them says where the prompt is")
    twice = [run for run in settings.runs if settings.runs.count(run) > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is given twice; a comparison needs different runs")
