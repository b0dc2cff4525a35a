"""What a person sees of a run: what it will be, how far it is, how it ended."""

import os
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from engine.config import Config

ASSUMED_MFU = 0.4  # for the estimate before the first step: what well-fitting models reach on the large GPUs


class TimeLeft:
    """Estimate the rest of a job from its last records: steps at their recent pace, validations at theirs.

    Times are wall-clock seconds; `now` comes from time.monotonic().
    """

    RECENT = 20  # records

    def __init__(self, config: Config, eval_tokens: int, step: int, train_seconds: float, now: float):
        self.max_steps, self.interval = config.max_steps, config.eval_interval
        # Until one is measured: forward passes alone cost a third of training on as many tokens.
        self.eval_in_steps = eval_tokens / config.tokens_per_step / 3
        self.eval_seconds: deque[float] = deque(maxlen=3)
        self.restart(step, train_seconds, now)

    def restart(self, step: int, train_seconds: float, now: float) -> None:
        """Count steps from here: at the start, and after steps were taken back."""
        self.busy = 0.0  # in steps and in what comes between them (saving), but not in validations
        self.points = deque([(step, self.busy, train_seconds)], maxlen=self.RECENT + 1)
        self.has_warmed_up = False
        self.last = (train_seconds, now)

    def note(self, step: int, train_seconds: float, now: float, is_validation: bool) -> None:
        """Take in a record: step and train_seconds as in metrics.jsonl."""
        trained, passed = train_seconds - self.last[0], now - self.last[1]
        self.last = (train_seconds, now)
        if is_validation:
            self.eval_seconds.append(max(passed - trained, 0.0))
            self.busy += trained
            return
        self.busy += max(passed, trained)
        self.points.append((step, self.busy, train_seconds))
        if not self.has_warmed_up and len(self.points) == 3:
            self.points.popleft()  # the first steps of a job are slower
            self.has_warmed_up = True

    def seconds(self, step: int) -> float | None:
        """Return the seconds left after a training record of `step`, whose validation is still to come."""
        (first, busy_before, trained_before), (last, busy, trained) = self.points[0], self.points[-1]
        if last == first:
            return None
        per_step = (busy - busy_before) / (last - first)
        per_eval = (trained - trained_before) / (last - first) * self.eval_in_steps
        if self.eval_seconds:
            per_eval = sum(self.eval_seconds) / len(self.eval_seconds)
        evals = self.max_steps // self.interval - (step - 1) // self.interval + (self.max_steps % self.interval > 0)
        return per_step * (self.max_steps - step) + per_eval * evals


