"""The evaluation programs: perplexity (evaluate.py), longer contexts (extrapolate.py), lm-eval's tasks (downstream.py).

All take run folders, keys and values, and also run under torchrun with the same numbers. torch is imported only when they start.
"""

import json
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from cli.arguments import PATH, Program
from cli.composition import ConfigError
from cli.loading import loading
from lab.evaluation.settings import TIMEOUT_SECONDS, check_common, check_different, check_multiples, make_folder
from lab.ownership import refuse_foreign_files, refuse_foreign_folder

if TYPE_CHECKING:
    from engine.distributed import Ranks
    from lab.evaluation.trained_run import MeasuredRun

EVALUATE_PAGE = """
Perplexity of trained runs on a token file, computed as their own validation was.

    python scripts/evaluate.py runs/NAME [data=data/openwebtext]
    python scripts/evaluate.py runs/A runs/B            several runs, one table

    runs=runs/A,runs/B     the run folders, if they are not given without a key
    checkpoint=null        step of the checkpoint; null: the newest
    data=null              a folder that prepare_owt.py wrote; null: the run's own
    split=val              val | train
    sequence_length=null   tokens of context; null: as trained
    windows=null           evenly spread over the split; null: as many as the run's own validation; 0: all
    batch_size=null        windows at a time; null: the run's micro_batch_size
    precision=null         bf16 | fp32; null: as trained
    device=auto            auto | cpu | cuda

One JSON object per run on standard output, a line or a table for people on standard error. Works under torchrun.
"""

EXTRAPOLATE_PAGE = """
Perplexity at multiples of the training context, on the same tokens at every length.

    python scripts/extrapolate.py runs/A runs/B data=pg19

    runs=runs/A,runs/B            the run folders, if they are not given without a key: same tokenizer, same training context
    data=null                     a prepared folder | pg19 | a glob of txt, jsonl, parquet; null: the first run's own
    split=val                     val | train, of a prepared folder
    text_column=text              of jsonl and parquet
    multiples=1,2,4,8,16,32       of the training context; each must divide the last
    max_tokens=1000000            of text, predicted once per run and length
    precision=null                bf16 | fp32; null: as trained
    device=auto                   auto | cpu | cuda
    out=report/extrapolation      folder for extrapolation.json, extrapolation.png and .svg

A table on standard output. Works under torchrun.
"""

DOWNSTREAM_PAGE = """
Downstream tasks through lm-evaluation-harness, beside the paper's results.

    python scripts/downstream.py runs/NAME tasks=arc_easy,my_task.yaml
    python scripts/downstream.py runs/A runs/B          several runs, one table

    runs=runs/A,runs/B     the run folders, if they are not given without a key
    checkpoint=null        step of the checkpoint; null: the newest
    tasks=arc_easy,hellaswag,winogrande,wsc273,lambada_openai   lm-eval's names, or paths of task files (yaml, json)
    num_fewshot=null       null: as the task says, else 0
    limit=null             only the first N examples of each task, for a quick look
    batch_size=32          windows at a time
    precision=null         bf16 | fp32; null: as trained
    device=auto            auto | cpu | cuda
    out=report/downstream  folder; each run's result goes to <run>-<step>.json there

A table on standard output, all numbers as JSON in out=. Works under torchrun. Needs requirements-eval.txt.
"""


@dataclass
class EvaluateSettings:
    runs: list[str] = field(metadata=PATH)
    checkpoint: Optional[int] = None
    data: Optional[str] = field(default=None, metadata=PATH)
    split: str = "val"
    sequence_length: Optional[int] = None
    windows: Optional[int] = None
    batch_size: Optional[int] = None
    precision: Optional[str] = None
    device: str = "auto"


@dataclass
class ExtrapolateSettings:
    runs: list[str] = field(metadata=PATH)
    data: Optional[str] = field(default=None, metadata=PATH)
    split: str = "val"
    text_column: str = "text"
    multiples: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32])
    max_tokens: int = 1_000_000
    precision: Optional[str] = None
    device: str = "auto"
    out: str = field(default="report/extrapolation", metadata=PATH)


@dataclass
class DownstreamSettings:
    runs: list[str] = field(metadata=PATH)
    checkpoint: Optional[int] = None
    tasks: list[str] = field(default_factory=lambda: ["arc_easy", "hellaswag", "winogrande", "wsc273", "lambada_openai"])
    num_fewshot: Optional[int] = None
    limit: Optional[int] = None
    batch_size: int = 32
    precision: Optional[str] = None
    device: str = "auto"
    out: str = field(default="report/downstream", metadata=PATH)


def open_runs(settings: Any, ranks: "Ranks") -> "list[MeasuredRun]":
    """Open all runs before the first is measured, so that a fault shows at once; folders of one name are called by their paths."""
    from lab.evaluation.trained_run import open_run

    checkpoint = getattr(settings, "checkpoint", None)
    runs = [open_run(Path(folder), checkpoint, settings.precision, ranks) for folder in settings.runs]
    names, places = [run.name for run in runs], [run.folder.resolve() for run in runs]
    common = os.path.commonpath(places)
    return [
        run if names.count(run.name) == 1 else replace(run, label=str(place.relative_to(common)))
        for run, place in zip(runs, places, strict=True)
    ]


