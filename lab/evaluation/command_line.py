"""What the evaluation scripts share: keys taken as they are written, and the checks of common keys."""

import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from cli.composition import ConfigError
from cli.entry import run_entry

TIMEOUT_SECONDS = 3600.0  # in a collective: ranks may wait while one of them downloads or tokenizes
PRECISIONS = {"bf16": "bfloat16", "fp32": "float32"}


# Taken as they are written: Hydra would read commas and globs in them, and take data= and precision= for a choice of
# configs/data/ and configs/precision/.
LITERAL = ("data", "precision", "runs", "tasks")


def run_script(main: Callable[[Any], None], schema: type, config_name: str) -> None:
    """Compose the configuration as cli.entry.run_entry does, and call main with it."""
    keys = {field.name for field in fields(schema)} & set(LITERAL)
    given: dict[str, str | None] = {}
    rest = []
    for argument in sys.argv[1:]:
        key, equals, value = argument.partition("=")
        if equals and key in keys:
            given[key] = None if value == "null" else value
        else:
            rest.append(argument)
    sys.argv[1:] = rest
    run_entry(lambda config: main(replace(config, **given)), schema, config_name, has_ranks=True)


def split_list(key: str, value: str | None) -> list[str]:
    """Return the parts of a comma-separated value; raise ConfigError if there are none, or one stands twice."""
    parts = [part.strip() for part in (value or "").split(",") if part.strip()]
    if not parts:
        raise ConfigError(f"{key}: nothing given; write {key}=A or {key}=A,B")
    if len(set(parts)) < len(parts):
        raise ConfigError(f"{key}={value}: one of them stands there twice")
    return parts


def check_common(config: Any, *positive: str) -> None:
    """Raise ConfigError for a device or precision that does not exist, and for numbers that must be positive."""
    if config.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={config.device}: must be auto, cpu or cuda")
    if config.precision not in (None, *PRECISIONS):
        raise ConfigError(f"precision={config.precision}: must be {', '.join(PRECISIONS)}, or null for that of training")
    for name in positive:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: must be positive")


def make_folder(path: str) -> Path:
    """Make the folder that results go to; raise ConfigError if that cannot be."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out={path}: {error.strerror}") from None
    return Path(path)
