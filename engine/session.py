"""One session of a run: from a configuration to done, preempted, diverged or failed."""

import sys
from contextlib import ExitStack, closing

from cli.loading import loading
from corpus.token_file import verify_token_files
from engine.accounting import describe_run, peak_flops
from engine.checks import check_batch, check_config
from engine.config import Config
from engine.distributed import start_ranks
from engine.failures import in_words
from engine.interruption import Interruption
from engine.metrics import MetricsLog
from engine.micro_batch import fit_micro_batch
from engine.run_data import check_data_folder, open_data
from engine.run_folder import note_failure, open_run_folder, write_run_folder
from engine.terminal import describe_end, describe_start
from engine.trainer import Trainer
from runfolder.lock import RunLock
from runfolder.status import mark_done, write_status


def train(config: Config) -> None:
    """Train a configuration from its beginning, or from its newest checkpoint, to its last step.

    Every check comes before the first step and every rank leaves with the same error.

    Raises:
        ConfigError, RunLocked, DataError, CheckpointError: it cannot begin; nothing was changed.
        Preempted, Diverged, CheckpointError: how it ended, as Trainer.run says.
        RankError: what another rank alone has met.
    """
    check_config(config)
    lock = RunLock()
    meeting = start_ranks(config.device, config.timeout_seconds, dump_folder=config.run_dir)
    with Interruption() as interruption, meeting as ranks, closing(lock), ExitStack() as leaving:
        interruption.has_begun = True
        # Each agree and on_main is a meeting of all ranks, so every rank makes these calls, in this order, or leaves with
        # the error of whichever failed.
        config = ranks.on_main(lambda: fit_micro_batch(config, ranks))
        ranks.agree(lambda: check_batch(config, ranks.world_size))
        ranks.agree(lambda: check_data_folder(config))
        data = ranks.agree(lambda: open_data(config))
        ranks.on_main(lambda: verify_token_files(config.data.dir, data.manifest, full=config.verify_data == "full"))
        checkpoint = ranks.on_main(lambda: open_run_folder(config, data, lock))

        with loading():  # what is refused was refused by now
            import torch._dynamo  # noqa: F401  the optimizer would import it, in more time

        def make_trainer() -> Trainer:
            with note_failure(config, ranks, checkpoint), in_words(config, ranks.world_size):
                return Trainer(config, ranks, data, checkpoint)

        trainer = ranks.agree(make_trainer)
        leaving.callback(trainer.close)
        if trainer.state.step == config.max_steps and not trainer.state.evaluation_pending:
            if ranks.is_main_process:
                mark_done(config.run_dir, trainer.state.step)
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
            outcome = getattr(error, "state", "failed")
            message = f"{type(error).__name__}: {error}"
            log.note(message)
            if outcome == "failed" and not ranks.is_main_process:  # the entry speaks for the first rank alone
                print(f"rank {ranks.rank}: {message}", file=sys.stderr, flush=True)
            raise
        finally:
            log.close()
            if ranks.is_main_process:
                write_status(config.run_dir, outcome, trainer.state.step, message, log.last_val)
            log.finish_trackers(is_last_row_whole=not trainer.state.evaluation_pending)
