"""What the evaluation programs share: the checks of common keys, and the names of precisions. Free of torch."""

from pathlib import Path
from typing import Any

from cli.composition import ConfigError
from corpus.manifest import SPLITS

TIMEOUT_SECONDS = 3600.0  # in a collective: ranks may wait while one of them downloads or tokenizes
PRECISIONS = {"bf16": "bfloat16", "fp32": "float32"}


def check_common(settings: Any, *positive: str) -> None:
    """Raise ConfigError for a device, precision or split that does not exist, and for numbers that must be positive."""
    if settings.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={settings.device}: must be auto, cpu or cuda")
    if settings.precision not in (None, *PRECISIONS):
        raise ConfigError(f"precision={settings.precision}: must be {', '.join(PRECISIONS)}, or null for that of training")
    if getattr(settings, "split", "val") not in SPLITS:
        raise ConfigError(f"split={settings.split}: must be {' or '.join(SPLITS)}")
    for name in positive:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: must be positive")


def check_different(key: str, values: list[str]) -> list[str]:
    """Return values; raise ConfigError if there are none, or one is listed twice, also as another spelling of one path."""
    if not values:
        raise ConfigError(f"{key}: nothing given; write {key}=A or {key}=A,B")
    places = [Path(value).resolve() for value in values]
    twice = [value for value, place in zip(values, places, strict=True) if places.count(place) > 1]
    if twice:
        raise ConfigError(f"{key}: {twice[0]} is listed twice")
    return values


def check_multiples(multiples: list[int]) -> None:
    """Raise ConfigError unless windows of every length fill a span of the largest without a rest."""
    if not multiples or multiples != sorted(set(multiples)) or multiples[0] < 1:
        raise ConfigError(f"multiples={multiples}: must be whole numbers from 1 on, in rising order")
    uneven = [m for m in multiples if multiples[-1] % m]
    if uneven:
        raise ConfigError(
            f"multiples={multiples}: {uneven[0]} does not divide {multiples[-1]}, so the lengths could not "
            "be compared on the same text"
        )


def make_folder(path: str) -> Path:
    """Make the folder that results go to; raise ConfigError if that cannot be."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out={path}: {error.strerror}") from None
    return Path(path)
