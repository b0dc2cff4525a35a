"""Models from elsewhere, timed by their own rules: nanoGPT's and NVIDIA's nGPT, from a file the user has.

Both files define GPTConfig and GPT(config)(tokens, targets) -> (logits, loss). Their step is nanoGPT's: autocast, gradient
accumulation, clipping, fused AdamW with weight decay on matrices.
"""

import importlib.util
import inspect
import io
import sys
import time
from contextlib import redirect_stdout
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cli.composition import ConfigError
from corpus.token_file import TokenFile
from engine.config import Config
from engine.data import BatchShape, TrainingWindows, micro_batches
from engine.distributed import Ranks
from lab.benchmark.arms import Arm, held_bytes


def load_module(path: Path) -> ModuleType:
    """Import a model file from elsewhere; where flash_attn is not installed its function is PyTorch's attention."""
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such model file")
    if "flash_attn" not in sys.modules and importlib.util.find_spec("flash_attn") is None:
        flash = ModuleType("flash_attn")
        vars(flash).update(flash_attn_func=flash_attention, flash_attn_qkvpacked_func=flash_attention)
        sys.modules["flash_attn"] = flash
    spec = importlib.util.spec_from_file_location(f"reference_{path.parent.name}", path)
    assert spec and spec.loader, path  # a file ending in .py has both
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flash_attention(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, causal: bool, **_: object) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # flash_attn's layout is (B, T, H, K)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=softmax_scale).transpose(1, 2)


def build(module: ModuleType, use_ngpt: bool, config: Config, device: torch.device) -> tuple[Any, torch.optim.Optimizer]:
    """Return the model of a file from elsewhere in the configuration's shape, and its own optimizer."""
    shape = config.model
    values = {
        "block_size": shape["sequence_length"],
        "vocab_size": shape["vocab_size"],
        "n_layer": shape["n_layer"],
        "n_head": shape["n_head"],
        "n_embd": shape["n_embd"],
        "bias": False,
        "dropout": 0.0,
        "use_nGPT": int(use_ngpt),
        "base_scale": shape["n_embd"] ** -0.5,
    }
    known = {f.name for f in fields(module.GPTConfig)}
    with redirect_stdout(io.StringIO()):  # they report their sizes
        torch.manual_seed(config.seed)
        model = module.GPT(module.GPTConfig(**{k: v for k, v in values.items() if k in known})).to(device)
        keys = inspect.signature(model.configure_optimizers).parameters
        optimizer = model.configure_optimizers(
            *[
                {
                    "weight_decay": config.weight_decay,
                    "learning_rate": config.learning_rate,
                    "betas": (0.9, 0.95),
                    "device_type": device.type,
                }[key]
                for key in keys
            ]
        )
    return model, optimizer


def reference_arm(name: str, path: Path, use_ngpt: bool, config: Config, ranks: Ranks, tokens: TokenFile) -> Arm:
    """Return a model of the configuration's shape from a file of nanoGPT's kind, stepped on one rank.

    Args:
        use_ngpt: NVIDIA's file holds both arms; True asks for nGPT, whose matrices are then normalized after each step.
    """
    shape, device = config.model, ranks.device
    model, optimizer = build(load_module(path), use_ngpt, config, device)
    use_compile = config.compiles_on(device.type)
    if use_compile:
        model.compile(dynamic=False)
    batches = micro_batches(
        TrainingWindows(tokens, shape["sequence_length"], config.seed),
        BatchShape(config.global_batch_size, config.micro_batch_size),
        first_batch=0,
        last_batch=1 << 40,
        pin_memory=device.type == "cuda",
    )
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision.matmul == "bfloat16")
    micro_steps = config.global_batch_size // config.micro_batch_size

    def step() -> None:
        for _ in range(micro_steps):
            windows = next(batches).to(device, non_blocking=True)
            with autocast:
                _, loss = model(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
            (loss / micro_steps).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if use_ngpt:
            normalize_nvidia_(model)
        loss.item()

    started = time.perf_counter()
    step()
    seconds = time.perf_counter() - started
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    looked_up = sum(e.weight.numel() for name, e in model.transformer.items() if name in ("wte", "wpe"))
    if model.lm_head.weight is model.transformer["wte"].weight:  # tied: the one matrix is also a product
        looked_up -= model.lm_head.weight.numel()
    attention = 12 * shape["n_layer"] * shape["sequence_length"] * shape["n_embd"]
    return Arm(
        name=name,
        step=step,
        flops_per_token=6 * (matrices - looked_up) + attention,
        parameters=sum(p.numel() for p in model.parameters()),
        normalized_parameters=matrices if use_ngpt else 0,
        compile_seconds=seconds if use_compile else None,
        held_bytes=lambda: held_bytes(model, optimizer),
    )


@torch.no_grad()
def normalize_nvidia_(model: torch.nn.Module) -> None:
    """Normalize the matrices of NVIDIA's nGPT as its train.py does, in their own type."""

    def normalize_(weight: Tensor, dim: int) -> None:
        weight.copy_(weight / weight.float().norm(p=2, dim=dim, keepdim=True).to(weight.dtype))

    for module in (model.transformer["wte"], model.lm_head):
        normalize_(module.weight, 1)
    for block in model.transformer["h"]:
        for name, dim in (("query", 1), ("key", 1), ("value", 1), ("att_c_proj", 0), ("c_fc", 1), ("mlp_c_proj", 0)):
            normalize_(getattr(block, name).weight, dim)
