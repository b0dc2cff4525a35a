"""The training loop. It does not know which model it trains."""

import gc
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import record_function

from engine.accounting import measure_speed
from engine.checkpoint import TrainerState, load_model, load_optimizer, load_trainer_state, take_snapshot
from engine.checkpoint_writer import CheckpointWriter
from engine.config import Config
from engine.data import BatchShape, TrainingWindows, micro_batches
from engine.distributed import Ranks, full_tensor
from engine.evaluate import evaluate
from engine.failures import compiling
from engine.interruption import Interruption, Preempted
from engine.metrics import MetricsLog
from engine.nonfinite import recover
from engine.optimization import build_optimizer, learning_rate_at
from engine.parallel import compile_now, parallelize, release_gathered, set_gradient_sync
from engine.precision import autocast
from engine.run_data import RunData
from engine.stability import check_norms, max_norm_deviation, note_loss, record_event, scale_means
from runfolder.layout import CHECKPOINTS
from runfolder.status import write_status


@dataclass(frozen=True)
class StepResult:
    """One step, done or, where a number is not finite, not done: the same on every rank but for micro_losses."""

    loss: float  # nats per token, of the global batch
    grad_norm: float  # before clipping
    learning_rate: float
    micro_losses: Tensor  # (micro steps,) of this rank, each summed over its tokens
    stop_requested: bool  # by a signal to any rank

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    def __str__(self) -> str:
        return f"loss {self.loss}, gradient norm {self.grad_norm}"


class Trainer:
    """One run: its model, its optimizer, its data, and how far it is."""

    def __init__(self, config: Config, ranks: Ranks, data: RunData, checkpoint: Path | None):
        self.config, self.ranks, self.data = config, ranks, data
        torch.manual_seed(config.seed)
        use_compile = config.compiles_on(ranks.device.type)
        # Both return the summed loss of a batch; they differ under ddp, whose wrapper only training needs.
        self.model_with_loss, self.training_model = parallelize(config, ranks, use_compile)
        self.raw_model = self.model_with_loss.model
        self.optimizer = build_optimizer(self.raw_model, config)
        self.state = TrainerState(step=0, train_seconds=0.0, wandb_id=None)
        if checkpoint:
            self.restore(checkpoint)
        self.windows = TrainingWindows(data.train, config.model["sequence_length"], config.seed)
        self.shape = BatchShape(config.global_batch_size, config.micro_batch_size, ranks.rank, ranks.world_size)
        self.batches = self.read_batches()
        self.writer = CheckpointWriter(config.run_dir / CHECKPOINTS, config.keep_checkpoints, config.keep_every, config.keep_steps)
        self.logged = (self.state.step, self.state.train_seconds)  # at the last record: speed is measured from there

        self.phase = record_function  # names the parts of a step in a profile; scripts/bench.py times them
        self.autocast = autocast(ranks.device, config.precision.matmul)
        if use_compile:
            with compiling():
                compile_now(self.training_model, self.model_with_loss, self.autocast, config)

    def run(self, log: MetricsLog, interruption: Interruption) -> None:
        """Train to max_steps. After each step: log, validate, save, whatever is due.

        Raises:
            Preempted: a signal asked for the end; everything is saved.
            Diverged: the numbers are not finite and on_nonfinite does not help, or a matrix left the sphere.
            CheckpointError: checkpoints could not be written.
        """
        is_made_up = self.state.evaluation_pending
        if self.state.step == 0 or is_made_up:
            self.validate(log, interruption)
        if is_made_up and not self.state.evaluation_pending and self.state.step == self.config.max_steps:
            self.save(log)  # no step will: without it every further start would validate again
        stopped = self.state.evaluation_pending
        while self.state.step < self.config.max_steps and not stopped:
            result = self.train_step(interruption)
            stopped = result.stop_requested
            if result.is_finite:
                log.advance(self.state.step)
                self.log_step(result, log)
            else:
                recover(self, result, log)
                if self.config.on_nonfinite == "rollback":
                    continue  # the step gone back to was validated and saved when it was done
            if self.is_due(self.config.eval_interval):
                self.validate(log, interruption)
                stopped = stopped or self.state.evaluation_pending
            if self.is_due(self.config.checkpoint_interval) or self.state.step in self.config.keep_steps or stopped:
                self.save(log)
        self.ranks.on_main(self.writer.wait)
        if stopped:
            done = f"saved at step {self.state.step}" if self.state.step else "before the first step"
            cause = interruption.received or "a signal to another rank"
            raise Preempted(f"stopped by {cause}, {done}; the same command continues")

    def is_due(self, interval: int) -> bool:
        return self.state.step % interval == 0 or self.state.step == self.config.max_steps

    def train_step(self, interruption: Interruption) -> StepResult:
        """Do one optimizer step; its update is left out if the loss or the gradient is not finite."""
        config, ranks, state = self.config, self.ranks, self.state
        started = time.perf_counter()
        learning_rate = learning_rate_at(state.step, config)
        self.optimizer.set_learning_rate(learning_rate)
        micro_losses = []
        for micro_step in range(self.shape.micro_steps):
            with self.phase("data"):
                windows = next(self.batches).to(ranks.device, non_blocking=True)
            # The ranks average their gradients in the last micro step alone.
            set_gradient_sync(self.training_model, micro_step == self.shape.micro_steps - 1)
            with self.phase("forward"), self.autocast:
                loss = self.training_model(windows)
            with self.phase("backward"):
                # So divided, the average of the ranks' gradients is that of the global batch's mean.
                (loss * (ranks.world_size / config.tokens_per_step)).backward()
            micro_losses.append(loss.detach().double())
        with self.phase("clipping"):
            grad_norm = torch.nn.utils.clip_grad_norm_(self.raw_model.parameters(), config.grad_clip or math.inf)
        losses = torch.stack(micro_losses)
        signalled = torch.tensor(float(interruption.received is not None), dtype=torch.float64, device=ranks.device)
        loss_sum, signals = ranks.all_reduce_sum(torch.stack((losses.sum(), signalled))).tolist()
        # From here on every rank has the same numbers, and so takes the same decisions.
        result = StepResult(
            loss_sum / config.tokens_per_step, full_tensor(grad_norm).item(), learning_rate, losses, stop_requested=signals > 0
        )
        if result.is_finite:
            with self.phase("optimizer"):
                self.optimizer.step()
            with self.phase("renormalization"):
                self.raw_model.post_optimizer_step()
            state.step += 1
        self.optimizer.zero_grad(set_to_none=True)
        state.train_seconds += time.perf_counter() - started
        return result

    def log_step(self, result: StepResult, log: MetricsLog) -> None:
        """Record a step if that is due, or if its loss is a spike."""
        spike = note_loss(self.state, result.loss)
        if spike is not None and self.ranks.is_main_process:
            details = {"loss": result.loss, "mean": self.state.loss_mean, "deviations": spike}
            record_event(self.config.run_dir, self.state.step, "spike", **details)
        if not self.is_due(self.config.log_interval) and spike is None:
            return
        values: dict[str, float | None] = {
            "train/loss": result.loss,
            "train/learning_rate": result.learning_rate,
            "train/grad_norm": result.grad_norm,
        }
        values |= {} if spike is None else {"train/spike": spike}
        steps, seconds = self.state.step - self.logged[0], self.state.train_seconds - self.logged[1]
        values |= measure_speed(steps / seconds, self.config, self.raw_model, self.ranks)
        log.log(self.state.step, self.state.train_seconds, values)
        self.logged = (self.state.step, self.state.train_seconds)

    def validate(self, log: MetricsLog, interruption: Interruption) -> None:
        """Evaluate and log; a signal puts it off to the next session (state.evaluation_pending).

        Raises:
            Diverged: a matrix that is kept at unit norm is off the sphere.
        """
        values = evaluate(
            self.model_with_loss,
            self.data.validation,
            self.config.micro_batch_size,
            self.ranks,
            self.autocast,
            should_stop=lambda: interruption.received is not None,
        )
        release_gathered(self.model_with_loss)
        self.state.evaluation_pending = values is None
        if values is None:
            return
        deviation = max_norm_deviation(self.raw_model)
        values |= {f"scale/{name}": mean for name, mean in scale_means(self.raw_model).items()}
        values |= {} if deviation is None else {"train/max_norm_deviation": deviation}
        log.log(self.state.step, self.state.train_seconds, values)
        check_norms(deviation, self.config.precision.matrices)

    def close(self) -> None:
        """Let DDP go while the ranks are still together; nothing can be trained afterwards.

        DDP's reducer would otherwise hold the last reference to the process group, and end the group's thread with Python's
        lock in its hand while that thread waits for the lock: the rank would hang at its end (seen with gloo, torch 2.13).
        """
        if self.training_model is not self.model_with_loss:
            self.training_model = self.model_with_loss
            gc.collect()

    def save(self, log: MetricsLog) -> None:
        """Copy the state to rank 0 and let it be written beside the training; an error of rank 0 is every rank's."""
        log.sync()

        def copy_and_write() -> None:
            snapshot = take_snapshot(self.raw_model, self.optimizer, self.state, self.ranks.is_main_process)
            if snapshot:
                self.writer.save(snapshot)

        self.ranks.agree(copy_and_write)
        if self.ranks.is_main_process:
            write_status(self.config.run_dir, "running", self.state.step, val_loss=log.last_val)

    def restore(self, checkpoint: Path) -> None:
        """Take weights, optimizer state and standing from a checkpoint."""
        self.state = load_trainer_state(checkpoint)
        load_model(checkpoint, self.raw_model)
        load_optimizer(checkpoint, self.raw_model, self.optimizer)

    def read_batches(self) -> Iterator[Tensor]:
        """Yield this rank's micro batches from the present step on."""
        skipped = self.state.skipped_batches
        pin_memory = self.ranks.device.type == "cuda"
        return micro_batches(self.windows, self.shape, self.state.step + skipped, self.config.max_steps + skipped, pin_memory)