class Terminal:
    """One progress line on a terminal, a line a record where the output is a file or a pipe."""

    def __init__(self, config: Config, eval_tokens: int, step: int, train_seconds: float, keep: Callable[[str], None]):
        """Begin at a step; keep is called with every line, also with those that a bar stands for on the screen."""
        self.config, self.keep = config, keep
        self.last_val: float | None = None
        self.time_left = TimeLeft(config, eval_tokens, step, train_seconds, time.monotonic())
        self.bar = tqdm(
            total=config.max_steps,
            initial=step,
            disable=None,
            dynamic_ncols=True,
            leave=False,
            file=sys.stderr,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {desc}",
        )
        self.beside_bar = dict.fromkeys(("eta", "loss", "val", "speed", "mfu", "rate"), "")
        self.has_bar = not self.bar.disable
        self.has_lines = not (self.has_bar and sys.stdout.isatty())

    def show(self, record: dict[str, Any]) -> None:
        """Show a line of metrics.jsonl."""
        step, is_validation = record["step"], "val/loss" in record
        self.time_left.note(step, record["train_seconds"], time.monotonic(), is_validation)
        position = f"step {step:>7,}/{self.config.max_steps:,}"
        if is_validation:
            self.last_val = record["val/loss"]
            self.show_bar()
            self.print(f"{position} | val {self.last_val:.4f} nats/token, {record['val/bits_per_byte']:.4f} bits/byte")
            return
        left = self.time_left.seconds(step)
        eta = "" if left is None else f"eta {format_seconds(left)}"
        spike = f"SPIKE {record['train/spike']:.0f} deviations above the mean" if "train/spike" in record else ""
        mfu = "" if record.get("train/mfu") is None else f"mfu {record['train/mfu']:.1%}"
        parts = [
            position,
            f"loss {record['train/loss']:.4f}",
            f"lr {record['train/learning_rate']:.2e}",
            f"grad {record['train/grad_norm']:.2f}",
            f"{record['train/tokens_per_second']:,.0f} tok/s",
            mfu,
            spike,
            eta,
        ]
        line = " | ".join(filter(None, parts))
        if spike or self.has_lines:
            self.print(line)
        else:
            self.keep(line)
        self.beside_bar = {
            "eta": eta,
            "loss": f"loss {record['train/loss']:.3f}",
            "val": "",
            "speed": f"{short(record['train/tokens_per_second'])} tok/s",
            "mfu": "" if record.get("train/mfu") is None else f"mfu {record['train/mfu']:.0%}",
            "rate": f"lr {record['train/learning_rate']:.1e}",
        }
        self.bar.n = step
        self.show_bar()

    def show_bar(self) -> None:
        """Draw the bar with what is known beside it; on a narrow terminal the last is cut off first."""
        if not self.has_bar:
            return
        if self.last_val is not None:
            self.beside_bar["val"] = f"val {self.last_val:.3f}"
        self.bar.set_description_str(" ".join(filter(None, self.beside_bar.values())), refresh=False)
        self._write(self.bar.refresh)

    def advance(self, step: int) -> None:
        """Move the bar to a step that is done; what it says beside changes with the next record."""
        if self.has_bar:
            self._write(lambda: self.bar.update(step - self.bar.n))  # on the screen at most ten times a second

    def rewind(self, step: int, train_seconds: float) -> None:
        """Go on counting from a step before or after the last one shown."""
        self.last_val = None  # perhaps that of a step that is no longer part of the run
        self.time_left.restart(step, train_seconds, time.monotonic())
        self.bar.n = step

    def print(self, *lines: str) -> None:
        for line in lines:
            self.keep(line)
            if self.has_bar:
                self._write(lambda line=line: self.bar.write(line, file=sys.stdout))
            else:
                self._write(lambda line=line: print(line, flush=True))

    def close(self) -> None:
        self._write(self.bar.close)

    @staticmethod
    def _write(write: Any) -> None:
        try:
            write()
        except OSError:  # the terminal is gone, or the disk behind it full: no reason to end a run
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def describe_start(config: Config, plan: dict[str, Any], environment: dict[str, Any], step: int, peak: float | None) -> list[str]:
    """Return what a person wants to know before the first step, in six lines.

    Args:
        plan: of engine.accounting.describe_run.
        environment: the contents of environment.json.
        step: of the checkpoint that the run goes on from, 0 for a new run.
        peak: FLOP/s of one device, None where it is not known.
    """
    device, ranks, parameters = environment["device"], plan["world_size"], plan["parameters"]
    compiles = config.compiles_on(device["type"])
    steps_left = config.max_steps - step
    guess = ""
    if peak:
        seconds = steps_left * plan["tokens_per_step"] * plan["flops_per_token"] / (peak * ranks * ASSUMED_MFU)
        guess = f", about {format_seconds(seconds)} at {ASSUMED_MFU:.0%} of the peak"
    epochs = "" if plan["epochs"] is None else f" ({plan['epochs']:g} epochs)"
    wandb = [f"W&B {config.wandb.mode}"] if config.wandb.mode != "disabled" else []
    board = [f"tensorboard --logdir {shlex.quote(config.out_dir)}"] if config.tensorboard else []
    sharing = f", {config.parallel}" if ranks > 1 else ""
    return [
        f"model  {config.model['name']} {config.size}, context {config.model['sequence_length']:,}: "
        f"{short(parameters['total'])} parameters, "
        f"{short(parameters['non_embedding'])} without embeddings",
        f"on     {ranks} x {device['name'] or device['type']}{sharing}, {config.precision.name}, "
        f"{'compiled' if compiles else 'not compiled'}; "
        f"micro batch {config.micro_batch_size} x {plan['gradient_accumulation_steps']} per rank and step",
        f"data   {config.data.name} in {config.data.dir}: {short(plan['train_tokens'])} tokens, "
        f"{short(environment['evaluation']['tokens'])} in a validation",
        f"plan   {config.max_steps:,} steps of {plan['tokens_per_step']:,} tokens: {short(plan['tokens'])} tokens{epochs}, "
        f"{plan['flops']:.1e} FLOPs{guess}",
        f"writes {'; '.join([str(config.run_dir), *wandb, *board])}",
        f"begins {'at step 0' if step == 0 else f'where its checkpoint left it, at step {step:,}'}; the same command continues it",
    ]


def describe_end(config: Config, train_seconds: float, val_loss: float | None) -> list[str]:
    """Return how a finished run ended and what comes next."""
    val = "" if val_loss is None else f"val {val_loss:.4f} nats/token after "
    tokens = config.max_steps * config.tokens_per_step
    return [
        f"done: {val}{short(tokens)} tokens, {format_seconds(train_seconds)} of training; {config.run_dir}",
        f"next: python scripts/compare.py {shlex.quote(str(config.run_dir))} {shlex.quote(config.out_dir)}/OTHER",
    ]


def format_seconds(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def short(number: float) -> str:
    """Return a count in three digits: 468M, 9.04B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