def evaluate_runs(settings: EvaluateSettings) -> None:
    """Measure and print the perplexity of every run."""
    check_common(settings, "sequence_length", "batch_size")
    check_different("runs", settings.runs)
    if settings.windows is not None and settings.windows < 0:
        raise ConfigError(f"windows={settings.windows}: must not be negative (0 takes all)")
    with loading():
        from engine.distributed import start_ranks
        from lab.evaluation.perplexity import describe, measure_perplexity, table

    with start_ranks(settings.device, TIMEOUT_SECONDS) as ranks:
        runs = open_runs(settings, ranks)
        data = Path(settings.data) if settings.data else None
        results = []
        for run in runs:
            results.append(
                measure_perplexity(
                    run, ranks, data, settings.split, settings.sequence_length, settings.windows, settings.batch_size
                )
            )
            if ranks.is_main_process:
                print(json.dumps(results[-1]), flush=True)
        if ranks.is_main_process:
            print(describe(results[0]) if len(results) == 1 else table(results), file=sys.stderr)


def extrapolate_runs(settings: ExtrapolateSettings) -> None:
    """Measure every run at every length; print the table, write the numbers and the picture."""
    check_common(settings, "max_tokens")
    check_multiples(settings.multiples)
    check_different("runs", settings.runs)
    refuse_foreign_folder(Path(settings.out), "extrapolation.json", "extrapolation.png", "extrapolation.svg")
    with loading():
        from engine.distributed import start_ranks
        from lab.evaluation.extrapolation import check_alike, extrapolate, render
        from lab.evaluation.long_text import read_long_text
        from runfolder.files import write_json_atomically

    with start_ranks(settings.device, TIMEOUT_SECONDS) as ranks:
        out = ranks.on_main(lambda: make_folder(settings.out))
        runs = open_runs(settings, ranks)
        check_alike(runs)
        span_tokens = settings.multiples[-1] * runs[0].sequence_length
        text = ranks.on_main(
            lambda: read_long_text(runs[0], settings.data, settings.split, settings.text_column, span_tokens, settings.max_tokens)
        )
        result = extrapolate(runs, ranks, text, settings.multiples)
        if ranks.is_main_process:
            print(render(result))
            # Imported late: matplotlib takes a second, and a refusal should come at once.
            from lab.evaluation.extrapolation_plot import draw_extrapolation

            path = out / "extrapolation.json"
            write_json_atomically(path, result)
            print(f"\nwrote {path}, {draw_extrapolation(result, out).path}")


def answer_tasks(settings: DownstreamSettings) -> None:
    """Answer lm-eval's tasks with every run; print one table, write each run's numbers."""
    check_common(settings, "batch_size", "limit")
    if settings.num_fewshot is not None and settings.num_fewshot < 0:
        raise ConfigError(f"num_fewshot={settings.num_fewshot}: must not be negative")
    check_different("runs", settings.runs)
    check_different("tasks", settings.tasks)
    with loading():
        from engine.distributed import start_ranks
        from lab.evaluation.downstream import TASK_FILES, load_tasks, render, require_lm_eval, run_tasks
        from lab.evaluation.hub import note_if_offline
        from runfolder.files import write_json_atomically

    silence = "" if all(task.endswith(TASK_FILES) for task in settings.tasks) else note_if_offline()
    require_lm_eval()
    with start_ranks(settings.device, TIMEOUT_SECONDS) as ranks:
        runs = open_runs(settings, ranks)
        out = ranks.on_main(lambda: make_folder(settings.out))
        paths = [out / f"{run.name}-{run.step}.json" for run in runs]
        ranks.on_main(lambda: refuse_foreign_files(paths, "task_versions", "out"))
        # The first rank alone, and then the others: it fills the cache of data sets.
        loaded = ranks.agree(lambda: load_tasks(settings.tasks, silence) if ranks.is_main_process else None)
        tasks = ranks.agree(lambda: loaded or load_tasks(settings.tasks, silence))
        reports = []
        for run, path in zip(runs, paths, strict=True):
            report = run_tasks(run, ranks, tasks, settings.batch_size, settings.num_fewshot, settings.limit)
            if report is not None:
                reports.append(report)
                path.parent.mkdir(parents=True, exist_ok=True)  # of a run that is called by its path
                write_json_atomically(path, report)
        if ranks.is_main_process:
            print(f"{render(reports)}\n\nwrote {', '.join(map(str, paths))}")


EVALUATE = Program(evaluate_runs, EvaluateSettings, ("runs",), EVALUATE_PAGE, has_ranks=True)
EXTRAPOLATE = Program(extrapolate_runs, ExtrapolateSettings, ("runs",), EXTRAPOLATE_PAGE, has_ranks=True)
DOWNSTREAM = Program(answer_tasks, DownstreamSettings, ("runs",), DOWNSTREAM_PAGE, has_ranks=True)
