"""Downstream accuracy through lm-evaluation-harness: python scripts/downstream.py run=runs/NAME tasks=arc_easy,hellaswag.

A table on standard output, all figures as JSON in out=. Works under torchrun. Needs requirements-eval.txt.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass  # noqa: E402
from typing import Optional  # noqa: E402

from cli.composition import ConfigError  # noqa: E402
from corpus.token_file import write_json_atomically  # noqa: E402
from engine.distributed import start_ranks  # noqa: E402
from lab.evaluation.command_line import TIMEOUT_SECONDS, check_common, make_folder, run_script, split_list  # noqa: E402
from lab.evaluation.downstream import load_tasks, render, require_lm_eval, run_tasks  # noqa: E402
from lab.evaluation.trained_run import open_run  # noqa: E402


@dataclass
class DownstreamConfig:
    run: str
    checkpoint: Optional[int]
    tasks: str
    num_fewshot: Optional[int]
    limit: Optional[int]
    batch_size: int
    precision: Optional[str]
    device: str
    out: str


def main(config: DownstreamConfig) -> None:
    check_common(config, "batch_size", "limit")
    if config.num_fewshot is not None and config.num_fewshot < 0:
        raise ConfigError(f"num_fewshot={config.num_fewshot}: must not be negative")
    names = split_list("tasks", config.tasks)
    require_lm_eval()
    with start_ranks(config.device, TIMEOUT_SECONDS) as ranks:
        run = open_run(Path(config.run), config.checkpoint, config.precision, ranks)
        out = ranks.on_main(lambda: make_folder(config.out))
        # The first rank alone, and then the others: it fills the cache of data sets.
        loaded = ranks.agree(lambda: load_tasks(names) if ranks.is_main_process else None)
        tasks = ranks.agree(lambda: loaded or load_tasks(names))
        report = run_tasks(run, ranks, tasks, config.batch_size, config.num_fewshot, config.limit)
        if ranks.is_main_process:
            path = out / f"{run.name}-{run.step}.json"
            write_json_atomically(path, report)
            print(f"{render(report)}\n\nwrote {path}")


if __name__ == "__main__":
    run_script(main, DownstreamConfig, "downstream")
