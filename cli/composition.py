"""From composed settings to a checked dataclass; and what is wrong with them, in one line.

The lowest room of the command line: everything may import it. Free of torch.
"""

import copy
import difflib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from cli.hints import NUMBERS_OF_GROUPS, other_name

CONFIG_DIR = str(Path(__file__).resolve().parent.parent / "configs")


class ConfigError(ValueError):
    """A configuration that cannot run; the message says what is wrong and what would be right."""

    exit_code = 2


def compose_words(config_name: str, words: Iterable[str]) -> dict[str, Any]:
    """Return what Hydra composes from the words of a command line, for to_dataclass.

    The same choice of files is composed once in a process (a sweep has many points); what only sets a value is set afterwards.

    Raises:
        HydraException: as hydra.compose does.
    """
    words = list(words)
    values = [word for word in words if sets_a_value(word)]
    node = copy.deepcopy(compose_files(config_name, tuple(word for word in words if word not in values)))
    for override in map(read_word, values):
        if override.is_sweep_override() or not set_value(node, override.key_or_group.split("."), override.value()):
            return copy.deepcopy(compose_files(config_name, tuple(words)))  # Hydra knows how, or says why not
    return node


@cache
def compose_files(config_name: str, words: tuple[str, ...]) -> dict[str, Any]:
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        return OmegaConf.to_container(compose(config_name, list(words)))


@cache
def read_word(word: str) -> Override:
    return OverridesParser.create().parse_overrides([word])[0]


def sets_a_value(word: str) -> bool:
    """Return whether an override only sets a value, one that no choice of a file follows from."""
    key, _, value = word.partition("=")
    return bool(re.fullmatch(r"\w+(\.\w+)*", key)) and "$" not in value and not (Path(CONFIG_DIR) / key).is_dir()


def set_value(node: Any, keys: list[str], value: Any) -> bool:
    """Set the value of a dotted key that exists, and return whether that was all to be done."""
    for key in keys[:-1]:
        node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, dict) or keys[-1] not in node or isinstance(value, dict) or isinstance(node[keys[-1]], dict):
        return False
    node[keys[-1]] = value
    return True


def to_dataclass(raw: DictConfig | dict[str, Any], schema: type) -> Any:
    """Return raw as an instance of schema, a dataclass; raise ConfigError for unknown keys and wrong types.

    A path (a field with metadata["is_path"]) may begin with ~, the home folder; a whole number may be written as 1e5.
    """
    try:
        filled = copy.deepcopy(structured(schema))
        fill(filled, with_whole_numbers(raw, schema), schema)
        return at_home(OmegaConf.to_object(filled))
    except ConfigKeyError as error:
        raise ConfigError(unknown_key(str(error.full_key), schema)) from None
    except OmegaConfBaseException as error:
        raise ConfigError(explain_type(error, schema)) from None


@cache
def structured(schema: type) -> DictConfig:
    """Return a dataclass as OmegaConf has it, made once: to be merged with, which leaves it as it is."""
    return OmegaConf.structured(schema)


def fill(node: DictConfig, values: dict[str, Any], schema: type) -> None:
    """Set every value in a dataclass as OmegaConf has it, which checks them one by one; merging would do it in twice the time."""
    groups = {field.name: field.type for field in fields(schema) if isinstance(field.type, type) and is_dataclass(field.type)}
    for key, value in values.items():
        if key in groups and isinstance(value, dict):
            if OmegaConf.is_missing(node, key):
                node[key] = groups[key]
            fill(node[key], value, groups[key])
        else:
            node[key] = value


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


def with_whole_numbers(raw: Any, schema: type) -> dict:
    """Return raw as a dictionary in which the whole numbers that were written as 1e5 are integers, where schema asks for these."""
    node = OmegaConf.to_container(raw) if OmegaConf.is_config(raw) else dict(raw)  # interpolations stay, as text
    for field in fields(schema):
        value = node.get(field.name)
        if isinstance(field.type, type) and is_dataclass(field.type) and isinstance(value, dict):
            node[field.name] = with_whole_numbers(value, field.type)
        elif int in (field.type, *get_args(field.type)) and isinstance(value, float) and value.is_integer():
            node[field.name] = int(value)
    return node


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
    key = re.search(r"Could not override '([^']+)'", text)
    group = re.search(r"(?:In '[^']*': )?Could not (?:find|load) '?([^'\s]+)'?", text)
    options = re.search(r"Available options in '[^']*':\s*((?:\s*\S+\n?)+?)(?:\n\n|Config search|\Z)", text)
    if isinstance(error, MissingConfigException) and group and options:
        group_name, _, wanted = group[1].rpartition("/")
        names = options[1].split()
        return ConfigError(f"{group_name}={wanted}: no such choice{nearest(wanted, names)}; there are: {', '.join(names)}")
    unknown_group = re.search(r"Could not override '([^'@]+)'\.\s*\n?No match in the defaults list", text)
    if unknown_group:
        return ConfigError(unknown_key(unknown_group[1], schema, config_name, overrides))
    if isinstance(error, ConfigCompositionException) and key:
        cause = first_line(error.__cause__) if error.__cause__ else ""
        if "is not in struct" in text or "not in" in cause or not cause:
            return ConfigError(unknown_key(key[1], schema, config_name, overrides))
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


def unknown_key(key: str, schema: type, config_name: str = "", overrides: Iterable[str] = ()) -> str:
    """Return the complaint about a key that schema does not have; overrides restrict what is proposed to what they choose.

    A field with metadata["group"] holds what the chosen file of that group has: the files are asked, for the dataclasses of
    the models come with torch.
    """
    names = list(key_names(schema))
    groups = [field.name for field in fields(schema) if field.metadata.get("group")]
    known_elsewhere = other_name(key, names, groups)
    if known_elsewhere:
        return f"unknown key '{key}'{known_elsewhere}"
    for group in groups if config_name else ():
        chosen = chosen_groups(config_name, overrides)[group]
        is_below = key.startswith(f"{group}.")
        keys = keys_of_choices(config_name, group, [c for c in choices_of(group) if is_below or c == chosen])
        owners = [choice for choice in keys if key in keys[choice]]
        if owners:
            return f"unknown key '{key}' of {group}={chosen}; {group}={'|'.join(owners)} has it"
        names += keys.get(chosen, [])
    return f"unknown key '{key}'{nearest(key, names)}"


def keys_of_choices(config_name: str, group: str, choices: list[str]) -> dict[str, list[str]]:
    """Return the dotted keys below a group's name, for each of these choices of the group."""
    GlobalHydra.instance().clear()  # what is to be explained may have failed while a composition was open, and Hydra has but one
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        nodes = {choice: compose(config_name, [f"{group}={choice}"])[group] for choice in choices}
    return {choice: [f"{group}.{key}" for key in node] for choice, node in nodes.items()}


def choices_of(group: str) -> list[str]:
    return sorted(path.stem for path in (Path(CONFIG_DIR) / group).glob("*.yaml"))


def check_choices(arguments: Iterable[str]) -> None:
    """Raise ConfigError for a choice that a group does not have; Hydra has no words for numbers."""
    for argument in arguments:
        group, _, choice = argument.partition("=")
        choices = choices_of(group) if re.fullmatch(r"\w+", group) and group != "hydra" else []
        if choices and choice not in (*choices, "null") and re.fullmatch(r"[\w.+-]*", choice):
            number = NUMBERS_OF_GROUPS.get(group, "") if choice.isdecimal() else ""
            raise ConfigError(
                f"{argument}: no such choice{'' if number else nearest(choice, choices)}; there are: {', '.join(choices)}"
                + (f"; {number.format(value=choice)}" if number else "")
            )


def nearest(name: str, names: list[str]) -> str:
    match = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not match:  # the last part may be right and the path to it wrong
        match = [n for n in names if n.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    return f": did you mean '{match[0]}'?" if match else ""


def nearest_divisor(number: int, wanted: int) -> int:
    """Return the divisor of number nearest to wanted."""
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - wanted))


def key_names(schema: type, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a dataclass."""
    for field in fields(schema):
        yield prefix + field.name
        for inner in (field.type, *get_args(field.type)):
            if isinstance(inner, type) and is_dataclass(inner):
                yield from key_names(inner, f"{prefix}{field.name}.")


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
