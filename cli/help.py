"""What --help prints: the settings of a command line and what they mean. Free of torch, so that it comes at once."""

import json
import re
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cli.composition import CONFIG_DIR, choices_of, chosen_groups
from cli.launcher import is_silent

VALUE_WIDTH = 16
LINE_WIDTH = 100


def print_help(config_name: str, overrides: list[str]) -> None:
    """Print configs/help/<config_name>.txt with the values of this command line; without such a page, the YAML file's own words."""
    if is_silent():
        return
    page = Path(CONFIG_DIR) / "help" / f"{config_name}.txt"
    print(fill_in(page.read_text(), config_name, overrides) if page.is_file() else plain_help(config_name), end="")


def fill_in(page: str, config_name: str, overrides: list[str]) -> str:
    """Replace {key} by the key's value and {choices:group} by the names in configs/<group>/."""
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        config = compose(config_name, overrides, return_hydra_config=True)
    # An experiment may set a group's key to a value of its own: that is none of the choices.
    chosen = {
        group: config.get(group) if isinstance(config.get(group), str) else choice
        for group, choice in config.hydra.runtime.choices.items()
    }
    page = re.sub(
        r"^(.*)\{choices:(\w+)\}", lambda match: match[1] + list_choices(match[2], chosen, len(match[1])), page, flags=re.MULTILINE
    )
    return re.sub(r"\{([a-z_0-9.]+)\}", lambda match: show_value(OmegaConf.select(config, match[1])).ljust(VALUE_WIDTH), page)


def list_choices(group: str, chosen: Mapping[str, str], column: int) -> str:
    """Return the choices of a group, the chosen one with a star; further lines begin at the column of the first."""
    text = " | ".join(f"{name}*" if name == chosen.get(group) else name for name in choices_of(group))
    lines = textwrap.wrap(text, LINE_WIDTH - column, break_long_words=False, break_on_hyphens=False)
    return ("\n" + " " * column).join(lines)


def show_value(value: object) -> str:
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def plain_help(config_name: str) -> str:
    """Return the entry's docstring and the commented keys of configs/<config_name>.yaml."""
    text = (Path(CONFIG_DIR) / f"{config_name}.yaml").read_text()
    keys = text[text.index("defaults:") :].partition("\n\n")[2].strip("\n")
    chosen = chosen_groups(config_name, [])
    groups = [
        f"  {group}: {list_choices(group, chosen, len(group) + 4)}"
        for group in chosen
        if group != "hydra" and (Path(CONFIG_DIR) / group).is_dir()
    ]
    parts = [
        (sys.modules["__main__"].__doc__ or "").strip(),
        *(["Groups (GROUP=CHOICE):\n" + "\n".join(groups)] if groups else []),
        "Keys (KEY=VALUE; ??? has to be given; null: not set):\n" + "\n".join(f"  {line}".rstrip() for line in keys.split("\n")),
    ]
    return "\n\n".join(parts) + "\n"
