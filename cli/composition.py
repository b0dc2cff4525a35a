"""From composed settings to a checked dataclass; and what is wrong with them, in one line.

The lowest room of the command line: everything may import it. Free of torch.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

CONFIG_DIR = str(Path(__file__).resolve().parent.parent / "configs")


class ConfigError(ValueError):
    """A configuration that cannot run; the message says what is wrong and what would be right."""

    exit_code = 2


def to_dataclass(raw: DictConfig, schema: type) -> Any:
    """Return raw as an instance of schema, a dataclass; raise ConfigError for unknown keys and wrong types.

    A path (a field with metadata["is_path"]) may begin with ~, the home folder; a whole number may be written as 1e5.
    """
    try:
        return at_home(OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), with_whole_numbers(raw, schema))))
    except ConfigKeyError as error:
        raise ConfigError(unknown_key(str(error.full_key), schema)) from None
    except OmegaConfBaseException as error:
        raise ConfigError(explain_type(error, schema)) from None


def at_home(config: Any) -> Any:
    """Write out a ~ at the beginning of every path in a dataclass, in place; return the dataclass."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            at_home(value)
        elif field.metadata.get("is_path") and isinstance(value, str):
            setattr(config, field.name, os.path.expanduser(value))
        elif field.metadata.get("is_path") and isinstance(value, list):
            setattr(config, field.name, [os.path.expanduser(path) if isinstance(path, str) else path for path in value])
    return config


def with_whole_numbers(raw: Any, schema: type) -> Any:
    """Return a copy of raw in which the whole numbers that were written as 1e5 are integers, where schema asks for these."""
    copy = OmegaConf.create(raw)
    for field in fields(schema):
        if isinstance(field.type, type) and is_dataclass(field.type) and OmegaConf.is_dict(copy.get(field.name)):
            copy[field.name] = with_whole_numbers(copy[field.name], field.type)
        elif int in (field.type, *get_args(field.type)) and not OmegaConf.is_interpolation(copy, field.name):
            value = copy.get(field.name)
            if isinstance(value, float) and value.is_integer():
                copy[field.name] = int(value)
    return copy


def explain_type(error: OmegaConfBaseException, schema: type) -> str:
    """Say which key has a value of the wrong type, and what would be right."""
    text = first_line(error)
    no_bool = re.search(r"Value '(.*)' is not a valid bool", text)
    if no_bool:
        return f"{error.full_key}={no_bool[1]}: must be true or false{nearest(no_bool[1], ['true', 'false'])}"
    no_group = re.search(r"is not a subclass of (\w+)\. value: (.*)", text)
    name, value = no_group.groups() if no_group else (None, None)
    for field in fields(schema):
        if isinstance(field.type, type) and is_dataclass(field.type) and field.type.__name__ == name:
            keys = ", ".join(f"{field.name}.{inner.name}=" for inner in fields(field.type))
            return f"{field.name}={value}: a group of keys; write {keys}"
    return f"{error.full_key}: {text}" if error.full_key else text


def explain_composition(error: HydraException, schema: type, config_name: str, overrides: Iterable[str] = ()) -> ConfigError:
    """Say in one line what Hydra says in several, with the nearest name that exists."""
    text = str(error)
    chosen = chosen_groups(config_name, overrides)
    key = re.search(r"Could not override '([^']+)'", text)
    group = re.search(r"(?:In '[^']*': )?Could not (?:find|load) '?([^'\s]+)'?", text)
    options = re.search(r"Available options in '[^']*':\s*((?:\s*\S+\n?)+?)(?:\n\n|Config search|\Z)", text)
    if isinstance(error, MissingConfigException) and group and options:
        group_name, _, wanted = group[1].rpartition("/")
        names = options[1].split()
        return ConfigError(f"{group_name}={wanted}: no such choice{nearest(wanted, names)}; there are: {', '.join(names)}")
    unknown_group = re.search(r"Could not override '([^'@]+)'\.\s*\n?No match in the defaults list", text)
    if unknown_group:
        return ConfigError(unknown_key(unknown_group[1], schema, chosen))
    if isinstance(error, ConfigCompositionException) and key:
        cause = first_line(error.__cause__) if error.__cause__ else ""
        if "is not in struct" in text or "not in" in cause or not cause:
            return ConfigError(unknown_key(key[1], schema, chosen))
        return ConfigError(f"{key[1]}: {cause}")
    several = re.match(r"Ambiguous value for argument '(.*)'", text)
    if several:
        return ConfigError(
            f"{several[1]}: a comma separates several values, but one command is one run; "
            "`python scripts/sweep.py sweeps/tiny.yaml` starts many (docs/sweeps.md)"
        )
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"cannot read the override {error.override!r}: write key=value, quoting values with spaces or commas as 'key=\"...\"'"
        )
    return ConfigError(first_line(error))


def chosen_groups(config_name: str, overrides: Iterable[str]) -> dict[str, str]:
    """Return the choice of each configuration group: the one on the command line, else that of the defaults list."""
    defaults = OmegaConf.to_container(OmegaConf.load(Path(CONFIG_DIR) / f"{config_name}.yaml")).get("defaults", [])
    chosen = {group: str(choice) for entry in defaults if isinstance(entry, dict) for group, choice in entry.items()}
    given = dict(override.partition("=")[::2] for override in overrides)
    return chosen | {group: given[group] for group in chosen.keys() & given.keys()}


def unknown_key(key: str, schema: type, chosen: dict[str, str] | None = None) -> str:
    """Return the complaint about a key that schema does not have; chosen restricts what is proposed to these choices."""
    for field in fields(schema):
        owners = [name for name, child in held_schemas(field).items() if key in key_names(child, f"{field.name}.")]
        if owners and chosen:
            return f"unknown key '{key}' of {field.name}={chosen[field.name]}; {field.name}={'|'.join(owners)} has it"
    return f"unknown key '{key}'{nearest(key, list(key_names(schema, chosen=chosen)))}"


def nearest(name: str, names: list[str]) -> str:
    match = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not match:  # the last part may be right and the path to it wrong
        match = [n for n in names if n.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    return f": did you mean '{match[0]}'?" if match else ""


def nearest_divisor(number: int, wanted: int) -> int:
    """Return the divisor of number nearest to wanted."""
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - wanted))


def key_names(schema: type, prefix: str = "", chosen: dict[str, str] | None = None) -> Iterator[str]:
    """Yield every dotted key of a dataclass.

    chosen[field] names the dataclass that a field with several holds.
    """
    for field in fields(schema):
        yield prefix + field.name
        inner = [t for t in (field.type, *get_args(field.type)) if is_dataclass(t)]
        schemas = held_schemas(field)
        held = (chosen or {}).get(field.name)
        for child in (*inner, *([schemas[held]] if held in schemas else schemas.values())):
            yield from key_names(child, f"{prefix}{field.name}.")


def held_schemas(field: Field) -> dict[str, type]:
    """Return the dataclasses that a field may hold, by name: metadata["schemas"] is a function that returns them."""
    return field.metadata["schemas"]() if "schemas" in field.metadata else {}


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
