"""From a command line to a checked configuration and from an exception to an exit code, for every entry script.

Free of torch, so that a misspelt key is reported at once.
"""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from cli.composition import CONFIG_DIR, ConfigError, check_choices, compose_words, explain_composition, first_line, to_dataclass
from cli.help import print_help
from cli.launcher import forget_launch, is_silent
from cli.surroundings import prepare_surroundings

# Hydra's own, `--hydra-help`; anything else with a dash is a setting that was meant to have none.
FLAGS = {
    "-h",
    "--help",
    "--hydra-help",
    "--version",
    "--cfg",
    "-c",
    "--resolve",
    "--package",
    "-p",
    "--run",
    "-r",
    "--shell-completion",
    "-sc",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--config-dir",
    "-cd",
    "--experimental-rerun",
    "--info",
    "-i",
}
SAVED = 75  # exit code of a program that was asked to stop and can go on: no error
SLOWEST_START = 5.0  # seconds by which one rank may come to an error later than another


def run_entry(
    function: Callable[[Any], None],
    schema: type,
    config_name: str,
    literal: tuple[str, ...] = (),
    has_ranks: bool = False,
) -> None:
    """Compose configs/<config_name>.yaml with the command line, check it against schema, call function(config).

    Args:
        schema: the dataclass of the configuration; its module, like the program's, imports torch only when it is called.
        literal: keys, of paths above all, whose values are taken as they are written, without Hydra's quotes.
        has_ranks: whether torchrun may start the program; if not, the variables of a launcher mean nothing to it.

    Exceptions with an `exit_code` end the process with one line on stderr and that code: 2 configuration, 3 data,
    4 checkpoint, 5 diverged (design of the command line); SystemExit passes (75: preempted and saved).
    """
    # Hydra would print its own errors and exit with 1; so set, it lets them through to us.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    composed: list[Any] = []  # one; our function is called outside Hydra, which would print over its errors
    with ending_in_one_line(lambda error: explain_composition(error, schema, config_name, sys.argv[1:]), has_ranks):
        sys.argv[1:] = [quoted(argument, literal) for argument in sys.argv[1:]]
        check_flags(sys.argv[1:])
        check_choices(sys.argv[1:])
        if {"-h", "--help"} & set(sys.argv[1:]):
            return print_help(config_name, [a for a in sys.argv[1:] if not a.startswith("-")])
        if any(argument.startswith("-") for argument in sys.argv[1:]):  # Hydra's own flags: it shows something instead
            hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name=config_name)(composed.append)()
        else:  # hydra.main would compose all of it twice, for a mode that is always the same
            composed.append(compose_words(config_name, sys.argv[1:]))
        for raw in composed:
            function(to_dataclass(raw, schema))


@contextmanager
def ending_in_one_line(explain: Callable[[HydraException], Exception] | None = None, has_ranks: bool = False) -> Iterator[None]:
    """End the process with one line and the right code where what is inside fails in a way that is known.

    Args:
        explain: the words for what Hydra says about a configuration that cannot be composed.
        has_ranks: whether torchrun may start the program.
    """
    try:
        if not has_ranks:
            forget_launch()
        prepare_surroundings()
        yield
    except HydraException as error:
        if explain is None:
            raise
        fail(explain(error))
    except OmegaConfBaseException as error:
        fail(ConfigError(first_line(error)))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.filename is None:
            raise
        fail(ConfigError(f"{error.filename}: {error.strerror}"))
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        fail(error)


def quoted(argument: str, literal: tuple[str, ...]) -> str:
    """Return `key=value` with the value in Hydra's quotes if the key is one of literal.

    Left alone: null, a value that has quotes around it already, a list in brackets that is no existing path.
    """
    key, equals, value = argument.partition("=")
    if key.lstrip("+") not in literal or not equals or value in ("", "null") or value[0] == value[-1] and value[0] in "'\"":
        return argument
    if value.startswith("[") and value.endswith("]") and not os.path.exists(value):
        return argument
    # Backslashes count only before a quote, where Hydra halves them, or before `${`, where OmegaConf does.
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    value = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value)
    return f"{key}='{value}'"


def fail(error: Exception) -> None:
    """Print one line (on the first rank alone) and exit with the error's code."""
    code = getattr(error, "exit_code", 1)
    if is_silent():
        time.sleep(SLOWEST_START)  # rank 0 speaks for all, and torchrun ends it as soon as another rank has failed
    else:
        line = str(error) if code == SAVED else f"error: {error}"
        tell_launcher(line)
        print(line, file=sys.stderr, flush=True)
    sys.exit(code)


def tell_launcher(line: str) -> None:
    """Let torchrun end its own report, a page of traceback and table, with our line."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        message = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}
        with suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": message}, file)


def check_flags(arguments: list[str]) -> None:
    """Raise ConfigError for a setting written with dashes, as other programs have it."""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in ("-m", "--multirun"):
            raise ConfigError(
                f"{name}: one command is one run; `python scripts/sweep.py sweeps/tiny.yaml` starts many (docs/sweeps.md)"
            )
        if argument.startswith("-") and name not in FLAGS:
            meant = f"{name.lstrip('-').replace('-', '_')}={value if equals else 'VALUE'}"
            raise ConfigError(f"{argument}: settings have no dashes: {meant}; --help lists them")
