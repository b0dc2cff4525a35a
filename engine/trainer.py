"""The training loop. It does not know which model it trains."""

import math
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import record_function

from engine.accounting import flops_per_token, peak_flops
from engine.checkpoint import TrainerState, find_checkpoint, load_model, load_optimizer, load_trainer_state, take_snapshot
from engine.checkpoint_writer import CheckpointWriter
from engine.config import Config
from engine.data import TrainingWindows, first_sample, micro_batches
from engine.distributed import Ranks, gathered
from engine.evaluate import evaluate
from engine.failures import compiling
from engine.interruption import Interruption, Preempted
from engine.metrics import MetricsLog
from engine.models import max_norm_deviation, scale_means
from engine.optimizer import build_optimizer, set_learning_rate
from engine.parallel import place_model, release_gathered, set_gradient_sync
from engine.precision import autocast
from engine.run_data import RunData
from engine.schedule import learning_rate_at
from engine.stability import Diverged, check_norms, note_loss, record_event
from runfolder.status import write_status


class Trainer:
    """One run: its model, its optimizer, its data, and where it stands."""

    def __init__(self, config: Config, ranks: Ranks, data: RunData, checkpoint: Path | None):
        self.config, self.ranks, self.data = config, ranks, data
        torch.manual_seed(config.seed)
        use_compile = config.compile if config.compile is not None else ranks.device.type == "cuda"
        self.loss_of, self.model = place_model(config, ranks, use_compile)
        self.raw_model = self.loss_of.model
        self.optimizer = build_optimizer(self.raw_model, config)
        self.state = TrainerState(step=0, train_seconds=0.0, wandb_id=None)
        self.resumed_at = 0
        if checkpoint:
            self.restore(checkpoint)
        self.windows = TrainingWindows(data.train, config.model["sequence_length"], config.seed)
        self.batches = self.read_batches()
        self.writer = CheckpointWriter(config.run_dir / "checkpoints", config.keep_checkpoints, config.keep_every)

        self.phase = record_function  # names the parts of a step in a profile; scripts/bench.py times them
        self.autocast = autocast(ranks.device, config.precision.matmul)
        if use_compile:
            with compiling():
                self.compile_now()

    def compile_now(self) -> None:
        """Run both compiled graphs once on padding, so that compilation is not counted as training time."""
        shape = (self.config.micro_batch_size, self.config.model["sequence_length"] + 1)
        windows = torch.zeros(shape, dtype=torch.long, device=self.ranks.device)
        with self.autocast:
            loss = self.model(windows)
        loss.backward()
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast, torch.no_grad():
            self.loss_of(windows)
        release_gathered(self.loss_of)

    def restore(self, checkpoint: Path) -> None:
        """Take weights, optimizer state and standing from a checkpoint, in place."""
        vars(self.state).update(vars(load_trainer_state(checkpoint)))
        load_model(checkpoint, self.raw_model)
        load_optimizer(checkpoint, self.raw_model, self.optimizer)
        self.resumed_at = self.state.step

    def read_batches(self) -> Iterator[Tensor]:
        """Yield this rank's micro batches from the present step on."""
        config, ranks, skipped = self.config, self.ranks, self.state.skipped_batches
        return micro_batches(
            self.windows,
            first_step=self.state.step + skipped,
            last_step=config.max_steps + skipped,
            global_batch_size=config.global_batch_size,
            micro_batch_size=config.micro_batch_size,
            rank=ranks.rank,
            world_size=ranks.world_size,
        )

    def run(self, log: MetricsLog, interruption: Interruption) -> None:
        """Train to max_steps. Validation and saving come before the step, so step counts what has been done."""
        config, state = self.config, self.state
        stop, logged = False, (state.step, state.train_seconds)
        while True:
            is_last = state.step == config.max_steps
            is_new = state.step > self.resumed_at  # a resumed step is on disk already, and was validated before
            is_due = (is_new or state.step == 0) and (state.step % config.eval_interval == 0 or is_last)
            if is_due or state.evaluation_pending:
                self.validate(log, interruption)
                stop = stop or state.evaluation_pending
            if is_new and (state.step % config.checkpoint_interval == 0 or is_last or stop):
                log.sync()
                self.save()
            if stop or is_last:
                self.ranks.agree(lambda: self.ranks.is_main_process and self.writer.wait())
            if stop:
                done = f"saved at step {state.step}" if state.step else "before the first step"
                raise Preempted(
                    f"stopped by {interruption.received or 'a signal to another rank'}, {done}; the same command continues"
                )
            if is_last:
                return
            values, stop = self.train_step(interruption)
            if not values:  # the step was skipped, or steps were taken back
                logged = (state.step, state.train_seconds)
                log.rewind(state.step)
            elif state.step % config.log_interval == 0 or state.step == config.max_steps or "train/spike" in values:
                log.log(state.step, state.train_seconds, values | self.speed_since(logged))
                logged = (state.step, state.train_seconds)

    def validate(self, log: MetricsLog, interruption: Interruption) -> None:
        """Evaluate and log; a signal puts it off to the next session. Raise Diverged for a matrix off the sphere."""
        values = evaluate(
            self.loss_of,
            self.data.validation,
            self.config.micro_batch_size,
            self.ranks,
            self.autocast,
            lambda: interruption.received is not None,
        )
        release_gathered(self.loss_of)
        self.state.evaluation_pending = values is None
        if values is None:
            return
        deviation = max_norm_deviation(self.raw_model)
        values |= {f"scale/{name}": mean for name, mean in scale_means(self.raw_model).items()}
        values |= {} if deviation is None else {"train/max_norm_deviation": deviation}
        log.log(self.state.step, self.state.train_seconds, values)
        check_norms(deviation, self.config.precision.matrices)

    def speed_since(self, earlier: tuple[int, float]) -> dict[str, float | None]:
        """Return tokens/s and MFU of the steps since an earlier (step, train_seconds)."""
        step, train_seconds = earlier
        rate = (self.state.step - step) * self.config.tokens_per_step / (self.state.train_seconds - train_seconds)
        peak = peak_flops(self.ranks.device, self.config.precision.matmul)
        mfu = rate * flops_per_token(self.raw_model) / (peak * self.ranks.world_size) if peak else None
        return {"train/tokens_per_second": rate, "train/mfu": mfu}

    def train_step(self, interruption: Interruption) -> tuple[dict[str, float], bool]:
        """Do one optimizer step; return its metrics and whether any rank was asked to stop.

        No metrics come from a step that was skipped or rolled back because its numbers were not finite.
        """
        config, ranks, state = self.config, self.ranks, self.state
        started = time.perf_counter()
        learning_rate = learning_rate_at(
            state.step,
            max_steps=config.max_steps,
            peak=config.learning_rate,
            minimum=config.min_learning_rate,
            warmup_steps=config.warmup_steps,
        )
        set_learning_rate(self.optimizer, learning_rate)
        accumulation_steps = config.global_batch_size // (config.micro_batch_size * ranks.world_size)
        losses = []  # of the micro batches, summed over tokens
        for micro_step in range(accumulation_steps):
            with self.phase("data"):
                windows = next(self.batches).to(ranks.device, non_blocking=True)
            set_gradient_sync(self.model, micro_step == accumulation_steps - 1)  # they need to meet only once per step
            with self.phase("forward"), self.autocast:
                loss = self.model(windows)
            with self.phase("backward"):
                # The ranks' gradients are averaged; so divided, the gradient is that of the global batch's mean.
                (loss * (ranks.world_size / config.tokens_per_step)).backward()
            losses.append(loss.detach().double())
        with self.phase("clipping"):
            grad_norm = torch.nn.utils.clip_grad_norm_(self.raw_model.parameters(), config.grad_clip or math.inf)
        asked = torch.tensor(float(interruption.received is not None), dtype=torch.float64, device=ranks.device)
        loss_sum, asked = ranks.all_reduce_sum(torch.stack((torch.stack(losses).sum(), asked))).tolist()
        loss, grad_norm = loss_sum / config.tokens_per_step, gathered(grad_norm).item()
        # The same numbers on every rank, and so the same decision.
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self.optimizer.zero_grad(set_to_none=True)
            state.train_seconds += time.perf_counter() - started
            self.leave_out(losses, f"loss {loss}, gradient norm {grad_norm}")
            return {}, asked > 0
        with self.phase("optimizer"):
            self.optimizer.step()
        with self.phase("renormalization"):
            self.raw_model.post_optimizer_step()
        self.optimizer.zero_grad(set_to_none=True)

        state.step += 1
        state.train_seconds += time.perf_counter() - started
        values = {"train/loss": loss, "train/learning_rate": learning_rate, "train/grad_norm": grad_norm}
        spike = note_loss(state, loss)
        if spike is not None:
            values["train/spike"] = spike
            if ranks.is_main_process:
                record_event(config.run_dir, state.step, "spike", loss=loss, mean=state.loss_mean, deviations=spike)
        return values, asked > 0

    def leave_out(self, losses: list[Tensor], numbers: str) -> None:
        """Skip a step whose numbers are not finite, or go back to before it, as on_nonfinite says; the update was not done.

        Raises:
            Diverged: on_nonfinite=stop, or it has happened too often, or there is no checkpoint to go back to.
        """
        config, ranks, state = self.config, self.ranks, self.state
        failed_step, batch, events = state.step, state.step + state.skipped_batches, state.nonfinite_events
        culprits = [m for m, loss in enumerate(losses) if not math.isfinite(loss)]
        samples = [
            first_sample(batch, m, config.global_batch_size, config.micro_batch_size, ranks.rank, ranks.world_size) + i
            for m in culprits
            for i in range(config.micro_batch_size)
        ]
        windows = list(chain(*ranks.gather([self.windows.window_of(sample) for sample in samples])))
        what = f"step {failed_step + 1}: {numbers}"
        if ranks.is_main_process:
            record_event(
                config.run_dir,
                failed_step + 1,
                "nonfinite",
                numbers=numbers,
                action=config.on_nonfinite,
                windows=windows or "all of the batch",
                batch=batch,
            )
        if config.on_nonfinite == "stop":
            raise Diverged(f"{what}; try a lower learning_rate than {config.learning_rate:g}, or on_nonfinite=skip")
        if events >= config.max_nonfinite:
            raise Diverged(f"{what}; and {events} times before (max_nonfinite={config.max_nonfinite})")
        if config.on_nonfinite == "skip":
            state.step += 1
        else:
            checkpoint = ranks.on_main(self.newest_checkpoint)
            if checkpoint is None:
                raise Diverged(f"{what}; there is no checkpoint to go back to yet")
            seconds = state.train_seconds
            ranks.agree(lambda: self.restore(checkpoint))
            state.train_seconds = seconds  # they were spent
            # From here on the batches that follow the bad one: those before it would lead to it again.
            state.skipped_batches = batch + 1 - state.step
            self.batches = self.read_batches()
        state.nonfinite_events = events + 1
        if ranks.is_main_process:
            print(f"warning: {what}; on_nonfinite={config.on_nonfinite}: at step {state.step}", file=sys.stderr)

    def newest_checkpoint(self) -> Path | None:
        self.writer.wait()
        return find_checkpoint(self.writer.folder)

    def save(self) -> None:
        """Copy the state to rank 0 and let it be written; an error of rank 0 is every rank's."""

        def copy_and_write() -> None:
            snapshot = take_snapshot(self.raw_model, self.optimizer, self.state, self.ranks.is_main_process)
            if snapshot:
                self.writer.save(snapshot)

        self.ranks.agree(copy_and_write)
        if self.ranks.is_main_process:
            write_status(self.config.run_dir, "running", self.state.step)
