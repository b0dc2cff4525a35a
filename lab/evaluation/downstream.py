"""Downstream tasks through lm-evaluation-harness, and the paper's figures to put beside them."""

import hashlib
import json
import logging
import os
import platform
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from cli.composition import ConfigError, nearest
from corpus.manifest import DataError, first_line
from engine.distributed import Ranks
from lab.evaluation.trained_run import MeasuredRun
from lab.words import markdown_table

PAPER_TASKS = ("arc_easy", "hellaswag", "winogrande", "wsc273", "lambada_openai")
PAPER_MODEL = "nGPT 0.5B, 1k context, 100k steps (52B tokens of OpenWebText), LLaMA-2 vocabulary"
# arXiv 2410.01131, Table 6, in percent, in the order of PAPER_TASKS.
PAPER_ROWS = {
    "base": (53.07, 46.03, 55.96, 67.03, 50.13),
    "-QK norm": (52.65, 46.07, 56.27, 68.86, 49.68),
}
BOOTSTRAP_RESAMPLES = 10_000  # for the standard error of perplexities; that of accuracies has a formula
TASK_FILES = (".yaml", ".yml", ".json")


def require_lm_eval() -> None:
    """Raise ConfigError with the command that installs lm-eval, where it is missing."""
    try:
        import lm_eval.evaluator  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"downstream tasks need lm-evaluation-harness ({first_line(error)}); run: pip install -r requirements-eval.txt"
        ) from None


