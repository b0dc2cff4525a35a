"""The command line of scripts/bench.py. Free of torch: what is wrong with it is said before torch is imported."""

from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from cli.composition import ConfigError, choices_of, compose_words, explain_composition, first_line, nearest, to_dataclass
from engine.checks import check_values
from engine.config import Config
from lab.ownership import refuse_foreign_files, refuse_foreign_profile

OWN_KEYS = {
    "arms": "gpt,ngpt",
    "rounds": "20",
    "nanogpt": "",
    "nvidia": "",
    "memory": "false",
    "profile": "",
    "json": "",
}
# An arm from elsewhere: the key that says where its file is, and whether that is NVIDIA's with nGPT in it.
REFERENCES = {"nanogpt": ("nanogpt", False), "nvidia_gpt": ("nvidia", False), "nvidia_ngpt": ("nvidia", True)}


def main(arguments: list[str]) -> None:
    """Time what the arguments say.

    Raises:
        ConfigError: an argument is wrong, or a file would be replaced that an earlier benchmark did not write.
    """
    own, overrides = split_arguments(arguments, OWN_KEYS)
    names = own["arms"].split(",")
    configs = {name: compose_arm(name, overrides) for name in names}
    rounds = int(own["rounds"]) if own["rounds"].isdigit() else 0
    if rounds < 1:
        raise ConfigError(f"rounds={own['rounds']}: must be a positive number")
    if own["memory"] not in ("true", "false"):
        raise ConfigError(f"memory={own['memory']}: must be true or false")
    for name in names:
        key = REFERENCES.get(name.partition(":")[0], ("", False))[0]
        if key and not own[key]:
            raise ConfigError(f"arms={name}: {key}=PATH/model.py must say where its model file is")
        if key and not Path(own[key]).is_file():
            raise ConfigError(f"{key}={own[key]}: no such file")
    if own["json"]:
        refuse_foreign_files([Path(own["json"])], "measured_rates", "json")
    for name in names if own["profile"] else ():
        refuse_foreign_profile(Path(own["profile"]) / stem_of(name))
    from lab.benchmark.session import time_arms

    time_arms(configs, own, rounds)


def split_arguments(arguments: list[str], own_keys: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return a script's own keys, with their defaults, and the overrides that are train.py's."""
    own, overrides = dict(own_keys), []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in own_keys:
            own[key] = value
        else:
            overrides.append(argument)
    return own, overrides


def compose_arm(name: str, overrides: list[str]) -> Config:
    """Return an arm's configuration; ConfigError if there is no such arm, or if no machine could run it."""
    model, _, mode = name.partition(":")
    known = [*choices_of("model"), *REFERENCES]
    if model not in known or mode not in ("", "eager", "compiled"):
        others = f"there are {', '.join(known)}, each also with :eager or :compiled"
        raise ConfigError(f"arms={name}: no such arm{nearest(model, known)}; {others}")
    chosen = "gpt" if model in REFERENCES else model
    try:
        config = to_dataclass(compose_words("train", [f"model={chosen}", *overrides]), Config)
    except HydraException as error:
        raise explain_composition(error, Config, "train", overrides) from None
    except OmegaConfBaseException as error:
        raise ConfigError(first_line(error)) from None
    config.max_steps = 1_000_000  # only the learning rate depends on it
    config.warmup_steps = min(config.warmup_steps, 1000)
    check_values(config)
    return config


def stem_of(arm: str) -> str:
    """Return the name of an arm's files below profile=."""
    return arm.replace(":", "-")
