"""Train GPT or nGPT: `python train.py model=ngpt size=0.5b context=1k`; the same command starts and continues.

Several GPUs: `torchrun --standalone --nproc_per_node=8 train.py ...`. Every key: configs/train.yaml.
"""

from typing import TYPE_CHECKING

from cli.entry import run_entry
from cli.launcher import read_launch

if TYPE_CHECKING:
    from engine.config import Config


def load_schema() -> type:
    """Import the configuration, and with it torch, which takes seconds: --help and the shell's completion go without."""
    from engine.config import Config

    return Config


def main(config: "Config") -> None:
    if not config.dry_run:
        read_launch()  # variables that make no launch are refused before torch is imported
    from engine.dry_run import print_plan
    from engine.session import train

    if config.dry_run:
        print_plan(config)
    else:
        train(config)


if __name__ == "__main__":  # the fish shell completes only files with the words @hydra.main in them
    run_entry(main, load_schema, config_name="train", literal=("out_dir", "run_name", "data.dir"), has_ranks=True)
