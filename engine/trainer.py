"""The training loop. It does not know which model it trains."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from corpus.manifest import MANIFEST_NAME
from engine.accounting import describe_run, flops_per_token, peak_flops
from engine.checkpoint import TrainerState, load_model, load_optimizer, load_trainer_state, save_checkpoint
from engine.config import Config, check_batch, check_config
from engine.data import TrainingWindows, micro_batches
from engine.distributed import Ranks, start_ranks
from engine.evaluate import evaluate
from engine.interruption import Interruption, Preempted
from engine.loss import NextTokenLoss
from engine.metrics import MetricsLog, write_status
from engine.models import build_model
from engine.optimizer import build_optimizer, set_learning_rate
from engine.run import RunData, open_data, open_run_folder, write_run_folder
from engine.schedule import learning_rate_at


class Diverged(RuntimeError):
    exit_code = 5


class Trainer:
    """One run: its model, its optimizer, its data, and where it stands."""

    def __init__(self, config: Config, ranks: Ranks, data: RunData, checkpoint: Path | None):
        self.config, self.ranks, self.data = config, ranks, data
        torch.manual_seed(config.seed)
        # Initialized on the CPU: the same weights on every device.
        self.raw_model = build_model(config.model, config.precision.matrices).to(ranks.device)
        self.optimizer = build_optimizer(self.raw_model, config)
        self.state = TrainerState(step=0, train_seconds=0.0, wandb_id=None)
        if checkpoint:
            self.state = load_trainer_state(checkpoint)
            load_model(checkpoint, self.raw_model)
            load_optimizer(checkpoint, self.raw_model, self.optimizer)
        self.resumed_at = self.state.step

        self.autocast = torch.autocast(
            ranks.device.type, dtype=torch.bfloat16, enabled=config.precision.matmul == "bfloat16"
        )
        self.loss_of = NextTokenLoss(self.raw_model)
        use_compile = config.compile if config.compile is not None else ranks.device.type == "cuda"
        if use_compile:
            self.loss_of.compile(dynamic=False)
        self.model = self.loss_of  # what is called in training: wrapped where there are other ranks
        if ranks.world_size > 1:
            device_ids = [ranks.local_rank] if ranks.device.type == "cuda" else None
            self.model = DistributedDataParallel(self.loss_of, device_ids=device_ids, gradient_as_bucket_view=True)
        if use_compile:
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

    def run(self, log: MetricsLog, interruption: Interruption) -> None:
        """Train to max_steps. Validation and saving come before the step, so step counts what has been done."""
        config, state = self.config, self.state
        windows = TrainingWindows(self.data.train, config.model["sequence_length"], config.seed)
        batches = micro_batches(
            windows, first_step=state.step, last_step=config.max_steps, global_batch_size=config.global_batch_size,
            micro_batch_size=config.micro_batch_size, rank=self.ranks.rank, world_size=self.ranks.world_size,
        )  # fmt: skip
        stop, logged = False, (state.step, state.train_seconds)
        while True:
            is_last = state.step == config.max_steps
            is_new = state.step > self.resumed_at or state.step == 0  # a resumed step was validated before it was saved
            if is_new and (state.step % config.eval_interval == 0 or is_last):
                values = evaluate(
                    self.loss_of, self.data.validation, config.micro_batch_size, self.ranks, self.autocast
                )
                log.log(state.step, state.train_seconds, values)
            if is_new and state.step > 0 and (state.step % config.checkpoint_interval == 0 or is_last or stop):
                self.save(log)
            if is_last:
                return
            if stop:
                raise Preempted(f"stopped by a signal and saved at step {state.step}; the same command continues")
            values, stop = self.train_step(batches, interruption)
            if state.step % config.log_interval == 0 or state.step == config.max_steps:
                log.log(state.step, state.train_seconds, values | self.speed_since(logged))
                logged = (state.step, state.train_seconds)

    def speed_since(self, earlier: tuple[int, float]) -> dict[str, float | None]:
        """Return tokens/s and MFU of the steps since an earlier (step, train_seconds)."""
        step, train_seconds = earlier
        rate = (self.state.step - step) * self.config.tokens_per_step / (self.state.train_seconds - train_seconds)
        peak = peak_flops(self.ranks.device, self.config.precision.matmul)
        mfu = rate * flops_per_token(self.raw_model) / (peak * self.ranks.world_size) if peak else None
        return {"train/tokens_per_second": rate, "train/mfu": mfu}

    def train_step(self, batches: Iterator[Tensor], interruption: Interruption) -> tuple[dict[str, float], bool]:
        """Do one optimizer step; return its metrics and whether any rank was asked to stop.

        Raises:
            Diverged: the loss or the gradient norm is not finite; the weights are still those before the step.
        """
        config, ranks = self.config, self.ranks
        started = time.perf_counter()
        learning_rate = learning_rate_at(self.state.step, max_steps=config.max_steps, peak=config.learning_rate,
                                         minimum=config.min_learning_rate, warmup_steps=config.warmup_steps)  # fmt: skip
        set_learning_rate(self.optimizer, learning_rate)
        accumulation_steps = config.global_batch_size // (config.micro_batch_size * ranks.world_size)
        loss_sum = torch.zeros((), dtype=torch.float64, device=ranks.device)
        for micro_step in range(accumulation_steps):
            windows = next(batches).to(ranks.device, non_blocking=True)
            if ranks.world_size > 1:  # gradients need to meet only once per step
                self.model.require_backward_grad_sync = micro_step == accumulation_steps - 1
            with self.autocast:
                loss = self.model(windows)
            # DDP averages over ranks; so divided, the gradient is that of the global batch's mean.
            (loss * (ranks.world_size / config.tokens_per_step)).backward()
            loss_sum += loss.detach()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.raw_model.parameters(), config.grad_clip or math.inf)
        asked = torch.tensor(float(interruption.received is not None), dtype=torch.float64, device=ranks.device)
        loss_sum, asked = ranks.all_reduce_sum(torch.stack((loss_sum, asked))).tolist()
        loss, grad_norm = loss_sum / config.tokens_per_step, grad_norm.item()
        if not (
            math.isfinite(loss) and math.isfinite(grad_norm)
        ):  # the same numbers, and so the same decision, on every rank
            raise Diverged(
                f"step {self.state.step + 1}: loss {loss}, gradient norm {grad_norm}; try a lower learning_rate than {config.learning_rate:g}"
            )
        self.optimizer.step()
        self.raw_model.post_optimizer_step()
        self.optimizer.zero_grad(set_to_none=True)

        self.state.step += 1
        self.state.train_seconds += time.perf_counter() - started
        return {"train/loss": loss, "train/learning_rate": learning_rate, "train/grad_norm": grad_norm}, asked > 0

    def save(self, log: MetricsLog) -> None:
        """Save on rank 0; the others wait, and share its error if there is one."""
        folder = self.config.run_dir / "checkpoints"
        self.ranks.agree(
            lambda: (
                self.ranks.is_main_process
                and save_checkpoint(folder, self.raw_model, self.optimizer, self.state, self.config.keep_checkpoints)
            )
        )
        if self.ranks.is_main_process:
            write_status(self.config.run_dir, "running", self.state.step)


def train(config: Config) -> None:
    """Train a configuration from its beginning, or from its newest checkpoint, to its last step.

    Every check comes before the first step and every rank leaves with the same error.
    """
    check_config(config)
    with start_ranks(config.device) as ranks, Interruption() as interruption:
        ranks.agree(lambda: check_batch(config, ranks.world_size))
        data = ranks.agree(lambda: open_data(config))
        checkpoint = ranks.on_main(lambda: open_run_folder(config, data))
        trainer = ranks.agree(lambda: Trainer(config, ranks, data, checkpoint))
        if trainer.state.step == config.max_steps:
            if ranks.is_main_process:
                print(
                    f"{config.run_dir}: all {config.max_steps:,} steps are done; resume=never or another run_name trains again"
                )
            return
        environment = ranks.on_main(
            lambda: write_run_folder(config, ranks, data, trainer.raw_model, trainer.state.step)
        )
        log = MetricsLog(config, trainer.state, ranks.is_main_process, environment)
        outcome, message = "failed", ""
        try:
            trainer.run(log, interruption)
            outcome = "done"
        except (Exception, KeyboardInterrupt) as error:
            outcome = {Preempted: "preempted", Diverged: "diverged"}.get(type(error), "failed")
            message = f"{type(error).__name__}: {error}"
            if outcome == "failed" and not ranks.is_main_process:  # the entry speaks for the first rank alone
                print(f"rank {ranks.rank}: {message}", file=sys.stderr, flush=True)
            raise
        finally:
            log.close()
            if ranks.is_main_process:
                write_status(config.run_dir, outcome, trainer.state.step, message)


def print_plan(config: Config) -> None:
    """Print, as JSON, what a run would be, without starting it; raise as the run would for what cannot be."""
    check_config(config)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    check_batch(config, world_size)
    has_data = (Path(config.data.dir) / MANIFEST_NAME).exists()
    train_tokens = open_data(config).manifest.splits["train"].tokens if has_data else config.data.expected.train_tokens
    if os.environ.get("RANK", "0") == "0":
        print(
            json.dumps(
                describe_run(config, build_model(config.model, device="meta"), world_size, train_tokens), indent=2
            )
        )
