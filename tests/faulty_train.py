"""train.py with a fault in it: `[torchrun ...] tests/faulty_train.py FAULT[=VALUE] overrides...`

The faults live here and not in the product: each replaces one function of the engine before training begins.
"""

import os
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

import engine.checkpoint_writer
import engine.evaluate
import engine.loss
import engine.trainer
from cli.entry import run_entry
from engine.config import Config
from engine.session import train


def poison(*samples: int) -> None:
    """Make the loss NaN wherever one of these samples of the training order is in the batch."""
    poisoned = []
    make, forward = engine.trainer.TrainingWindows.__init__, engine.loss.NextTokenLoss.forward

    def remember(self, *args):
        make(self, *args)
        poisoned.extend(self.read(sample, 1) for sample in samples)

    def forward_with_nan(self, windows):
        is_poisoned = any((windows == row).all(dim=1).any() for row in poisoned)
        return forward(self, windows) * (torch.nan if is_poisoned and torch.is_grad_enabled() else 1.0)

    engine.trainer.TrainingWindows.__init__ = remember
    engine.loss.NextTokenLoss.forward = forward_with_nan


def slow_save(seconds: float) -> None:
    """Let the disk take its time, after the files are written and before they are published."""
    sync = engine.checkpoint.sync_path

    def wait_and_sync(path):
        if path.name.startswith(".writing-"):
            print("saving", flush=True)
            time.sleep(seconds)
        sync(path)

    engine.checkpoint.sync_path = wait_and_sync


def failing_save() -> None:
    """Let every write fail, without the pauses between the tries."""

    def fail(*_):
        raise OSError(30, "Read-only file system")

    engine.checkpoint.sync_path = fail
    quick_retries()


def quick_retries() -> None:
    engine.checkpoint_writer.CheckpointWriter.RETRY_SECONDS = (0.01, 0.01, 0.01)


def signal_in_evaluation(number: int) -> None:
    """Send this process a signal in the middle of the validation after some training."""
    batches = engine.evaluate.ValidationSet.batches
    calls = []

    def batches_with_signal(self, *args):
        for i, batch in enumerate(batches(self, *args)):
            calls.append(i)
            if i == 1 and calls.count(0) == 2:  # the second validation
                os.kill(os.getpid(), int(number))
                time.sleep(0.5)
            yield batch

    engine.evaluate.ValidationSet.batches = batches_with_signal


def signal_at(step: int, number: int) -> None:
    """Send this process a signal when that many steps are done: a kill at a known place, however busy the machine."""
    train_step = engine.trainer.Trainer.train_step

    def train_step_after_signal(self, *args):
        if self.state.step == step:
            os.kill(os.getpid(), number)
            time.sleep(0.5)
        return train_step(self, *args)

    engine.trainer.Trainer.train_step = train_step_after_signal


FAULTS = {
    "poison": lambda value: poison(*(int(v) for v in value.split(","))),
    "slow_save": lambda value: slow_save(float(value)),
    "failing_save": lambda _: failing_save(),
    "quick_retries": lambda _: quick_retries(),
    "signal_at": lambda value: signal_at(*(int(v) for v in value.split(","))),
    "signal_in_evaluation": lambda value: signal_in_evaluation(int(value)),
}


def main(config: Config) -> None:
    train(config)


if __name__ == "__main__":
    name, _, value = sys.argv.pop(1).partition("=")
    FAULTS[name](value)
    run_entry(main, Config, config_name="train", has_ranks=True)
