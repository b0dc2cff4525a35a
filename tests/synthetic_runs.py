"""Make run folders with a known speedup: loss = E + A * (k * tokens) ** -b, the challenger with its own k."""

import json
import math
from pathlib import Path

import numpy as np
import yaml

TOKENS_PER_STEP = 4096

Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # hundreds of runs are made


def final_loss(tokens: float, advantage: float = 1.0) -> float:
    """Return the loss of an annealed run in nats/token; advantage k is the token speedup over k = 1."""
    return 1.2 + 14.0 * (advantage * tokens) ** -0.25


def make_run(
    root: Path,
    name: str,
    model: str = "gpt",
    steps: int = 100,
    advantage: float = 1.0,
    lr: float = 3e-3,
    seed: int = 0,
    loss: float | None = None,
    step_seconds: float = 0.1,
    state: str = "done",
    stop_at: int | None = None,
    config: dict | None = None,
    environment: dict | None = None,
) -> Path:
    """Write one run folder; config and environment map dotted keys to values that replace the defaults."""
    folder = Path(root) / name
    folder.mkdir(parents=True)
    settings = {
        "model": {"name": model, "vocab_size": 256, "sequence_length": 128, "n_layer": 4, "n_head": 4, "n_embd": 128},
        "size": "tiny",
        "context": "128",
        "data": {"name": "docs", "dir": "data/docs"},
        "precision": {"name": "bf16", "master": "fp32"},
        "run_name": name,
        "seed": seed,
        "max_steps": steps,
        "micro_batch_size": 32,
        "global_batch_size": 32,
        "learning_rate": lr,
        "min_learning_rate": 0.0,
        "warmup_steps": 10 if model == "gpt" else 0,
        "weight_decay": 0.1 if model == "gpt" else 0.0,
        "eval_interval": 10,
        "eval_windows": 64,
    }
    facts = {
        "parameters": {"total": 800000, "non_embedding": 700000},
        "tokens_per_step": TOKENS_PER_STEP,
        "data": {"digest": "data-1", "name": "docs", "tokenizer": {"name": "bytes", "digest": "bytes-1"}},
        "device": {"type": "cpu", "name": "test"},
        "world_size": 1,
        "commit": "abc1234",
        "evaluation": {"windows": 64, "tokens": 8192, "bytes": 8192, "digest": "eval-1"},
        "versions": {"torch": "2.13.0"},
    }
    for target, changes in ((settings, config), (facts, environment)):
        for key, value in (changes or {}).items():
            set_value(target, key, value)
    end = final_loss(steps * TOKENS_PER_STEP, advantage) if loss is None else loss
    (folder / "config.yaml").write_text(yaml.dump(settings, Dumper=Dumper))
    (folder / "environment.json").write_text(json.dumps(facts))
    (folder / "status.json").write_text(json.dumps({"state": state, "step": stop_at or steps, "message": ""}))
    lines = []
    for step in range(10, (stop_at or steps) + 1, 10):
        common = {"step": step, "tokens": step * TOKENS_PER_STEP, "train_seconds": step * step_seconds}
        value = end + 2.0 * (1 - step / steps)
        lines += [
            {**common, "train/loss": value, "train/learning_rate": lr * (1 - step / steps)},
            {**common, "val/loss": value, "val/perplexity": 2.718**value, "val/bits_per_byte": value / 0.6931},
        ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def make_losses(
    generator,
    advantage: float,
    budgets=(100, 200, 400, 800),
    seeds=(0,),
    rates=(3e-3,),
    noise: float = 0.0,
    curvature: float = 0.02,
) -> dict:
    """Return {(model, steps, seed, rate): loss}: a power law, a parabola over the logarithm of the rate, and noise.

    The middle rate is the best one of the grid (the optimum lies a third of the way to the next), and lies on the law.
    Half of the noise's variance is a seed's own at a budget (its data order), shared by arms and rates.
    """
    best = math.log2(rates[len(rates) // 2]) + (1 / 3 if len(rates) > 1 else 0)
    excess = {rate: curvature * (math.log2(rate) - best) ** 2 for rate in rates}
    shared = {(seed, steps): generator.normal() for seed in seeds for steps in budgets}
    return {
        (model, steps, seed, rate): final_loss(steps * TOKENS_PER_STEP, k)
        + excess[rate]
        - min(excess.values())
        + noise * math.sqrt(0.5) * (shared[seed, steps] + generator.normal())
        for model, k in (("gpt", 1.0), ("ngpt", advantage))
        for steps in budgets
        for seed in seeds
        for rate in rates
    }


def make_ladders(root: Path, advantage: float, step_ratio: float = 1.0, random_seed: int = 0, **options) -> list[Path]:
    """Write runs of both arms at every budget, seed and rate; options as in make_losses, a step takes 0.1 s."""
    losses = make_losses(np.random.default_rng(random_seed), advantage, **options)
    return [
        make_run(
            root,
            f"{model}-{steps}-{rate}-{seed}",
            model,
            steps,
            lr=rate,
            seed=seed,
            loss=loss,
            step_seconds=0.1 if model == "gpt" else 0.1 * step_ratio,
        )
        for (model, steps, seed, rate), loss in losses.items()
    ]


def set_value(mapping: dict, dotted: str, value) -> None:
    """Set a dotted key of nested dicts."""
    *parents, last = dotted.split(".")
    for part in parents:
        mapping = mapping.setdefault(part, {})
    mapping[last] = value
