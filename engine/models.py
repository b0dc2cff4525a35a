"""The models, by name: the one file of the engine that knows which there are.

The contract: a model module has a dataclass `Config` and a class `Transformer(config)` with
    model.config
    model(tokens (B, T)) -> final hidden states (B, T, n_embd)
    model(tokens (B, T), cache) -> the same, for tokens that follow those already in the cache, which it adds to
    model.new_cache() -> an empty cache with length, clear() and repeat(rows), as in gpt/cache.py
    model.unembedding() -> output matrix (vocab_size, n_embd); logits = hidden states @ matrix^T
    model.normalized_matrices() -> the matrices kept at unit norm, each with the dimension of the norm
    model.post_optimizer_step() -> called after every optimizer step, for every model
"""

from dataclasses import fields
from types import ModuleType
from typing import Any

import torch
from torch.func import functional_call

import arms.angpt
import arms.gpt_qknorm
import arms.ngpt_variants
import gpt.model
import ngpt.model
from cli.composition import ConfigError, nearest_divisor, to_dataclass
from engine.distributed import gathered
from ngpt.normalization import Scale

MODELS: dict[str, ModuleType] = {
    "gpt": gpt.model,
    "ngpt": ngpt.model,
    "gpt_qknorm": arms.gpt_qknorm,  # control arm
    "ngpt_ablation": arms.ngpt_variants,
    "angpt": arms.angpt,
}
LARGEST_CONTEXT = 1 << 20  # tokens; the rotary table grows with it, and is built before any checkpoint is read


def model_config(node: dict[str, Any]) -> Any:
    """Return the model's own Config from the configuration's `model` node; raise ConfigError for what cannot be."""
    node = dict(node)
    name = node.pop("name", None)
    if not isinstance(name, str) or name not in MODELS:
        raise ConfigError(f"model.name={name}: there are: {', '.join(MODELS)}")
    try:
        config = to_dataclass(node, MODELS[name].Config)
    except ConfigError:
        raise
    except ValueError as error:  # of a Config that checks its own fields
        raise ConfigError(f"model.{error}") from None
    for field in fields(config):
        value = getattr(config, field.name)
        if (
            field.type is int
            and value < 1
            or field.name.endswith(("_scale", "_base", "_eps", "_std"))
            and value is not None
            and value <= 0
        ):
            raise ConfigError(f"model.{field.name}={value}: must be positive")
    if config.sequence_length > LARGEST_CONTEXT:
        raise ConfigError(f"model.sequence_length={config.sequence_length}: at most {LARGEST_CONTEXT:,}")
    if config.n_embd % config.n_head:
        good = nearest_divisor(config.n_embd, config.n_head)
        raise ConfigError(f"model.n_embd={config.n_embd} is not divisible by model.n_head={config.n_head}; n_head={good} would be")
    if config.n_embd // config.n_head % 2:
        raise ConfigError(f"n_embd/n_head = {config.n_embd // config.n_head} is odd; rotary embedding needs an even head size")
    return config


def build_model(node: dict[str, Any], matrices: str = "float32", device: str = "cpu") -> torch.nn.Module:
    """Build the model of a `model` node with its weights initialized from torch's global seed.

    Args:
        matrices: type in which the blocks' matrices are stored; embeddings, gains and scales are always float32
            (as in NVIDIA/ngpt).
        device: "meta" allocates nothing and gives the weights' shapes alone.
    """
    config = model_config(node)
    with torch.device(device):
        model = MODELS[node["name"]].Transformer(config)
    for parameter in model.blocks.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.to(getattr(torch, matrices))
    return model


@torch.no_grad()
def max_norm_deviation(model: torch.nn.Module) -> float | None:
    """Return the largest |norm - 1| over the vectors of the matrices kept at unit norm, None where there are none."""
    norms = [
        gathered(torch.linalg.vector_norm(weight.to(torch.promote_types(weight.dtype, torch.float32)), dim=dim))
        for weight, dim in model.normalized_matrices()
    ]
    deviations = [(norm - 1).abs().max() for norm in norms]
    return torch.stack(deviations).max().item() if deviations else None


@torch.no_grad()
def scale_means(model: torch.nn.Module) -> dict[str, float]:
    """Return the mean |value| of each kind of learned scale over all layers, by its name (attn_alpha, sqk, ...)."""
    values: dict[str, list[torch.Tensor]] = {}
    for path, module in model.named_modules():
        if isinstance(module, Scale):
            stored = {name: gathered(p) for name, p in module.named_parameters()}
            values.setdefault(path.rpartition(".")[2], []).append(functional_call(module, stored, ()).abs().mean())
    return {name: torch.stack(means).mean().item() for name, means in values.items()}
