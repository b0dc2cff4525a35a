"""Is every point of a sweep a run that could start? Asked before the first one does."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from cli.composition import ConfigError, compose_words, explain_composition, first_line, to_dataclass
from corpus.manifest import MANIFEST_NAME, read_manifest
from engine.checks import check_batch, check_config
from engine.config import Config, difference, flatten, is_neutral
from engine.config_file import load_config
from engine.run_data import open_data
from lab.sweeps.plan import Point
from runfolder.status import read_json, read_status


def compose_points(points: Iterable[Point], world_size: int) -> dict[str, Config]:
    """Return the configuration of each point by name, composed as train.py would.

    Raises:
        ConfigError: a point's configuration cannot run; the message begins with its name.
    """
    configs: dict[str, Config] = {}
    for point in points:
        try:
            config = to_dataclass(compose_words("train", point.overrides), Config)
            check_config(config)
            check_batch(config, world_size)
        except HydraException as error:
            raise ConfigError(f"{point.name}: {explain_composition(error, Config, 'train', point.overrides)}") from None
        except (ConfigError, OmegaConfBaseException) as error:
            raise ConfigError(f"{point.name}: {first_line(error)}") from None
        if changes := list_differences_from_trunk(point, config, configs):
            raise ConfigError(f"{point.name}: cannot branch off {point.trunk}: {'; '.join(changes)}")
        configs[point.name] = config
    return configs


def list_differences_from_trunk(point: Point, config: Config, configs: dict[str, Config]) -> list[str]:
    """Return in what a branch differs from its trunk beside its length, as where a rate follows from the number of steps."""
    trunk = configs.get(point.trunk or "")
    return difference(replace(trunk, max_steps=config.max_steps), config) if trunk else []


def check_data(configs: Iterable[Config]) -> None:
    """Open the token files that the points need; raise DataError if they cannot feed them."""
    seen = set()
    for config in configs:
        key = (str(config.data), config.model["sequence_length"], config.model["vocab_size"], config.eval_windows)
        if key not in seen:
            open_data(config)
            seen.add(key)


def finished_state(point: Point, config: Config) -> str | None:
    """Return done or diverged if a point's run folder holds its result already, else None.

    Raises:
        ConfigError: the folder belongs to a run with another configuration or other data.
    """
    if not (point.run_dir / "config.yaml").exists():
        return None
    changes = changed_keys(load_config(point.run_dir / "config.yaml"), config, point)
    data = read_json(point.run_dir / "environment.json").get("data")
    digest = data.get("digest") if isinstance(data, dict) else None
    if digest and (Path(config.data.dir) / MANIFEST_NAME).exists():
        now = read_manifest(Path(config.data.dir)).data_digest
        changes += [f"the data's digest: {digest:.12} -> {now:.12}"] if now != digest else []
    if changes:
        raise ConfigError(
            f"{point.run_dir} was made with another configuration ({'; '.join(changes)}); give the sweep "
            "another name, or move the folder away"
        )
    state = read_status(point.run_dir).get("state")
    return state if state in ("done", "diverged") else None  # a learning rate that diverges is a result


def changed_keys(recorded: Config, wanted: Config, point: Point) -> list[str]:
    """List the keys, with both values, in which a run folder differs from a point.

    A key that did not exist when the folder was made counts only where the point sets it.
    """
    old, new = flatten(asdict(recorded)), flatten(asdict(wanted))
    named = {key_of(override) for override in point.overrides}
    return [
        f"{key}: {old.get(key)} -> {new[key]}"
        for key in sorted(new)
        if not is_neutral(key) and old.get(key) != new[key] and (key in old or key in named)
    ]


def key_of(override: str) -> str:
    return override.split("=")[0].lstrip("+")
