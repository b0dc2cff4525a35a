"""Train GPT or nGPT: `python train.py model=ngpt size=0.5b context=1k`; the same command starts and continues.

Several GPUs: `torchrun --standalone --nproc_per_node=8 train.py ...`. Every key: configs/train.yaml.
"""

from cli.entry import run_entry
from cli.launcher import read_launch
from cli.loading import loading
from engine.checks import check_values
from engine.config import Config


def main(config: Config) -> None:
    check_values(config)  # what is wrong is said before torch is imported, which takes seconds
    if not config.dry_run:
        read_launch()
    with loading():
        from engine.dry_run import print_plan
        from engine.session import train

    if config.dry_run:
        print_plan(config)
    else:
        train(config)


if __name__ == "__main__":  # the fish shell completes only files with the words @hydra.main in them
    run_entry(main, Config, config_name="train", literal=("out_dir", "run_name", "data.dir"), has_ranks=True)
