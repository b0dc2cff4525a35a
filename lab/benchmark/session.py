"""The arms of scripts/bench.py, timed in turn: everything that was found, as a table and as JSON."""

import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cli.composition import ConfigError
from cli.launcher import read_launch
from engine.accounting import peak_flops
from engine.checks import check_batch, check_config
from engine.config import Config
from engine.distributed import Ranks, start_ranks
from engine.environment import current_commit, name_device
from engine.micro_batch import memory_of, with_micro_batch
from lab.benchmark.arms import Arm, synchronize, trainer_arm, write_tokens
from lab.benchmark.cli import REFERENCES, stem_of
from lab.benchmark.hardware_limits import bandwidth, bytes_per_step, matmul_rate
from lab.benchmark.measure import peak_memory_gib, ratio, time_phases, time_rounds
from lab.benchmark.reference import reference_arm
from runfolder.files import write_atomically

WARM_UP = 2


def time_arms(configs: dict[str, Config], own: dict[str, str], rounds: int) -> None:
    """Time the arms on all ranks of this job; the first prints the table and writes own["json"]."""
    configs = {name: fit_arm(name, config) for name, config in configs.items()}
    first = next(iter(configs.values()))
    with start_ranks(first.device, first.timeout_seconds) as ranks, tempfile.TemporaryDirectory() as folder:
        result = measure(configs, own, rounds, ranks, Path(folder))
        if ranks.is_main_process:
            print(table(result))
            if own["json"]:
                write_atomically(own["json"], json.dumps(result, indent=2) + "\n")  # the arms in their order


def fit_arm(name: str, config: Config) -> Config:
    """Return the configuration as train.py would have it on this machine; raise ConfigError if it cannot run."""
    mode = name.partition(":")[2]
    check_config(config)
    world_size = read_launch().world_size
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    config = with_micro_batch(config, world_size, memory_of(device, world_size), config.compiles_on(device.type))
    check_batch(config, world_size)
    return replace(config, compile={"eager": False, "compiled": True, "": config.compile}[mode])


def build_arm(name: str, config: Config, own: dict[str, str], ranks: Ranks, folder: Path) -> Arm:
    tokens = write_tokens(folder, config)
    model = name.partition(":")[0]
    if model not in REFERENCES:
        return trainer_arm(name, config, ranks, tokens, folder)
    key, use_ngpt = REFERENCES[model]
    if ranks.world_size > 1:
        raise ConfigError(f"arms={name}: models from elsewhere are timed on one rank only")
    if not own[key]:
        raise ConfigError(f"arms={name}: {key}=PATH/model.py must say where its model file is")
    return reference_arm(name, Path(own[key]), use_ngpt, config, ranks, tokens)


def measure(configs: dict[str, Config], own: dict[str, str], rounds: int, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Build every arm, step them in turn, and return all that was found."""
    device, arms, memory = ranks.device, [], {}
    for name, config in configs.items():
        arm = build_arm(name, config, own, ranks, folder)
        for _ in range(WARM_UP):
            arm.step()
        memory[name] = peak_memory_gib(arm, device) if own["memory"] == "true" else None
        arms.append(arm)
    config = next(iter(configs.values()))
    seconds = time_rounds(arms, rounds, device)
    phases = time_phases(arms, max(rounds // 4, 3), device)
    if own["profile"]:
        write_profiles(arms, Path(own["profile"]), device)
    rates = {"matmul_flops": matmul_rate(config, device), "bytes": bandwidth(device)}
    tokens = config.tokens_per_step // ranks.world_size
    peak = peak_flops(device, config.precision.matmul)
    found = {}
    for arm in arms:
        median = statistics.median(seconds[arm.name])
        flops = arm.flops_per_token * tokens
        weight_bytes = bytes_per_step(arm.parameters, arm.normalized_parameters)
        found[arm.name] = {
            "step_seconds": median,
            "tokens_per_second": tokens / median,
            "mfu": flops / median / peak if peak else None,
            "of_matmul_rate": flops / median / rates["matmul_flops"],
            "floor_seconds": flops / rates["matmul_flops"] + weight_bytes / rates["bytes"],
            "ratio_to_first": ratio(seconds, arm.name, arms[0].name),
            "phases": phases.get(arm.name),
            "parameters": arm.parameters,
            "flops_per_token": arm.flops_per_token,
            "build_and_compile_seconds": arm.compile_seconds,
            "peak_memory_gib": memory[arm.name],
            "memory_estimate_gib": arm.memory_estimate_gib,
            "all_step_seconds": seconds[arm.name],
        }
    return {"setting": describe_setting(config, ranks), "measured_rates": rates, "rounds": rounds, "arms": found}


def describe_setting(config: Config, ranks: Ranks) -> dict[str, Any]:
    shape = {key: config.model[key] for key in ("n_layer", "n_head", "n_embd", "sequence_length", "vocab_size")}
    return {
        **shape,
        "global_batch_size": config.global_batch_size,
        "micro_batch_size": config.micro_batch_size,
        "precision": config.precision.name,
        "world_size": ranks.world_size,
        "torch": torch.__version__,
        "commit": current_commit(),
        "device": name_device(ranks.device),
        "threads": torch.get_num_threads(),
    }


def write_profiles(arms: list[Arm], folder: Path, device: torch.device) -> None:
    """Write one trace per arm, and a table of its most expensive operations."""
    folder.mkdir(parents=True, exist_ok=True)
    for arm in arms:
        with torch.profiler.profile() as profile:
            arm.step()
            synchronize(device)
        stem = folder / stem_of(arm.name)
        profile.export_chrome_trace(f"{stem}.json")
        key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        stem.with_suffix(".txt").write_text(profile.key_averages().table(sort_by=key, row_limit=60))


def table(result: dict[str, Any]) -> str:
    """Word what was measured, as Markdown."""
    setting, arms = result["setting"], result["arms"]
    lines = [
        ", ".join(f"{key} {value}" for key, value in setting.items()),
        "",
        "| arm | step ms | ratio (quartiles) | tokens/s per rank | MFU | of matmul rate | floor ms | peak GiB (estimate) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in arms.items():
        relative = found["ratio_to_first"]
        mfu = "" if found["mfu"] is None else f"{found['mfu']:.1%}"
        memory = "" if found["peak_memory_gib"] is None else f"{found['peak_memory_gib']:.2f}"
        if memory and found["memory_estimate_gib"]:
            memory += f" ({found['memory_estimate_gib']:.2f})"
        lines.append(
            f"| {name} | {1000 * found['step_seconds']:.1f} | {relative['median']:.3f} "
            f"({relative['low']:.3f}-{relative['high']:.3f}) "
            f"| {found['tokens_per_second']:,.0f} | {mfu} | {found['of_matmul_rate']:.0%} | "
            f"{1000 * found['floor_seconds']:.1f} | {memory} |"
        )
    split = {name: found["phases"] for name, found in arms.items() if found["phases"]}
    if split:
        phases = list(next(iter(split.values())))
        lines += ["", f"| ms | {' | '.join(phases)} |", "|---" * (len(phases) + 1) + "|"]
        lines += [f"| {name} | {' | '.join(f'{1000 * values[p]:.1f}' for p in phases)} |" for name, values in split.items()]
    return "\n".join(lines)
