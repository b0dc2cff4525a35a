"""One session of a run: from a configuration to done, preempted, diverged or failed."""

import json
import sys
from contextlib import closing
from pathlib import Path

from cli.composition import first_line, nearest
from cli.launcher import is_silent, planned_world_size
from corpus.manifest import MANIFEST_NAME, DataError
from corpus.token_file import verify_token_files
from engine.accounting import describe_run, peak_flops
from engine.checkpoint import checkpoint_step
from engine.checks import check_batch, check_config
from engine.config import Config
from engine.config_file import save_config
from engine.distributed import Ranks, start_ranks
from engine.failures import CannotRun, in_words
from engine.interruption import Interruption, Preempted
from engine.memory import estimate_memory
from engine.metrics import MetricsLog
from engine.models import build_model
from engine.run_data import RunData, open_data
from engine.run_folder import open_run_folder, write_run_folder
from engine.stability import Diverged
from engine.terminal import describe_end, describe_start
from engine.trainer import Trainer
from runfolder.lock import RunLock
from runfolder.status import write_status


def train(config: Config) -> None:
    """Train a configuration from its beginning, or from its newest checkpoint, to its last step.

    Every check comes before the first step and every rank leaves with the same error.
    """
    check_config(config)
    lock = RunLock()
    with Interruption() as interruption, start_ranks(config.device, config.timeout_seconds) as ranks, closing(lock):
        interruption.has_begun = True
        ranks.agree(lambda: check_batch(config, ranks.world_size))
        ranks.agree(lambda: check_data_folder(config))
        data = ranks.agree(lambda: open_data(config))
        ranks.on_main(lambda: verify_token_files(config.data.dir, data.manifest, full=config.verify_data == "full"))
        checkpoint = ranks.on_main(lambda: open_run_folder(config, data, lock))
        trainer = ranks.agree(lambda: make_trainer(config, ranks, data, checkpoint))
        if trainer.state.step == config.max_steps and not trainer.state.evaluation_pending:
            if ranks.is_main_process:
                write_status(config.run_dir, "done", trainer.state.step)  # a kill may have come just before it
                print(f"{config.run_dir}: all {config.max_steps:,} steps are done; resume=never or another run_name trains again")
            return
        environment = ranks.on_main(lambda: write_run_folder(config, ranks, data, trainer.raw_model, trainer.state.step))
        log = MetricsLog(config, trainer.state, ranks.is_main_process, environment)
        outcome, message = "failed", ""
        try:
            plan = describe_run(config, trainer.raw_model, ranks.world_size, data.manifest.splits["train"].tokens)
            peak = peak_flops(ranks.device, config.precision.matmul)
            log.show(describe_start(config, plan, environment, trainer.state.step, peak))
            with in_words(config, ranks.world_size):
                trainer.run(log, interruption)
            outcome = "done"
            log.show(describe_end(config, trainer.state.train_seconds, log.last_val))
        except (Exception, KeyboardInterrupt) as error:
            outcome = "preempted" if type(error) is Preempted else "diverged" if type(error) is Diverged else "failed"
            message = f"{type(error).__name__}: {error}"
            if outcome == "failed" and not ranks.is_main_process:  # the entry speaks for the first rank alone
                print(f"rank {ranks.rank}: {message}", file=sys.stderr, flush=True)
            raise
        finally:
            log.close()
            if ranks.is_main_process:
                write_status(config.run_dir, outcome, trainer.state.step, message)
            log.finish_trackers()


def make_trainer(config: Config, ranks: Ranks, data: RunData, checkpoint: Path | None) -> Trainer:
    """Return the trainer; what this machine cannot run is written into the run's status before it is raised."""
    try:
        with in_words(config, ranks.world_size):
            return Trainer(config, ranks, data, checkpoint)
    except Exception as error:
        if ranks.is_main_process and (isinstance(error, CannotRun) or not hasattr(error, "exit_code")):
            save_config(config, config.run_dir / "config.yaml")  # without it no report could say whose status this is
            write_status(config.run_dir, "failed", checkpoint_step(checkpoint) if checkpoint else 0, first_line(error))
        raise


def check_data_folder(config: Config) -> None:
    """Raise DataError if nothing is prepared in data.dir: with the command that would, and the folders beside it that are."""
    folder = Path(config.data.dir)
    if (folder / MANIFEST_NAME).exists():
        return
    command = f"python prepare_owt.py data={config.data.name}"
    if config.data.source == "files":
        command += " data.files='...'"
    if folder != Path("data") / config.data.name:
        command += f" data.dir={folder}"
    others = sorted(str(folder.parent / path.parent.name) for path in folder.parent.glob(f"*/{MANIFEST_NAME}"))
    hint = f"; prepared there: {', '.join(others)}{nearest(str(folder), others)}" if others else ""
    raise DataError(f"{folder / MANIFEST_NAME}: missing, no data prepared here; run: {command}{hint}")


def print_plan(config: Config) -> None:
    """Print, as JSON, what a run would be, without starting it; raise as the run would for what cannot be."""
    check_config(config)
    world_size = planned_world_size()
    check_batch(config, world_size)
    has_data = (Path(config.data.dir) / MANIFEST_NAME).exists()
    train_tokens = open_data(config).manifest.splits["train"].tokens if has_data else config.data.expected.train_tokens
    if not is_silent():
        model = build_model(config.model, config.precision.matrices, device="meta")
        use_compile = config.compile if config.compile is not None else config.device != "cpu"
        plan = describe_run(config, model, world_size, train_tokens)
        plan["memory_gib_per_rank_estimate"] = estimate_memory(config, model, world_size, use_compile)
        print(json.dumps(plan, indent=2))
