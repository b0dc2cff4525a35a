"""A run's configuration in its folder: written resolved, read without trust."""

from dataclasses import MISSING, asdict, fields
from pathlib import Path

from omegaconf import OmegaConf

from cli.composition import ConfigError, first_line, to_dataclass
from engine.checks import check_config
from engine.config import RETIRED, Config
from runfolder.files import write_atomically
from runfolder.plain_yaml import load_plain_yaml


def save_config(config: Config, path: Path) -> None:
    write_atomically(path, OmegaConf.to_yaml(OmegaConf.create(asdict(config))))


def load_config(path: Path) -> Config:
    """Read a run's resolved configuration; raise ConfigError if it is missing or not one."""
    try:
        if not path.is_file():  # a named pipe would be waited for
            raise OSError("no such file")
        node = load_plain_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a run's configuration ({first_line(error)})") from None
    if not isinstance(node, dict) or "${" in str(node):  # an interpolation could read the environment
        raise ConfigError(f"{path}: not a resolved configuration")
    has_default = {f.name for f in fields(Config) if f.default is not MISSING or f.default_factory is not MISSING}
    missing = [f.name for f in fields(Config) if f.name not in node and f.name not in has_default]
    if missing:
        raise ConfigError(f"{path}: the keys {', '.join(missing)} are missing")
    for key, value in RETIRED.items():
        if isinstance(node["model"], dict) and node["model"].get(key) is value:
            del node["model"][key]
    config = to_dataclass(node, Config)
    check_config(config)
    return config