def load_tasks(names: list[str], silence: str = "") -> dict[str, Any]:
    """Return lm-eval's tasks: registered names, groups, or paths of local task files.

    Args:
        silence: why the hub was not asked; said of a data set that is not in its cache.

    Raises:
        ConfigError: there is no such task, or a file does not describe one.
        DataError: a task's data set cannot be loaded.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    specs = [read_task_file(Path(name)) if name.endswith(TASK_FILES) else name for name in names]
    registered = [spec for spec in specs if isinstance(spec, str)]
    # Reading the thousands of task files of the package takes seconds: only where one is asked for.
    manager = TaskManager(include_defaults=bool(registered))
    for name in registered:
        if name not in manager.task_index:
            raise ConfigError(f"tasks: lm-eval {version('lm_eval')} has no task {name!r}{nearest(name, manager.all_tasks)}")
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name, spec in zip(names, specs, strict=True):
        try:
            found = manager.load([spec])
        except Exception as error:  # of datasets, its hub client, its HTTP library, jinja: they have no common base
            reason = silence or f"{type(error).__name__}: {first_line(error)}"
            raise DataError(f"{name}: the task cannot be loaded ({reason})") from None
        twice = set(found["tasks"]) & set(loaded["tasks"])
        if twice:
            raise ConfigError(f"tasks: {sorted(twice)[0]} is asked for twice")
        for key, value in found.items():
            loaded[key] |= value
    return loaded


def read_task_file(path: Path) -> dict[str, Any]:
    """Return a task's configuration as plain data: `!function`, which would import code, is refused.

    Paths under dataset_kwargs that exist beside the file are taken from there.
    """
    try:
        text = path.read_text(encoding="utf-8")
        task = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"tasks={path}: {error.strerror}") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"tasks={path}: not a task file of plain data ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(task, dict) or not isinstance(task.get("task"), str):
        raise ConfigError(f"tasks={path}: not a task, which has `task: NAME`")
    if {"include", "class"} & set(task):
        raise ConfigError(f"tasks={path}: include and class are not read here; write the task in one file")
    if isinstance(task.get("dataset_kwargs"), dict):
        task["dataset_kwargs"] = beside(path.parent, task["dataset_kwargs"])
    return task


def beside(folder: Path, value: Any) -> Any:
    """Return value with every text in it that names a file in folder replaced by that file's path."""
    if isinstance(value, dict):
        return {key: beside(folder, entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [beside(folder, entry) for entry in value]
    return str(folder / value) if isinstance(value, str) and (folder / value).is_file() else value


def run_tasks(
    run: MeasuredRun, ranks: Ranks, tasks: dict[str, Any], batch_size: int, num_fewshot: int | None, limit: int | None
) -> dict[str, Any] | None:
    """Return every task's metrics with what is needed to repeat them; on ranks other than the first None."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from lab.evaluation.harness import TrainedModel

    model = TrainedModel(run, ranks, batch_size)
    # lm-eval would resample perplexities in processes forked from this one, which may hold a GPU and threads.
    os.environ["DISABLE_MULTIPROC"] = "1"
    with redirect_stdout(sys.stderr):  # it prints its progress; standard output is for the result
        found = simple_evaluate(
            model=model,
            tasks=[*tasks["groups"].values(), *ungrouped(tasks)],
            task_manager=TaskManager(include_defaults=False),  # the tasks are loaded already
            num_fewshot=num_fewshot,
            limit=limit,
            bootstrap_iters=BOOTSTRAP_RESAMPLES if ranks.is_main_process else 0,
            log_samples=True,  # for the task hashes
        )
    if not ranks.is_main_process:
        return None
    names = list(tasks["tasks"])
    return {
        **run.describe(),
        "max_length": model.max_length,
        "limit": limit,
        "results": {name: metrics_of(found["results"][name]) for name in names},
        "groups": {name: metrics_of(found["results"][name]) for name in tasks["groups"] if name in found["results"]},
        "examples": {name: found["n-samples"][name]["effective"] for name in names},
        "num_fewshot": {name: found["n-shot"][name] for name in names},
        "task_versions": {name: found["versions"].get(name) for name in names},
        "task_hashes": {name: hash_samples(found["samples"][name]) for name in names},
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("lm_eval", "datasets", "torch")},
        },
    }


def ungrouped(tasks: dict[str, Any]) -> list[Any]:
    """Return the tasks that stand in none of the groups."""
    inside = {task.task_name for group in tasks["groups"].values() for task in group.get_all_tasks()}
    return [task for name, task in tasks["tasks"].items() if name not in inside]


def metrics_of(result: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return {metric: {value, stderr}}; lm-eval writes both flat, as acc,none and acc_stderr,none."""
    metrics = {}
    for key, value in result.items():
        name, comma, chosen = key.partition(",")
        if comma and not name.endswith("_stderr") and isinstance(value, (int, float)):
            error = result.get(f"{name}_stderr,{chosen}")
            label = name if chosen == "none" else f"{name} ({chosen})"
            metrics[label] = {
                "value": float(value),
                "stderr": float(error) if isinstance(error, (int, float)) else None,
            }
    return metrics


def hash_samples(samples: list[dict[str, Any]]) -> str:
    """Return lm-eval's task hash: that of every document, prompt and target, as its own result files have it."""
    parts = "".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples)
    return hashlib.sha256(parts.encode()).hexdigest()


def averages(results: dict[str, Any]) -> dict[str, float] | None:
    """Return the means over the paper's five tasks, None unless all are there: by acc, and by acc_norm where it exists."""
    if not set(PAPER_TASKS) <= set(results):
        return None
    tasks = [results[name] for name in PAPER_TASKS]
    return {
        "acc": sum(task["acc"]["value"] for task in tasks) / len(tasks),
        "acc_norm": sum(task.get("acc_norm", task["acc"])["value"] for task in tasks) / len(tasks),
    }


def render(reports: list[dict[str, Any]]) -> str:
    """Return the results of one run, or of several run on the same tasks, as a Markdown table beside the paper's.

    Accuracies are in percent. One run has its standard errors in a column of their own.
    """
    first = reports[0]
    titles = [f"{report['run']} at step {report['step']:,}" for report in reports]
    lines = [
        f"{', '.join(titles)}, lm-eval {first['versions']['lm_eval']}"
        + (f", ONLY THE FIRST {first['limit']} EXAMPLES OF EACH TASK" if first["limit"] else ""),
        "",
    ]
    values = ["value", "stderr"] if len(reports) == 1 else titles
    header = ["task", "examples", "metric", *values, *(f"paper, {row}" for row in PAPER_ROWS)]
    rows = []
    for name, metrics in (first["results"] | first["groups"]).items():
        for metric in metrics:
            found = [measured(report, name, metric) for report in reports]
            cells = list(found[0]) if len(reports) == 1 else [f"{value} +- {error}" if error else value for value, error in found]
            rows.append([name, str(first["examples"].get(name, "")), metric, *cells, *paper(name, metric)])
    means = [averages(report["results"]) for report in reports]
    published = [f"{sum(row) / len(row):.2f}" for row in PAPER_ROWS.values()]
    for key, label in (("acc", "acc"), ("acc_norm", "acc_norm, else acc")) if means[0] else ():
        cells = [f"{100 * mean[key]:.2f}" for mean in means if mean]
        rows.append(["mean of five", "", label, *cells, *([""] if len(reports) == 1 else []), *published])
    lines += [markdown_table(header, rows)]
    lines += ["", f"paper: arXiv 2410.01131, Table 6: {PAPER_MODEL};"]
    lines += ["one accuracy per task, without saying whether it is acc or acc_norm, nor which harness"]
    return "\n".join(lines)


def measured(report: dict[str, Any], task: str, metric: str) -> tuple[str, str]:
    """Return a metric's value and standard error as texts, accuracies in percent."""
    entry = (report["results"] | report["groups"])[task][metric]
    scale = 100 if metric.startswith("acc") else 1
    return f"{scale * entry['value']:.2f}", "" if entry["stderr"] is None else f"{scale * entry['stderr']:.2f}"


def paper(task: str, metric: str) -> list[str]:
    if task not in PAPER_TASKS or not metric.startswith("acc"):
        return [""] * len(PAPER_ROWS)
    return [f"{row[PAPER_TASKS.index(task)]:.2f}" for row in PAPER_ROWS.values()]
