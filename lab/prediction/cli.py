"""The command line of scripts/predict_gpu.py. Free of torch, which may only be imported after a card was imagined."""

import importlib.util
import json
import sys
from pathlib import Path

from cli.composition import ConfigError, choices_of, nearest
from engine.config import Config
from lab.benchmark.cli import compose_arm, split_arguments
from lab.ownership import refuse_foreign_files
from lab.prediction.cards import CARDS
from runfolder.files import write_atomically

OWN_KEYS = {"card": "h100", "arms": "gpt,ngpt", "json": ""}


def main(arguments: list[str]) -> None:
    """Print the predicted table of what the arguments say.

    Raises:
        ConfigError: an argument is wrong, something is not installed, or a file would be replaced that is not a prediction.
    """
    own, configs = read_arguments(arguments)
    if own["json"]:
        refuse_foreign_files([Path(own["json"])], "predicted_for", "json")
    if importlib.util.find_spec("triton") is None:
        raise ConfigError("there is no Triton, with which torch compiles for a GPU: pip install -r requirements-predict.txt")
    from lab.prediction.imagined_card import imagine

    assert "torch" not in sys.modules, "what answers for the card must be there before torch is"
    imagine(CARDS[own["card"]])
    from lab.prediction.step import predict, table

    predictions = {name: predict(config, CARDS[own["card"]]) for name, config in configs.items()}
    print(table(predictions, CARDS[own["card"]]))
    if own["json"]:
        record = {"predicted_for": CARDS[own["card"]].name, "arms": predictions}
        write_atomically(own["json"], json.dumps(record, indent=2) + "\n")


def read_arguments(arguments: list[str]) -> tuple[dict[str, str], dict[str, Config]]:
    """Return this script's own keys, and by name the configurations of the arms."""
    own, overrides = split_arguments(arguments, OWN_KEYS)
    if own["card"] not in CARDS:
        raise ConfigError(f"card={own['card']}: no such card{nearest(own['card'], list(CARDS))}; there are {', '.join(CARDS)}")
    names, models = own["arms"].split(","), choices_of("model")
    for name in names:
        if name not in models:
            raise ConfigError(f"arms={name}: no such arm{nearest(name, models)}; there are {', '.join(models)}")
    configs = {name: compose_arm(name, overrides) for name in names}
    for name, config in configs.items():
        if config.precision.name != "bf16":
            raise ConfigError(f"precision={config.precision.name}: predicted for bf16 alone")
        if config.recompute_layers or config.update != "adamw":
            raise ConfigError(f"arms={name}: predicted for update=adamw without recompute_layers alone")
        if config.attention not in ("auto", "cudnn", "flash"):
            raise ConfigError(f"attention={config.attention}: predicted for cudnn, which is auto's choice, and flash alone")
    return own, configs
