"""The one command-line dialect, for programs whose settings are a flat dataclass: run folders in any place, and key=value.

    python scripts/compare.py runs/A runs/B out=report

train.py and prepare_owt.py, whose settings are composed from files by Hydra, read the same dialect through cli.entry. Values
are taken as they are written: no quoting of spaces, commas, brackets or `=`. Free of torch, so that help and refusals come at once.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from omegaconf import OmegaConf

from cli.composition import ConfigError, nearest, to_dataclass
from cli.entry import ending_in_one_line

PATH = {"is_path": True}  # metadata of a field: a ~ at its beginning is the home folder
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")


@dataclass(frozen=True)
class Program:
    """A command line: its settings, what it does with them, and what --help prints.

    main: called with an instance of schema, returns the exit code (None: 0); it imports torch and the like itself.
    positional: the fields that are also given without their key, in this order; a list takes all that is left.
    page: what --help prints; None where `python -OO` has taken it away.
    has_ranks: whether torchrun may start the program; if not, the variables of a launcher mean nothing to it.
    """

    main: Callable[[Any], Any]
    schema: type
    positional: tuple[str, ...]
    page: str | None
    has_ranks: bool = False

    def run(self) -> None:
        """Do what the process's arguments ask for, and end the process."""
        arguments = sys.argv[1:]
        with ending_in_one_line(has_ranks=self.has_ranks):
            if {"-h", "--help"} & set(arguments):
                print((self.page or "python -OO keeps no help; start Python without it").strip())
                sys.exit(0)
            settings, hints = parse(self.schema, arguments, self.positional)
            code = self.main(settings)
            sys.stdout.flush()
            for hint in hints:  # only now: a refusal is one line
                print(f"note: {hint}", file=sys.stderr)
            sys.exit(code or 0)

    def parse(self, arguments: Sequence[str]) -> Any:
        """Return the settings that arguments ask for."""
        return parse(self.schema, arguments, self.positional)[0]


def parse(schema: type, arguments: Sequence[str], positional: tuple[str, ...] = ()) -> tuple[Any, list[str]]:
    """Return an instance of schema, and a hint for each old spelling that was used.

    Old spellings, for one release: `--key value`, `--key=value`, `--flag`; `run=A,B` for `runs=A,B`, and the name that a
    field has as metadata["former"].

    Raises:
        ConfigError: an unknown key, a value of the wrong type, a key given twice, a key without a default not given.
    """
    known = {field.name: field for field in fields(schema)}
    former = {field.metadata["former"]: field.name for field in known.values() if "former" in field.metadata}
    if "runs" in known:
        former["run"] = "runs"  # one run may go on being called so
    arguments, hints = without_dashes(arguments, known)
    given: dict[str, Any] = {}
    bare: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not NAME.fullmatch(key) or (key not in known and Path(argument).exists()):
            bare.append(argument)
            continue
        if key in former:
            key, old = former[key], key
            if len(split_list(value)) > 1:
                hints.append(f"{old}=A,B is now written A B (or {key}=A,B); the old spelling goes with the next release")
        if key not in known:
            raise ConfigError(f"unknown key '{key}'{nearest(key, list(known))} (--help lists the keys)")
        if key in given:
            raise ConfigError(f"{key}= is given twice" + (f"; several: {key}=A,B" if is_list(known[key]) else ""))
        if not value and not known[key].metadata.get("may_be_empty"):
            raise ConfigError(f"{key}= has no value")
        given[key] = None if value == "null" else list_from(value, known[key]) if is_list(known[key]) else value
    take_bare(bare, given, [known[name] for name in positional])
    absent = [field.name for field in known.values() if field.name not in given and is_required(field)]
    if absent:
        what = "no run folder is given, for example runs/NAME" if absent[0] in ("run", "runs") else f"{absent[0]}= is missing"
        raise ConfigError(f"{what} (--help shows the usage)")
    return to_dataclass(OmegaConf.create(escaped(given)), schema), hints


def without_dashes(arguments: Sequence[str], known: dict[str, Field]) -> tuple[list[str], list[str]]:
    """Return the arguments with `--key value`, `--key=value` and `--flag` written as key=value, and a hint for each."""
    rest, written, hints = list(arguments), [], []
    repeated: dict[str, list[str]] = {}
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        key = name.lstrip("-").replace("-", "_")
        if not argument.startswith("-"):
            written.append(argument)
            continue
        if key not in known or not name.startswith("--"):
            meant = f"{key}={value if equals else 'VALUE'}"
            raise ConfigError(f"{argument}: settings have no dashes: {meant}; --help lists them")
        if not equals:
            is_flag = bool in (known[key].type, *get_args(known[key].type))
            value = "true" if is_flag else rest.pop(0) if rest else ""
        hints.append(f"{name} is now written {key}={value}; the old spelling goes with the next release")
        if is_list(known[key]):
            repeated.setdefault(key, []).append(value)
        else:
            written.append(f"{key}={value}")
    return [*written, *(f"{key}={','.join(values)}" for key, values in repeated.items())], hints


def take_bare(bare: list[str], given: dict[str, Any], positional: list[Field]) -> None:
    """Put the arguments without a key into given, in the order of the positional fields."""
    for field in positional:
        if is_list(field):
            if bare:
                given[field.name] = [*(given.get(field.name) or []), *bare]
            bare = []
        elif bare and field.name not in given:
            given[field.name], *bare = bare
    if bare:
        example = f", for example {positional[0].name}={bare[0]}" if positional else ""
        raise ConfigError(f"{bare[0]!r}: write key=value{example} (--help lists the keys)")


def split_list(value: str) -> list[str]:
    """Return the parts of A,B or [A,B]; one part if there is a file or folder of that very name."""
    if Path(value).exists():
        return [value]
    inner = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    return [part.strip() for part in inner.split(",") if part.strip()]


def list_from(value: str, field: Field) -> list[Any]:
    """Return a value as a list: JSON where it is one, else parts between commas; metadata["is_one_text"]: no parts."""
    if value.startswith("[") and not Path(value).exists():
        with suppress(ValueError):
            return list(json.loads(value))
    return [value] if field.metadata.get("is_one_text") else split_list(value)


def escaped(value: Any) -> Any:
    """Return value so that OmegaConf reads texts as they are: `${` would begin an interpolation."""
    if isinstance(value, dict):
        return {key: escaped(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [escaped(entry) for entry in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def is_list(field: Field) -> bool:
    kinds = get_args(field.type) if get_origin(field.type) in (Union, UnionType) else (field.type,)
    return any(get_origin(kind) is list for kind in kinds)


def is_required(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING
