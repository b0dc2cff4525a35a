"""Train GPT or nGPT: `python train.py model=ngpt size=0.5b context=1k`; the same command starts and continues.

Several GPUs: `torchrun --standalone --nproc_per_node=8 train.py ...`. Every key: configs/train.yaml.
"""

from engine.config import Config
from engine.entry import run_entry
from engine.session import print_plan, train


def main(config: Config) -> None:
    if config.dry_run:
        print_plan(config)
    else:
        train(config)


if __name__ == "__main__":
    run_entry(main, Config, config_name="train")
