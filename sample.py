"""Write text with a trained model: `python sample.py run=runs/NAME prompt="Once upon a time"`."""

import io
import sys
from dataclasses import replace

import torch

from cli.entry import run_entry
from sampling.config import LITERAL, SampleConfig, check, folders
from sampling.drawing import open_run
from sampling.prompts import read_prompts
from sampling.show import show_samples


def main(config: SampleConfig) -> None:
    check(config)
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    for stream in (sys.stdin, sys.stdout):  # a prompt may be no UTF-8, a terminal may know no more than ASCII
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        # Everything is opened before the first token is drawn, so that a fault in the last run shows at once.
        paths, prompts = folders(config), read_prompts(config.prompt, config.prompt_file)
        show_samples([open_run(path, config.checkpoint, device) for path in paths], prompts, config)
    except KeyboardInterrupt:  # what has been written so far is what was wanted
        print(file=sys.stderr if config.json else sys.stdout)
        sys.exit(130)


if __name__ == "__main__":
    given = {}
    for argument in sys.argv[1:]:
        key, equals, value = argument.partition("=")
        if equals and key in LITERAL:
            given[key] = value
    sys.argv = [argument for argument in sys.argv if argument.partition("=")[0] not in given]
    run_entry(lambda config: main(replace(config, **given)), SampleConfig, config_name="sample")
