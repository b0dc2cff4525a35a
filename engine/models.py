"""The models, by name: the one file of the engine that knows which there are.

The contract: a model module has a dataclass `Config` and a class `Transformer(config)` with
    model.config
    model(tokens (B, T)) -> final hidden states (B, T, n_embd)
    model(tokens (B, T), cache) -> the same, for tokens that follow those already in the cache, which it adds to
    model.new_cache() -> an empty cache with length, clear() and repeat(rows), as in gpt/cache.py
    model.unembedding() -> output matrix (vocab_size, n_embd); logits = hidden states @ matrix^T
    model.embedding, model.lm_head -> the outer matrices; every other parameter of two dimensions is a matrix of the blocks
    model.normalized_matrices() -> the matrices kept at unit norm, each with the dimension of the norm: a list of the outer
        ones, then one of each block's, all alike
    model.normalize_(matrices) -> where there are such, what post_optimizer_step does with each of these lists, in place
    model.post_optimizer_step() -> called after every optimizer step, for every model
"""

from collections.abc import Iterator
from dataclasses import fields
from types import ModuleType
from typing import Any

import torch

import arms.angpt
import arms.gpt_qknorm
import arms.ngpt_variants
import gpt.model
import gpt.transfer
import ngpt.model
import ngpt.transfer
from cli.composition import ConfigError, nearest_divisor, to_dataclass
from ngpt.normalization import Scale

MODELS: dict[str, ModuleType] = {
    "gpt": gpt.model,
    "ngpt": ngpt.model,
    "gpt_qknorm": arms.gpt_qknorm,  # control arm
    "ngpt_ablation": arms.ngpt_variants,
    "angpt": arms.angpt,
}
# How rates and inits follow from a smaller base, for the models that have such rules.
TRANSFERS = {
    "gpt": gpt.transfer.transfer,
    "gpt_qknorm": gpt.transfer.transfer,
    "ngpt": ngpt.transfer.transfer,
    "ngpt_ablation": ngpt.transfer.transfer,
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


def build_model(
    node: dict[str, Any], matrices: str = "float32", device: str = "cpu", init: dict[str, float] | None = None
) -> torch.nn.Module:
    """Build the model of a `model` node with its weights initialized from torch's global seed.

    Args:
        matrices: type in which the blocks' matrices are stored; embeddings, gains and scales are always float32
            (as in NVIDIA/ngpt).
        init: kind of parameter (parameters_by_kind) -> factor of its initial weights; a matrix kept at unit norm stays there.
        device: "meta" allocates nothing and gives the weights' shapes alone.
    """
    config = model_config(node)
    with torch.device(device):
        model = MODELS[node["name"]].Transformer(config)
        scale_weights(model, init or {})
    for parameter in model.blocks.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.to(getattr(torch, matrices))
    return model


@torch.no_grad()
def scale_weights(model: torch.nn.Module, factors: dict[str, float]) -> None:
    """Multiply the parameters of each kind by its factor, in place, and bring them back to where the model keeps them."""
    kinds = parameters_by_kind(model)
    for kind, factor in factors.items():
        if factor != 1:
            for parameter in kinds[kind]:
                parameter.mul_(factor)
    if any(factor != 1 for factor in factors.values()):
        model.post_optimizer_step()


def parameters_by_kind(model: torch.nn.Module) -> dict[str, list[torch.nn.Parameter]]:
    """Return the parameters by kind: embedding, matrices (of the blocks), output, scales (learned scales and gains)."""
    outer = {id(model.embedding.weight): "embedding", id(model.lm_head.weight): "output"}
    kinds: dict[str, list[torch.nn.Parameter]] = {"embedding": [], "matrices": [], "output": [], "scales": []}
    for parameter in model.parameters():
        kinds[outer.get(id(parameter), "matrices" if parameter.dim() == 2 else "scales")].append(parameter)
    return kinds


def learned_scales(model: torch.nn.Module) -> Iterator[tuple[str, Scale]]:
    """Yield every learned scale of a model with the name of its kind (attn_alpha, sqk, ...)."""
    for path, module in model.named_modules():
        if isinstance(module, Scale):
            yield path.rpartition(".")[2], module
